"""A finding: one cluster of differences, by its smallest case, as a file that can be kept and replayed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple, Self

from vmtest.compare.pairs import KINDS
from vmtest.errors import HostError, UsageError
from vmtest.forms import Instruction, forms
from vmtest.model.case import Case

__all__ = ["FORMAT", "Finding", "Key", "prepared", "read", "write"]

FORMAT = 1
"""Of the files: another one is not read."""


class Key(NamedTuple):
    """What makes differences one cluster: the instruction's form, what differs, and between whom: ``who`` against
    ``against``, whom we believe. Both are Fleet.labels.
    """

    isa: str
    form: str
    kind: str
    who: str
    against: str

    @property
    def pair(self) -> str:
        """Between whom, for people."""
        return f"{self.who}/{self.against}"

    def __str__(self) -> str:
        return f"{self.isa}: {self.pair}: {self.kind}: {self.form}"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """``case`` is the smallest that was found, ``first`` the one it was made from; ``said`` is what each executor says
    of ``case``, and ``executors`` what each of them is. ``seen`` counts cases of this cluster.
    """

    key: Key
    case: Case
    first: Case
    text: str
    verdict: str
    rule: str
    said: Mapping[str, Any]
    executors: Mapping[str, str]
    seen: int = 1
    chunk: int = 0
    seed: int = field(default=0)

    @property
    def name(self) -> str:
        """Of its file: readable, and of no other cluster."""
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.key.pair} {self.key.kind} {self.key.form}".lower()).strip("-")
        return f"{self.key.isa}-{words[:90]}-{hashlib.sha256(str(self.key).encode()).hexdigest()[:8]}.json"

    def seen_again(self, times: int) -> Self:
        """The same, seen more often."""
        return replace(self, seen=self.seen + times)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": FORMAT,
            "key": self.key._asdict(),
            "case": str(self.case),
            "text": self.text,
            "verdict": self.verdict,
            "rule": self.rule,
            "seen": self.seen,
            "seed": self.seed,
            "chunk": self.chunk,
            "first": str(self.first),
            "executors": dict(self.executors),
            "said": dict(self.said),
        }

    @classmethod
    def parse(cls, data: Any) -> Self:
        """What ``as_dict`` has made. Raises UsageError for anything else."""
        if not isinstance(data, dict) or "format" not in data:
            raise UsageError("this is no finding", hint="findings are written by vmtest fuzz insn --findings DIR")
        if data["format"] != FORMAT:
            raise UsageError(f"a finding of format {data['format']!r}, and this vmtest reads {FORMAT}")
        try:
            key = Key(**{name: str(data["key"][name]) for name in Key._fields})
            found = cls(
                key=key,
                case=Case.parse(str(data["case"])),
                first=Case.parse(str(data.get("first", data["case"]))),
                text=str(data.get("text", "")),
                verdict=str(data.get("verdict", "")),
                rule=str(data.get("rule", "")),
                said=dict(data.get("said", {})),
                executors={str(name): str(what) for name, what in dict(data["executors"]).items()},
                seen=int(data.get("seen", 1)),
                chunk=int(data.get("chunk", 0)),
                seed=int(data.get("seed", 0)),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UsageError(f"this finding lacks something, or has nonsense in it: {what}") from None
        if key.kind not in KINDS or found.case.isa.name != key.isa or not found.executors or key.who == key.against:
            raise UsageError(f"this finding contradicts itself: {key}")
        if key.form.rpartition(" ; ")[2] not in {one.form for one in decoded(found.case)}:
            raise UsageError(f"this finding contradicts itself: {found.case} is no {key.form}")
        return found


def decoded(case: Case) -> Sequence[Instruction]:
    """The instructions of its code."""
    return forms(case.isa.name).decode(case.code, case.start)


def read(path: Path) -> Finding:
    """The finding in a file. Raises UsageError that names the file."""
    try:
        return Finding.parse(json.loads(path.read_text()))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from None


def prepared(folder: Path) -> Path:
    """The folder, which is there, and which findings can be written to. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UsageError(f"findings cannot be written to {folder}: {error.strerror}", hint="--findings DIR") from None


def write(folder: Path, finding: Finding) -> Path:
    """Write it into the folder, over what an earlier run has written of the same cluster. Raises HostError."""
    path = folder / finding.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(finding.as_dict(), indent=1) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror}") from None
    return path
