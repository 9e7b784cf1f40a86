"""Kernel modules: which files a list of names needs, and in which order they load.

A Debian kernel package carries no modules.dep (depmod makes it on installation), so that the dependencies are
read where depmod reads them: from the ``depends=`` line in each module's ``.modinfo`` section.
"""

from __future__ import annotations

import gzip
import lzma
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from vmtest.errors import ImageError

__all__ = ["Module", "ModuleTree", "depends"]

_FILE = re.compile(r"(?:.*/)?([^/]+)\.ko(?:\.(?:xz|gz|zst))?")


@dataclass(frozen=True)
class Module:
    """A module as ``insmod`` takes it: its path without a compression suffix, and its bytes unpacked."""

    path: str
    data: bytes = field(repr=False)


class ModuleTree:
    """The modules of one kernel: ``paths`` of all its files, and ``read`` to get at one."""

    def __init__(self, paths: Iterable[str], read: Callable[[str], bytes]) -> None:
        self._read = read
        self._files: dict[str, str] = {}
        self._builtin: set[str] = set()
        for path in sorted(paths):
            if match := _FILE.fullmatch(path):
                self._files[_normal(match[1])] = path
            elif PurePosixPath(path).name == "modules.builtin":
                lines = read(path).decode().split()
                self._builtin.update(_normal(PurePosixPath(line).name.removesuffix(".ko")) for line in lines)

    def closure(self, wanted: Iterable[str]) -> list[Module]:
        """The wanted modules and all that they depend on, in an order in which ``insmod`` succeeds.

        The order is that of ``wanted``, each name after its own dependencies. What is built into the kernel needs
        no file. Raises ImageError for a name that is neither built in nor a module of this kernel.
        """
        done: dict[str, Module | None] = {}
        for name in wanted:
            self._visit(name, done, ())
        return [module for module in done.values() if module]

    def _visit(self, name: str, done: dict[str, Module | None], above: tuple[str, ...]) -> None:
        key = _normal(name)
        if key in done or (key in self._builtin and key not in self._files):
            return
        if key in above:
            raise ImageError(f"the kernel's modules depend on each other in a circle: {' → '.join((*above, key))}")
        if key not in self._files:
            needed = f", which {above[-1]} depends on," if above else ""
            raise ImageError(
                f"the kernel has no module {name!r}{needed} and it is not built in either",
                hint="correct `modules` and `later_modules` in image.toml; the kernel's package lists its modules "
                "under lib/modules",
            )
        path = self._files[key]
        data = _unpacked(path, self._read(path))
        try:
            dependencies = depends(data)
        except (struct.error, ValueError, IndexError, OverflowError) as error:
            raise ImageError(f"{path} is no kernel module that can be understood: {error}") from None
        for dependency in dependencies:
            self._visit(dependency, done, (*above, key))
        plain = path[: path.rindex(".ko") + len(".ko")]
        done[key] = Module(plain, data)


def depends(module: bytes) -> tuple[str, ...]:
    """The names in a module's ``depends=`` line. Raises ValueError for what is no ELF file."""
    for entry in _modinfo(module):
        if entry.startswith(b"depends="):
            return tuple(filter(None, entry.removeprefix(b"depends=").decode().split(",")))
    return ()


def _modinfo(module: bytes) -> Iterator[bytes]:
    """The lines of the section ``.modinfo``: strings that end in NUL."""
    if module[:4] != b"\x7fELF":
        raise ValueError("not an ELF file")
    wide, order = module[4] == 2, "<" if module[5] == 1 else ">"
    # e_shoff, then e_shentsize, e_shnum and e_shstrndx.
    (table,) = struct.unpack_from(order + ("Q" if wide else "I"), module, 40 if wide else 32)
    size, count, names = struct.unpack_from(order + "HHH", module, 58 if wide else 46)
    layout = order + ("IIQQQQ" if wide else "IIIIII")  # sh_name, type, flags, addr, offset, size
    sections = [struct.unpack_from(layout, module, table + index * size) for index in range(count)]
    strings = sections[names][4]
    for name, _, _, _, offset, length in sections:
        if module.startswith(b".modinfo\0", strings + name):
            yield from module[offset : offset + length].split(b"\0")


def _unpacked(path: str, data: bytes) -> bytes:
    """The module as it was before Debian compressed it: busybox's insmod and old kernels take only that."""
    try:
        if path.endswith(".xz"):
            return lzma.decompress(data)
        if path.endswith(".gz"):
            return gzip.decompress(data)
    except (lzma.LZMAError, OSError, EOFError) as error:
        raise ImageError(f"{path} cannot be decompressed: {error}") from None
    if path.endswith(".zst"):
        raise ImageError(
            f"{path} is compressed with zstd, which Python cannot unpack here",
            hint="take a kernel whose modules are plain, or compressed with xz or gzip",
        )
    return data


def _normal(name: str) -> str:
    """The kernel takes ``-`` and ``_`` in a module's name for the same."""
    return name.replace("-", "_")
