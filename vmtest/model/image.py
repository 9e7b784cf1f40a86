"""What an image is: one parsed ``images/NAME/image.toml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vmtest.errors import UsageError
from vmtest.model.arch import arch
from vmtest.model.machine import Channel

__all__ = ["Image", "Source"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where bytes come from: exactly one of ``apt`` (a package name), ``file`` (a path) or ``url``.

    For ``apt``: ``suite`` is the Debian suite ("" for the host's own), ``debian_arch`` the package's architecture
    ("" for the image's), ``paths`` the glob patterns of what is wanted inside the package. ``follow`` are globs
    of the package name to follow among the dependencies of a meta package (``linux-image-cloud-amd64`` depends
    on the real kernel). For ``url``: ``sha256`` is required. For ``file``: it is checked where given.
    """

    apt: str = ""
    suite: str = ""
    debian_arch: str = ""
    follow: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    file: str = ""
    url: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.apt, self.file, self.url))) != 1:
            raise UsageError("a source has exactly one of: apt, file, url", hint=f"got {self}")
        if self.url and not self.sha256:
            raise UsageError(f"the source {self.url} has no sha256", hint='add sha256 = "…" beside its url')


@dataclass(frozen=True, kw_only=True)
class Image:
    """A guest that can be built: a kernel and what it boots into.

    ``memory`` and ``min_memory`` are in MiB. ``append`` is what the guest needs on its kernel command line,
    ``trim`` what only makes it boot faster (left out with ``trim=False``: a guest that tests a kernel must be
    able to). ``init`` is the init script (a file beside image.toml, or one shared under images/_init),
    ``modules`` are the names of the kernel modules that are loaded before the agent starts, without their
    dependencies, which are found; ``later_modules`` those that can wait until it runs. ``files`` are further
    sources: of an archive what matches ``paths``, at the same paths; any other file at the one path given.
    ``instead`` is the image to build where this one's sources cannot be had: it has this one's values but for those
    it says itself. ``agent`` puts vmtest's agent in. With ``initrd`` a ready-made initramfs is taken
    instead. ``disk`` is a disk
    image to boot from.
    """

    name: str
    arch: str
    description: str
    kernel: Source | None = None
    memory: int = 256
    min_memory: int = 0
    append: str = ""
    trim: str = ""
    init: str = "init"
    modules: tuple[str, ...] = ()
    later_modules: tuple[str, ...] = ()
    files: tuple[Source, ...] = ()
    agent: bool = True
    initrd: Source | None = None
    disk: Source | None = None
    channel: Channel = Channel.AUTO
    instead: Image | None = None

    @property
    def has_initramfs(self) -> bool:
        """Whether vmtest makes this image's initramfs."""
        return self.kernel is not None and self.initrd is None

    @classmethod
    def from_toml(cls, name: str, data: Mapping[str, Any], *, where: str) -> Image:
        """The image that a parsed image.toml describes. Raises UsageError that names ``where`` and the key."""
        known = {field.name for field in fields(cls)} - {"name"}
        unknown = sorted(set(data) - known)
        if unknown:
            raise UsageError(f"{where}: unknown key {unknown[0]!r}", hint=f"known keys: {', '.join(sorted(known))}")
        missing = sorted({"arch", "description"} - set(data))
        if missing:
            raise UsageError(f"{where}: the key {missing[0]!r} is missing")
        values = dict(data)
        try:
            other = values.pop("instead", None)
            if other is not None:
                merged = {**values, **other}
                values["instead"] = cls.from_toml(name, merged, where=f"{where}: instead")
            for key in ("kernel", "initrd", "disk"):
                if key in values:
                    values[key] = _source(values[key])
            values["files"] = tuple(_source(entry) for entry in values.get("files", ()))
            for key in ("modules", "later_modules"):
                values[key] = tuple(values.get(key, ()))
            values["channel"] = Channel(values.get("channel", "auto"))
            values["arch"] = arch(values["arch"]).name
            return cls(name=name, **values)
        except (TypeError, ValueError, UsageError) as error:
            raise UsageError(f"{where}: {error}") from None


def _source(table: Any) -> Source:
    if not isinstance(table, Mapping):
        raise UsageError(f'a source is a table such as {{ apt = "PACKAGE" }}, not {table!r}')
    values = dict(table)
    for key in ("paths", "follow"):
        value = values.get(key, ())
        values[key] = (value,) if isinstance(value, str) else tuple(value)
    return Source(**values)
