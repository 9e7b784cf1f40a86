"""NVM Express controllers (NVM Express 1.4)."""

from __future__ import annotations

from itertools import cycle

from vmtest.devices.models import Model, step
from vmtest.devices.models import nvme_commands as nvm
from vmtest.devices.models.nvme_commands import PAGE, SCATTER, SHADOW, Command

__all__ = ["Nvme"]

POOL, OWN, LISTS = 12, 24, 8  # pages for data, used over and over, for queues, and for lists
CONFIGURATION, SIZES, SUBMISSIONS, COMPLETIONS, BUFFER, DOORBELLS = 0x14, 0x24, 0x28, 0x30, 0x50, 0x1000
WRONG = (*(0,) * 60, 8, -16, 16, 0x1000000)  # how much more a segment is said to have than it has
REGISTERS = (*range(0, 0x60, 4), *range(0xE00, 0xE1C, 4), 0xF00, 0x1008)
ENABLE, SHUTDOWN, ENTRIES = 1, 1 << 14, 0x00460000  # entries of 64 bytes, and of 16
RESET = 0x4E564D65  # of a subsystem


class _Queue:
    def __init__(self, address: int, entries: int) -> None:
        self.address, self.entries, self.index = address, entries, 0


class Nvme(Model):
    """Queue 0 is for administration. Commands are done when QEMU's main loop runs, and so what a queue is told before
    is a change of what was asked for.
    """

    name = "NVM Express"
    regions = ("nvme",)

    def begin(self) -> None:
        """The controller is enabled, and has queues for I/O."""
        pen = self.pen
        self.registers, self.buffer = self.needed("nvme"), self.area("nvme-cmb")
        self.block, self.is_zoned = 512, pen.chance(0.3)
        self.namespace = pen.one_of((1, 1, 1, 1, 1, 1, 2, 3))
        self.pool = [pen.room(PAGE, PAGE) for _ in range(POOL)]
        self.own, self.lists = (cycle([pen.room(PAGE, PAGE) for _ in range(count)]) for count in (OWN, LISTS))
        if self.buffer and pen.chance(0.9):
            self._wide(BUFFER, (self.buffer.address if pen.chance(0.95) else pen.value(64)) | 3)
        self.start()

    def _wide(self, register: int, value: int) -> None:
        self.pen.write(self.registers, register, value)
        self.pen.write(self.registers, register + 4, value >> 32)

    def _pair(self, entries: int, completions: int) -> tuple[_Queue, _Queue]:
        """A submission queue and a completion queue, empty."""
        at = [self.pen.lay(bytes(PAGE), at=next(self.own)) for _ in range(2)]
        return _Queue(at[0], entries), _Queue(at[1], completions)

    def start(self) -> None:
        """From the beginning: queue 0, the controller, and the other queues."""
        pen = self.pen
        pen.write(self.registers, CONFIGURATION, 0)
        self.shadow = 0
        entries = pen.one_of((64, 64, 16)) if pen.chance(0.97) else 2
        self.queues = {0: self._pair(entries, 256)}
        pen.write(self.registers, SIZES, 255 << 16 | entries - 1 if pen.chance(0.98) else pen.value(32))
        for register, queue in zip((SUBMISSIONS, COMPLETIONS), self.queues[0], strict=True):
            self._wide(register, queue.address if pen.chance(0.98) else pen.value(64) & pen.one_of((-PAGE, -PAGE, -1)))
        value = ENTRIES | ENABLE | (pen.one_of((0, 6, 6, 6)) if pen.chance(0.96) else 7) << 4
        pen.write(self.registers, CONFIGURATION, value if pen.chance(0.95) else value ^ 1 << pen.count(4, 24))
        if pen.chance(0.8):
            self._enter(0, nvm.ATTACH, words=0, data=pen.lay(nvm.LISTED, count=1, a=0))
        if pen.chance(0.4):
            self._enter(0, nvm.SET_FEATURES, words=7 | 0x30003 << 32)  # queues: when there are some it is too late
        for index in range(1, pen.count(2, 3)):
            self.create(index)

    def create(self, index: int) -> None:
        """A pair of queues, in the place of one that there may be."""
        self.queues[index] = pair = self._pair(self.pen.one_of((64, 64, 16, 3)), self.pen.one_of((256, 256, 256, 4)))
        for code, queue, flags in ((nvm.CREATE_CQ, pair[1], 3), (nvm.CREATE_SQ, pair[0], 1 | index << 16)):
            words = index | queue.entries - 1 << 16 | flags << 32
            self._enter(0, code, words=words, data=queue.address, command=index)
        self.ring(0)
        if self.pen.chance(0.95):
            self.pen.flush()

    def ring(self, index: int) -> None:
        """Tell what is in a submission queue."""
        self._tell(2 * index, self.queues[index][0].index)

    def _tell(self, doorbell: int, value: int) -> None:
        if self.shadow:
            self.pen.lay(_words(4, value), at=self.shadow + 4 * doorbell)
        self.pen.write(self.registers, DOORBELLS + 4 * doorbell, value)

    def _enter(self, index: int, code: int, **given: int) -> None:
        """A command into the next place of a submission queue."""
        pen, queue = self.pen, self.queues[index][0]
        namespace = self.namespace if pen.chance(0.95) else pen.one_of((0, 1, 2, 0xFFFFFFFF, 257))
        if code == nvm.SET_FEATURES and not index and pen.chance(0.7):  # most are of no namespace
            namespace = 0
        given |= {"opcode": code, "namespace": namespace}
        at = queue.address + 64 * (queue.index % queue.entries)
        pen.lay(nvm.ENTRY, at=at, **({"fused": 0, "lists": 0, **given} if pen.chance(0.98) else given))
        queue.index = (queue.index + 1) % queue.entries

    def _command(self, index: int, command: Command) -> None:
        """One that is drawn."""
        pen = self.pen
        words = int.from_bytes(command.words.draw(pen), "little")
        length = command.length(words, self.block)
        given = {"words": words, "metadata": self._page() + pen.one_of((0, 0, 0, 4, 1))}
        if 0 < length <= 1 << 20:
            first = pen.lay(command.data) if command.data else self._page()
            first = next(self.own) if command.code == SHADOW and not index else first
            if pen.chance(0.6 if index else 0.98):
                given["data"] = self._pages(first, length)
            else:
                given |= {"lists": pen.one_of((1, 1, 2)), "data": self._scattered(first, length)}
        self._enter(index, command.code, **given)
        if command.code == nvm.FORMAT and not index:
            self.block = (512, 4096)[words >> 2 & 1] + (0, 8, 16, 64)[words & 3] * (words >> 4 & 1)
        elif command.code == SHADOW and not index:
            self.shadow = first

    # -- data --------------------------------------------------------------------------------------------------------

    def _page(self) -> int:
        kind = self.pen.roll()
        if kind < 0.01:  # the controller is to write to itself
            return self.registers.address + int(self.pen.one_of((0, DOORBELLS)))
        if self.buffer and kind < 0.2:
            return self.buffer.address + PAGE * self.pen.count(0, 3)
        return int(self.pen.one_of(self.pool))

    def _pages(self, first: int, length: int) -> int:
        """PRP entries (4.3): a page, and another one, or lists of them, each of which ends in the next one."""
        pen = self.pen
        first += 0 if first % PAGE or pen.chance(0.85) else pen.one_of((4, 0x800, 0xFFC, 2))
        count = -(-(length - PAGE + first % PAGE) // PAGE)
        if count <= 1 and pen.chance(0.97):
            return first | self._page() << 64
        pages = [self._page() for _ in range(max(0, min(count - 1, 40) if pen.chance(0.95) else 0))]
        pages.append(self._page() if pen.chance(0.95) else pen.value(64))
        if len(pages) == 1 or pen.chance(0.7):
            return first | pen.lay(_words(8, *pages), align=8) << 64
        cut = pen.count(1, len(pages) - 1)
        follows = pen.lay(_words(8, *pages[cut:]), at=next(self.lists))
        at = next(self.lists) + PAGE - 8 * (cut + 1)
        return first | pen.lay(_words(8, *pages[:cut], follows if pen.chance(0.9) else at), at=at) << 64

    def _scattered(self, first: int, length: int) -> int:
        """An SGL descriptor: of data, or of a segment of more of them, which ends in the next segment."""
        pen = self.pen
        pieces, kind, left = list[bytes](), 0, length
        if pen.chance(0.05):
            left = pen.one_of((0, length - 1, length + 1, length + PAGE))
        while left > 0:
            size = min(left, PAGE if len(pieces) > 8 else pen.one_of((PAGE, PAGE, 512, 64, 1, 1 << 16)))
            kind = 1 if pen.chance(0.03) else 0  # data that nobody wants
            pieces.append(SCATTER.draw(pen, address=self._page() if pieces else first, length=size, kind=kind))
            left -= size
        if pen.chance(0.01):
            pieces = pieces[:1] * 1030  # more than QEMU maps at once
        if len(pieces) == 1 and pen.chance(0.8):
            return int.from_bytes(pieces[0], "little")
        kind, descriptor = 3, b""
        while pieces or not descriptor:
            some = pen.count(0, len(pieces) - 1) if pen.chance(0.3) and pieces else 0
            parts = [*pieces[some:], descriptor]
            at = pen.lay(b"".join(parts if pen.chance(0.95) else reversed(parts)) or bytes(16))
            size = 16 * (len(pieces) - some) + len(descriptor)
            descriptor = SCATTER.draw(pen, address=at, length=size + pen.one_of(WRONG), kind=kind)
            pieces, kind = pieces[:some], 2
        return int.from_bytes(descriptor, "little")

    # -- steps -------------------------------------------------------------------------------------------------------

    def _queue(self) -> int:
        return int(self.pen.one_of([index for index in self.queues if index] or [0]))

    @step(12)
    def input_output(self) -> None:
        """Commands for a namespace."""
        index = self._queue()
        for _ in range(min(self.pen.count(1, 5), self.queues[index][0].entries - 1)):
            self._command(index, self.pen.one_of(nvm.ZONED if self.is_zoned and self.pen.chance(0.6) else nvm.NVM))
        self.ring(index)

    @step(7)
    def administration(self) -> None:
        """Commands for the controller."""
        for _ in range(self.pen.count(1, 3)):
            self._command(0, self.pen.one_of(nvm.ADMIN))
        self.ring(0)

    @step(8)
    def wait(self) -> None:
        """Have done what was asked for, and take the completions."""
        self.pen.flush()
        for index, (submissions, completions) in self.queues.items():
            if self.pen.chance(0.7):
                completions.index = submissions.index % completions.entries
                self._tell(2 * index + 1, completions.index)

    @step(2)
    def replace(self) -> None:
        """An entry that was told, or something that it points to, is another one now."""
        index = self._queue() if self.pen.chance(0.7) else 0
        self.queues[index][0].index += self.queues[index][0].entries - 1
        self._command(index, self.pen.one_of(nvm.NVM if index else nvm.ADMIN))

    @step(1)
    def ring_oddly(self) -> None:
        """Any doorbell."""
        value = self.pen.one_of((0, 1, 2, 3, 15, 64, 0xFFFF)) if self.pen.chance(0.8) else self.pen.value(32)
        self.pen.write(self.registers, DOORBELLS + self.pen.one_of((4, 8, 8, 12, 16, 24, 2, 0x800)), value)

    @step(2)
    def another(self) -> None:
        """A pair of queues; where there is one, it goes first."""
        index = self.pen.count(1, 3)
        for code in (nvm.DELETE_SQ, nvm.DELETE_CQ):
            if index in self.queues and self.pen.chance(0.97):
                self._enter(0, code, words=index)
        self.create(index)

    @step(2)
    def restart(self) -> None:
        """Off, and on again, with what is under way."""
        if self.pen.chance(0.6):
            return self.start()
        value = ENTRIES | self.pen.one_of((0, ENABLE, SHUTDOWN, SHUTDOWN | ENABLE, 2 * SHUTDOWN | ENABLE))
        return self.pen.write(self.registers, CONFIGURATION, value)

    @step(1)
    def odd(self) -> None:
        """Any register."""
        at, size = self._register()
        self.pen.write(self.registers, at, self.pen.value(8 * size) if self.pen.chance(0.8) else RESET, size)

    @step(1)
    def look(self) -> None:
        """What it says."""
        self.pen.read(self.registers, *self._register())

    def _register(self) -> tuple[int, int]:
        return self.pen.one_of(REGISTERS) + self.pen.one_of((0,) * 9 + (2,)), self.pen.one_of((2, 4, 4, 4, 4, 8))


def _words(size: int, *values: int) -> bytes:
    return b"".join((value & (1 << 8 * size) - 1).to_bytes(size, "little") for value in values)
