"""What must not be the same in two guests that others can see: a shell script gives each its own."""

from __future__ import annotations

import secrets

from vmtest.model.machine import Machine
from vmtest.model.snapshot import shared

__all__ = ["script"]

# Both wait for what a guest that has just booted may not have yet.
_HOSTNAME = """
hostname {name} && [ "$(hostname)" = {name} ] || exit 1
[ ! -f /etc/hostname ] || echo {name} >/etc/hostname
[ ! -f /etc/machine-id ] || echo {machine_id} >/etc/machine-id
"""
_MAC = """
tries=0
until [ -e /sys/class/net/eth{number} ]; do
    tries=$((tries + 1)); [ $tries -lt 100 ] || {{ echo "no eth{number} has appeared" >&2; exit 1; }}
    usleep 50000 2>/dev/null || sleep 1
done
ip link set dev eth{number} address {mac} || exit 1
"""


def script(machine: Machine, hostname: str | None) -> str:
    """The script for the guest's shell, "" where there is nothing to do.

    A network that several guests are on: QEMU gives each the same MAC address, and a clone keeps its template's
    whatever the command line says. One behind QEMU's own NAT (user) is alone there.
    """
    parts = []
    if hostname is not None:
        parts.append(_HOSTNAME.format(name=hostname, machine_id=secrets.token_hex(16)))
    for number, nic in enumerate(machine.nics):
        if shared(nic) and not nic.mac:
            # 52:54:00 is what QEMU's own addresses begin with: locally administered.
            mac = ":".join(["52", "54", "00", *(f"{byte:02x}" for byte in secrets.token_bytes(3))])
            parts.append(_MAC.format(number=number, mac=mac))
    return "".join(parts)
