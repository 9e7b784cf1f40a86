"""Which archive this host's apt takes its own packages from, so that foreign suites can be asked of the same.

No host name stands in vmtest: mirrors, proxies, keys and credentials are those that the host is configured with.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmtest.errors import ImageError

__all__ = ["Entry", "debian_entry", "paragraphs", "parse_deb822", "parse_one_line"]

# Other names under which a host may follow its own release.
_MOVING_SUITES = frozenset({"stable", "oldstable", "testing", "unstable", "sid"})
# What each fetch decides for itself.
_OURS = frozenset({"types", "suites", "components", "architectures", "languages", "targets", "enabled"})


@dataclass(frozen=True)
class Entry:
    """One source of packages: where it is, what it has, and the further fields (Signed-By, Trusted, …)."""

    uris: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    def deb822(self, *, suite: str, arch: str) -> str:
        """The text of a .sources file that takes ``suite`` from the same place."""
        fields = [
            ("Types", "deb"),
            ("URIs", self.uris),
            ("Suites", suite),
            ("Components", "main"),
            ("Architectures", arch),
            ("Targets", "Packages"),  # neither translations nor what desktop software centres want
            *self.options,
        ]
        return "".join(f"{name}: {value}\n" for name, value in fields)


def debian_entry(etc: Path = Path("/etc")) -> Entry:
    """The entry that gives this host its own Debian release.

    It is told from third parties' by what it offers: the component main of the host's own release, by codename
    or by a moving name such as "testing". Raises ImageError on a host that is not Debian, or has no such entry.
    """
    release = _os_release(etc)
    if release.get("ID") != "debian":
        raise ImageError(
            f"packages come from Debian's archive, and this host is {release.get('PRETTY_NAME', 'no Debian')}",
            hint="use an image whose sources are `file` or `url` (a .deb will do), "
            "or copy the cache of a Debian host that has built it",
        )
    codename = release.get("VERSION_CODENAME", "")
    entries = list(_entries(etc / "apt"))
    for suites in (frozenset({codename}), _MOVING_SUITES):
        for entry in entries:
            if suites.intersection(entry.suites) and "main" in entry.components:
                return entry
    raise ImageError(
        f"apt has no source for the component main of {codename or 'this Debian'} among {len(entries)} entries "
        f"in {etc / 'apt'}",
        hint="add Debian's own entry to /etc/apt/sources.list.d; `apt update` must work",
    )


def _entries(apt: Path) -> Iterator[Entry]:
    """All enabled entries, in the order in which apt reads them."""
    main = apt / "sources.list"
    parts = sorted((apt / "sources.list.d").glob("*"))
    for path in [main, *parts]:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue  # unreadable for this user: then it is none that holds a public archive
        yield from parse_deb822(text) if path.suffix == ".sources" else parse_one_line(text)


def parse_deb822(text: str) -> list[Entry]:
    """The enabled ``deb`` entries of a .sources file (man 5 sources.list)."""
    found = []
    for fields in paragraphs(text):
        lower = {name.lower(): value for name, value in fields.items()}
        if "deb" not in lower.get("types", "").split() or lower.get("enabled", "yes").lower() in ("no", "false"):
            continue
        found.append(
            Entry(
                uris=" ".join(lower.get("uris", "").split()),
                suites=tuple(lower.get("suites", "").split()),
                components=tuple(lower.get("components", "").split()),
                options=tuple((name, value) for name, value in fields.items() if name.lower() not in _OURS | {"uris"}),
            )
        )
    return found


def paragraphs(text: str) -> Iterator[dict[str, str]]:
    """The paragraphs of a deb822 file; values keep the line breaks and indentation of continuation lines."""
    fields: dict[str, str] = {}
    name = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0] in " \t":
            if name:
                fields[name] += f"\n{line}"
        elif ":" in line:
            name, value = line.split(":", 1)
            fields[name] = value.strip()


def parse_one_line(text: str) -> list[Entry]:
    """The ``deb`` entries of a sources.list: ``deb [option=value …] URI SUITE COMPONENT…``."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"\s*deb\s+(?:\[(.*?)\]\s*)?([^#]*)(?:#.*)?", line)
        words = match[2].split() if match else []
        if not match or len(words) < 3:
            continue
        options = []
        for option in shlex.split(match[1] or ""):
            name, _, value = option.partition("=")
            if name not in ("arch", "lang", "target") and value:
                options.append((name.rstrip("+-").title(), value.replace(",", " ")))
        found.append(Entry(words[0], (words[1],), tuple(words[2:]), tuple(options)))
    return found


def _os_release(etc: Path) -> dict[str, str]:
    try:
        lines = (etc / "os-release").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name: "".join(shlex.split(value)) for name, _, value in pairs}
