"""Which of the host's apt entries is Debian's, and what is asked of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmtest.errors import ImageError
from vmtest.images.aptsources import debian_entry

DEB822 = """\
# a comment
Types: deb
URIs: http://mirror.invalid/third
Suites: bookworm
Components: stable
Signed-By: /third.gpg

Types: deb deb-src
URIs: http://mirror.invalid/debian
# in the middle
Suites: bookworm bookworm-updates
Components: main contrib
Architectures: amd64
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 xyz
"""


def _etc(tmp_path: Path, *, release: str = "ID=debian\nVERSION_CODENAME=bookworm\n", **parts: str) -> Path:
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "os-release").write_text(release)
    for name, text in parts.items():
        stem, _, suffix = name.rpartition("_")
        (tmp_path / f"apt/sources.list.d/{stem}.{suffix}").write_text(text)
    return tmp_path


def test_debian_is_told_from_third_parties(tmp_path: Path) -> None:
    """Of entries with the same suite, the one with the component main is taken, with its keys as they are."""
    entry = debian_entry(_etc(tmp_path, a_sources=DEB822))
    text = entry.deb822(suite="trixie", arch="riscv64")
    assert "URIs: http://mirror.invalid/debian\n" in text
    assert "Suites: trixie\n" in text
    assert "Architectures: riscv64\n" in text
    assert "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n xyz\n" in text
    assert "amd64" not in text
    assert "contrib" not in text


def test_one_line_format(tmp_path: Path) -> None:
    """A sources.list is understood as well, with its options."""
    line = "deb [arch=amd64 signed-by=/d.gpg trusted=yes] http://mirror.invalid/d bookworm main # mine\n"
    entry = debian_entry(_etc(tmp_path, a_list="# deb http://no.invalid/d bookworm main\n" + line))
    assert entry.uris == "http://mirror.invalid/d"
    assert entry.options == (("Signed-By", "/d.gpg"), ("Trusted", "yes"))


def test_disabled_entries_are_not_used(tmp_path: Path) -> None:
    """What the user has switched off stays off, and a file apt does not read is not read."""
    off = DEB822.replace("Types: deb deb-src", "Enabled: no\nTypes: deb")
    with pytest.raises(ImageError, match="no source for the component main of bookworm"):
        debian_entry(_etc(tmp_path, a_sources=off, b_disabled=DEB822))


def test_host_that_follows_a_moving_suite(tmp_path: Path) -> None:
    """A host on "testing" has no entry named like its codename, and its own archive is found all the same."""
    line = "deb http://mirror.invalid/d testing main\n"
    etc = _etc(tmp_path, release="ID=debian\nVERSION_CODENAME=forky\n", a_list=line)
    assert debian_entry(etc).uris == "http://mirror.invalid/d"


def test_other_distributions_are_told_what_to_do(tmp_path: Path) -> None:
    """A host that is not Debian learns that url and file sources work there."""
    with pytest.raises(ImageError, match="this host is Fedora") as caught:
        debian_entry(_etc(tmp_path, release='ID=fedora\nPRETTY_NAME="Fedora 44"\n'))
    assert "`file` or `url`" in caught.value.hint
