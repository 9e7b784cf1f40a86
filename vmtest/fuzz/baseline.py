"""Clusters that are known and accepted: a file beside the tests, in which a run's own are looked up."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from vmtest.errors import HostError, UsageError
from vmtest.fuzz.finding import Finding, Key

__all__ = ["FORMAT", "load", "save"]

FORMAT = 1
_HINT = "vmtest fuzz insn --baseline FILE --accept writes one, and so does pytest --vm-accept"
_HEAD = {"vmtest-baseline": FORMAT}


def load(path: Path) -> frozenset[Key]:
    """The clusters of a baseline. Raises UsageError where it is none, or is one of another version."""
    try:
        head, *lines = path.read_text().splitlines() or [""]
        version = json.loads(head)["vmtest-baseline"]
        if version != FORMAT:
            raise UsageError(
                f"{path} is a baseline of format {version!r}, and this vmtest reads {FORMAT}",
                hint=_HINT,
            )
        return frozenset(Key(*(json.loads(line)[name] for name in Key._fields)) for line in lines if line.strip())
    except OSError as error:
        raise UsageError(f"the baseline {path} cannot be read: {error.strerror}", hint=_HINT) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no baseline: {error!r}", hint=_HINT) from None


def save(path: Path, known: Iterable[Key], findings: Iterable[Finding]) -> None:
    """Write a baseline with what was known and what was found, a line a cluster. Raises HostError."""
    cases = {finding.key: str(finding.case) for finding in findings}
    lines = [json.dumps(_HEAD)]
    for key in sorted({*known, *cases}):
        lines.append(json.dumps(key._asdict() | ({"case": cases[key]} if key in cases else {})))
    try:
        temporary = path.with_name(path.name + ".part")
        temporary.write_text("\n".join(lines) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise HostError(f"the baseline {path} cannot be written: {error.strerror}") from None
