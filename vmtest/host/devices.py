"""The device node of an accelerator: there, open to us, or why not."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

__all__ = ["DeviceState", "device_state"]


@dataclass(frozen=True, kw_only=True)
class DeviceState:
    """``exists``, and ``why`` it cannot be used ("" where it can), with a ``hint``.

    ``identity`` changes when the node is made anew (a module loaded again), or its owner or mode change.
    """

    exists: bool
    why: str = ""
    hint: str = ""
    identity: str = ""


def device_state(path: str) -> DeviceState:
    """Look at the node now, by opening it as QEMU would; nothing is remembered."""
    try:
        found = os.stat(path)  # noqa: PTH116 - one call, for the error's number as well
    except OSError as error:
        return DeviceState(exists=False, why=f"{path} is missing: {error.strerror}", hint=_MISSING)
    identity = f"{found.st_rdev} {found.st_ino} {found.st_ctime_ns}"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            why, hint = _refused(path, found)
        else:
            why, hint = f"{path} does not open: {error.strerror}", _MISSING
        return DeviceState(exists=True, why=why, hint=hint, identity=identity)
    return DeviceState(exists=True, identity=identity)


_MISSING = (
    "switch virtualization (VT-x, AMD-V) on in the firmware and `modprobe kvm_intel` or `modprobe kvm_amd`; "
    "in a virtual machine its host must offer nested virtualization; in a container pass --device /dev/kvm"
)


def _refused(path: str, found: os.stat_result) -> tuple[str, str]:
    import grp
    import pwd

    def name(table: object, number: int) -> str:
        try:
            return str(pwd.getpwuid(number)[0] if table is pwd else grp.getgrgid(number)[0])
        except KeyError:
            return str(number)

    user, owner, group = name(pwd, os.geteuid()), name(pwd, found.st_uid), name(grp, found.st_gid)
    mode = stat.filemode(found.st_mode)
    why = f"no permission to open {path}: it is {mode} {owner}:{group}, and you are {user}"
    join = f"add yourself to the kvm group: usermod -aG kvm {user}, and log in again"
    if found.st_mode & 0o060 == 0o060 and group != "root":
        if found.st_gid in {os.getegid(), *os.getgroups()}:
            return why, "you are in its group already: a container or security module forbids it"
        return why, join.replace("kvm", group)
    # Joining a group that has no right to the node would not help.
    return why, f"as root: chgrp kvm {path} && chmod 660 {path}; then {join}"
