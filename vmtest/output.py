"""What a guest's command writes: kept, shown, or handed on."""

from __future__ import annotations

import codecs
import sys

from vmtest.errors import GuestError
from vmtest.qemu.channel import OnOutput

__all__ = ["Output"]

OUTPUT_LIMIT = 1 << 29
"""Bytes of a command's output that a Result holds; a command that writes more without ``stream`` is killed."""


class Output:
    """Takes a command's output: keeps it, shows it, or hands it on, as ``stream`` says."""

    def __init__(self, stream: bool | OnOutput) -> None:
        """``stream`` is as for Guest.run; ``streams`` holds what is kept, by name."""
        self.streams = {"stdout": bytearray(), "stderr": bytearray()}
        self._text = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in self.streams}
        self._stream = stream

    def __call__(self, name: str, data: bytes) -> None:
        """Take a piece. Raises GuestError where more would be kept than OUTPUT_LIMIT."""
        if callable(self._stream):
            self._stream(name, data)
            return
        if self._stream:
            target = sys.stdout if name == "stdout" else sys.stderr
            target.write(self._text[name].decode(data))
            target.flush()
        self.streams[name] += data
        if len(self.streams[name]) > OUTPUT_LIMIT:
            raise GuestError(
                f"the guest's command wrote more than {OUTPUT_LIMIT >> 20} MiB to its {name}",
                hint="take it as it comes with stream=FUNCTION, or redirect it into a file of the guest",
            )
