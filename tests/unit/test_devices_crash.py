"""Crashes of QEMU by their words: signatures that stay the same from version to version, and ends that are no crash."""

from __future__ import annotations

import signal

import pytest

from vmtest.devices.crash import LINES, crash

ABORT, SEGV, TRAP = -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGTRAP
AHCI = "prep_size >= 0 && prep_size <= n * 512"


@pytest.mark.parametrize(
    ("code", "words", "kind", "signature"),
    [
        (
            ABORT,
            f"qemu-system-x86_64: ../../hw/ide/core.c:921: ide_dma_cb: Assertion `{AHCI}' failed.",
            "assertion",
            f"hw/ide/core.c ide_dma_cb: {AHCI}",
        ),
        (
            ABORT,
            f"qemu-system-x86_64: ../hw/ide/core.c:934: void ide_dma_cb(void *, int): Assertion `{AHCI}' failed.",
            "assertion",
            f"hw/ide/core.c ide_dma_cb: {AHCI}",
        ),
        (
            ABORT,
            "**\nERROR:../../hw/net/e1000e_core.c:1283:e1000e_write: assertion failed: (size == 4)\nBail out!",
            "assertion",
            "hw/net/e1000e_core.c e1000e_write: (size == 4)",
        ),
        (
            ABORT,
            "ERROR:../hw/sd/sd.c:10:sd_read: code should not be reached",
            "assertion",
            "hw/sd/sd.c sd_read: code should not be reached",
        ),
        (ABORT, "qemu: hardware error: DMA range 0x0-0xff is bad\nCPU #0:\nEAX=00", "error", "DMA range N-N is bad"),
        (TRAP, "qemu: GLib: ../../../glib/gmem.c:207: failed to allocate 4294967295 bytes", "memory", "out of memory"),
        (
            ABORT,
            "Unexpected error in object_property_find_err() at ../qom/object.c:1338:\n"
            "qemu-system-x86_64: Property 'sd-card.x' not found",
            "error",
            "qom/object.c object_property_find_err: Property 'sd-card.x' not found",
        ),
        (
            ABORT,
            "thread '<unnamed>' panicked at rust/hw/char/pl011/src/device.rs:12:5:\nindex out of bounds: 300 of 256",
            "error",
            "rust/hw/char/pl011/src/device.rs: index out of bounds: N of N",
        ),
        (
            1,
            "==9==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x6\nWRITE of size 1\n"
            "    #0 0x5654 in sd_write ../hw/sd/sd.c:5:7\n    #1 0x7f8b in main" + 5000 * " ",
            "sanitizer",
            "hw/sd/sd.c sd_write: AddressSanitizer: heap-buffer-overflow",
        ),
        (1, "==9==AddressSanitizer: hard rss limit exhausted (4096Mb vs 5000Mb)", "memory", "out of memory"),
        (ABORT, "qemu: hardware error: Bad index: 34 of 25", "error", "Bad index: N of N"),
        (SEGV, "", "signal", "SIGSEGV"),
        (SEGV, "Cannot allocate a packet", "signal", "SIGSEGV"),
        (0, "warning: out of memory", "exit", "status 0"),
        (ABORT, "qemu: a warning", "abort", "SIGABRT"),
        (0, "qemu: a warning", "exit", "status 0"),
        (1, "", "exit", "status 1"),
    ],
)  # fmt: skip
def test_signatures(code: int, words: str, kind: str, signature: str) -> None:
    """File without the build's directories, function, expression; no line numbers, and no numbers of this run."""
    found = crash(code, words, 3)
    assert (found.kind, found.signature, found.done, found.is_clean) == (kind, signature, 3, kind == "exit")


def test_words_that_are_kept() -> None:
    """Of all that QEMU said a crash keeps the lines that say how it ended, and of one without any the last lines."""
    noise = "".join(f"bad access {number}\n" for number in range(100))
    report = ["==9==ERROR: AddressSanitizer: heap-use-after-free on 0x6"]
    report += [f"    #{number} 0x1 in frame{number} ../hw/sd/sd.c:5:7" for number in range(50)]
    assert crash(1, noise + "\n".join(report), 0).last_words.splitlines() == report[:LINES]
    assert crash(SEGV, noise, 0).last_words.splitlines() == noise.splitlines()[-LINES:]
    assert crash(SEGV, "", 0).last_words == ""
