"""Debian packages by name, of any suite and architecture, through apt, beside and without touching the host's own.

Each pair of suite and architecture has a private state directory in the cache: apt's lists, and an apt.conf that
shuts out the host's package state. apt itself checks signatures and hashes. Root is not needed.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from vmtest import cache
from vmtest.errors import ImageError
from vmtest.images.aptsources import debian_entry, paragraphs
from vmtest.progress import Progress

__all__ = ["Apt", "Package", "WrongHash"]

log = logging.getLogger("vmtest")

# Lists older than this are fetched again before packages are looked up: old ones name files that mirrors no
# longer have. A failure is no error as long as there are old lists: they may do, and the host may be offline.
_FRESH_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Package:
    """A package as the archive's signed lists describe it."""

    name: str
    version: str
    arch: str
    sha256: str
    size: int
    depends: str

    @property
    def file_name(self) -> str:
        """A name of our own for the file: it changes with the contents."""
        version = re.sub(r"[^A-Za-z0-9.+~-]", "_", self.version)
        return f"{self.name}_{version}_{self.arch}_{self.sha256[:12]}.deb"


class WrongHash(ImageError):
    """A source is there, and is not what it should be: no other is taken in its place."""


class Apt:
    """apt, seeing one suite and one architecture. Use it under ``cache.lock(apt.lock_name)``."""

    def __init__(self, suite: str, arch: str) -> None:
        self.suite = suite
        self.arch = arch
        self.lock_name = f"apt-{suite}-{arch}"
        self._state = cache.root() / "apt" / f"{suite}-{arch}"
        self._stamp = self._state / "updated"

    def package(self, name: str, *, follow: Sequence[str] = ()) -> Package:
        """The newest version of that package; each glob of ``follow`` goes on to the first dependency it matches."""
        package = self._show(name)
        for glob in follow:
            package = self._show(self._dependency(package, glob))
        return package

    def _dependency(self, package: Package, glob: str) -> str:
        for dependency in re.split(r"[,|]", package.depends):
            found = re.match(r"\s*([a-z0-9][a-z0-9+.-]*)", dependency)
            if found and fnmatchcase(found[1], glob):
                return found[1]
        raise ImageError(
            f"the package {package.name} of {self.suite}/{self.arch} depends on nothing that matches {glob!r}",
            hint=f"it depends on: {package.depends or 'nothing'}",
        )

    def download(self, package: Package, *, progress: Progress) -> Path:
        """The package's file, from the cache where it is there and whole. apt verifies what it downloads."""
        downloads = cache.root() / "downloads"
        path = downloads / package.file_name
        if path.is_file() and cache.digest(path) == package.sha256:
            return path
        progress.step(f"downloading {package.name} {package.version} ({package.size / 1e6:.1f} MB)")
        # Its name is fixed, and the lock is held: what a killed builder left is cleared away here.
        partial = downloads / f".{self.suite}-{self.arch}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            spec = f"{package.name}={package.version}"
            self._run("apt-get", "download", spec, cwd=partial, progress=progress, total=package.size)
            files = list(partial.glob("*.deb"))
            if len(files) != 1 or cache.digest(files[0]) != package.sha256:
                raise WrongHash(f"apt gave no file with the right hash for {spec}")
            files[0].chmod(0o444)
            files[0].replace(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return path

    def update(self, *, progress: Progress, force: bool = False) -> None:
        """Fetch the package lists where there are none, they are a day old, or ``force`` says so."""
        if not shutil.which("apt-get"):
            raise ImageError(
                "this image's packages come through apt, and this host has no apt-get",
                hint="use an image whose sources are `file` or `url` (a .deb will do), "
                "or copy the cache of a Debian host that has built it",
            )
        try:
            age = time.time() - self._stamp.stat().st_mtime
        except OSError:
            age = None
        if age is not None and not force and 0 <= age < _FRESH_SECONDS:
            return
        progress.step(f"fetching the package lists of {self.suite}/{self.arch}")
        self._configure()
        try:
            self._run("apt-get", "update", progress=progress)
        except ImageError as error:
            if age is None or force:
                raise
            log.warning("using old package lists of %s/%s: %s", self.suite, self.arch, error.message)
            return
        self._stamp.touch()

    def _configure(self) -> None:
        entry = debian_entry()
        for directory in ("sources.d", "lists/partial", "cache/archives/partial"):
            (self._state / directory).mkdir(parents=True, exist_ok=True)
        cache.write(self._state / "sources.d/vmtest.sources", entry.deb822(suite=self.suite, arch=self.arch).encode())
        # On top of the host's configuration, so that its proxies and credentials hold; only hooks go, which
        # would run as if the host itself had been updated.
        options = f"""\
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Update::Pre-Invoke;
#clear APT::Architectures;
APT::Architecture "{self.arch}";
APT::Architectures {{ "{self.arch}"; }};
APT::Default-Release "";
// The cache is the user's, who need not let the user _apt in.
APT::Sandbox::User "";
// Without it, lists that could not be fetched would only be a warning.
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Acquire::Retries "2";
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "{self._state}/sources.d";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "{self._state}";
Dir::State::Lists "{self._state}/lists";
Dir::State::Status "/dev/null";
Dir::Cache "{self._state}/cache";
"""
        cache.write(self._state / "apt.conf", options.encode())

    def _show(self, name: str) -> Package:
        output = self._run("apt-cache", "show", "--no-all-versions", name)
        for fields in paragraphs(output):
            if fields.get("Package") == name:
                return Package(
                    name=name,
                    version=fields["Version"],
                    arch=fields["Architecture"],
                    sha256=fields["SHA256"],
                    size=int(fields["Size"]),
                    depends=fields.get("Depends", ""),
                )
        raise ImageError(f"there is no package {name} in {self.suite}/{self.arch}")

    def _run(
        self, tool: str, *words: str, cwd: Path | None = None, progress: Progress | None = None, total: int = 0
    ) -> str:
        """Run one of apt's tools with the private configuration; its output. Raises ImageError with its words."""
        status, child = os.pipe()
        command = [tool, "-c", str(self._state / "apt.conf"), "-q", "-o", f"APT::Status-Fd={child}", *words]
        # Tempfiles, not pipes: nothing has to be read while the status is being read.
        out, err = self._state / "stdout", self._state / "stderr"
        try:
            with out.open("wb") as stdout, err.open("wb") as stderr:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=cwd,
                    pass_fds=(child,),
                    env={**os.environ, "LC_ALL": "C.UTF-8"},
                )
        finally:
            os.close(child)
        try:
            with os.fdopen(status, "r", errors="replace") as lines:
                for line in lines:
                    if progress and total and (done := re.match(r"dlstatus:[^:]*:([\d.]+):", line)):
                        progress.bytes(int(total * float(done[1]) / 100), total)
            process.wait()
        except BaseException:  # Ctrl-C: apt must not outlive us, holding the lists' lock
            process.kill()
            process.wait()
            raise
        if process.returncode == 0:
            return out.read_text(errors="replace")
        raise self._failure(words, err.read_text(errors="replace"))

    def _failure(self, words: tuple[str, ...], stderr: str) -> ImageError:
        """apt's own words, condensed: its errors, each once, and what can be done about them."""
        errors = list(dict.fromkeys(line[2:].strip() for line in stderr.splitlines() if line.startswith("E:")))
        detail = "; ".join(error for error in errors if "ome index files failed" not in error) or stderr.strip()[-300:]
        hint = f"`apt update` must work on this host; retry by hand with: apt-get -c {self._state}/apt.conf update"
        if words[0] == "show":
            hint = f"is the name right, and is it in the suite {self.suite} for {self.arch}?"
        elif re.search(r"resolv|onnect|unreachable|timed out", detail):
            hint = "building an image for the first time needs the network; afterwards nothing does"
        elif "Mirror sync" in detail or "Hash Sum" in detail:
            hint = "the mirror's files do not agree with its signed lists (it is being updated): try again later"
        return ImageError(f"apt {' '.join(words[:2])} for {self.suite}/{self.arch} failed: {detail[:600]}", hint=hint)
