"""Clusters that are known and accepted: a file beside the tests, in which a run's own are looked up."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from vmtest.compare.pairs import KINDS
from vmtest.errors import HostError, UsageError
from vmtest.fuzz.finding import Finding, Key

__all__ = ["FORMAT", "known", "load", "save"]

FORMAT = 1
_HINT = "vmtest fuzz insn --baseline FILE --accept writes one, and so does pytest --vm-accept"
_HEAD = {"vmtest-baseline": FORMAT}


def load(path: Path) -> frozenset[Key]:
    """The clusters of a baseline. Raises UsageError where it is none, or is one of another version."""
    return frozenset(_lines(path))


def _lines(path: Path) -> dict[Key, str]:
    """Its lines by their clusters."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"the baseline {path} is not a file", hint=_HINT)
        head, *lines = path.read_text().splitlines() or [""]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the baseline {path} cannot be read: {getattr(error, 'strerror', error)}", hint=_HINT
        ) from None
    try:
        version = json.loads(head)["vmtest-baseline"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is no baseline", hint=_HINT) from None
    if version != FORMAT:
        raise UsageError(f"{path} is a baseline of format {version!r}, and this vmtest reads {FORMAT}", hint=_HINT)
    return {_key(path, number, line): line for number, line in enumerate(lines, 2) if line.strip()}


def _key(path: Path, number: int, line: str) -> Key:
    try:
        data = json.loads(line)
        key = Key(*(str(data[name]) for name in Key._fields))
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path}:{number} is no line of a baseline: {line[:60]}", hint=_HINT) from None
    if key.kind not in KINDS:
        raise UsageError(f"{path}:{number}: {key.kind!r} is no kind of difference", hint=f"of {', '.join(KINDS)}")
    return key


def known(path: Path | None, accept: bool) -> frozenset[Key]:
    """The clusters to begin with. One that is to be written may not be there yet. Raises UsageError, before a run whose
    clusters could not be written.
    """
    if path is None:
        return frozenset()
    if accept:
        try:
            with TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise UsageError(f"the baseline {path} cannot be written: {path.parent}: {error.strerror}") from None
    if not accept or path.exists():
        return load(path)
    return frozenset()


def save(path: Path, findings: Iterable[Finding]) -> None:
    """Add what was found to a baseline, a line a cluster. What it has stays as it is, also what another process has
    written meanwhile. Raises HostError, and UsageError as ``load`` does.
    """
    try:
        with _locked(path.parent):
            lines = _lines(path) if path.exists() else {}
            for finding in findings:
                lines.setdefault(finding.key, json.dumps(finding.key._asdict() | {"case": str(finding.case)}))
            temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
            temporary.write_text("\n".join([json.dumps(_HEAD), *(lines[key] for key in sorted(lines))]) + "\n")
            temporary.replace(path)
    except OSError as error:
        raise HostError(f"the baseline {path} cannot be written: {error.strerror}") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder itself is what is locked, so that no file is left in it."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)
