"""What QEMU tells of a sequence, and what is made of the sequences that showed something new: without a QEMU."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from vmtest.devices.access import Access, Fill, In, Out, Read, Store, Write, encode
from vmtest.devices.events import FULL, Events
from vmtest.fuzz.choice import Choice
from vmtest.fuzz.corpus import LONGEST, MOST, Corpus
from vmtest.fuzz.coverage import LEARNING, LOUD, SPARSE, Coverage

ARENA = (0x100000, 0x40000)


def test_what_is_new() -> None:
    """New are events, pairs of them that follow each other, and numbers of another size; the same once more is not."""
    coverage = Coverage()
    lines = [b"nic_send to 0x12345, 60 bytes", b"nic_irq 3"]
    assert coverage.new(lines, (), ()) == 4
    assert coverage.new(lines, (), ()) == 0
    assert coverage.new([b"nic_send to 0x1abcd, 61 bytes", b"nic_irq 3"], (), ()) == 0
    assert coverage.new([b"nic_send to 0x12345, 1500 bytes"], (), ()) == 1
    assert coverage.new([b"nic_irq 3", b"nic_send to 0x12345, 60 bytes"], (), ()) == 2
    assert coverage.new([b"nic_irq 2"], (), ()) == 1
    assert coverage.kinds == {b"nic_send", b"nic_irq"}
    assert coverage.features == 8


def test_addresses_of_qemu_are_no_news() -> None:
    """They are others in each process."""
    coverage = Coverage()
    assert coverage.new([b"dma_map 0x5581a0b0c0d0"], (), ()) == 2
    assert coverage.new([b"dma_map 0x7f00a0b0c0d0"], (), ()) == 0


def test_what_machines_tell_is_no_news() -> None:
    """A guest's errors that are of no device, and QEMU's own works, are no news, nor between events of a device."""
    coverage = Coverage()
    assert coverage.new([b"nic_send 60", b"nic_irq 3"], (), ()) == 4
    others = b"Attempted MSR 3", b"Invalid read at addr 0x10", b"pci_cfg_write nic 0:3 @0x4 <- 0x7", b"qio_task_new 0x1"
    assert coverage.new([b"nic_send 60", *others, b"nic_irq 3"], (), ()) == 0
    assert coverage.kinds == {b"nic_send", b"nic_irq"}


def test_what_is_loud() -> None:
    """An event that is told a thousand times of one sequence is found, by the name that QEMU has a switch for."""
    assert Coverage.loud([b"sd_write_byte: 0x1", b"sd_command 3"] * (LOUD - 1)) == set()
    assert Coverage.loud([b"sd_write_byte: 0x1"] * LOUD + [b"sd_command 3"] * 9) == {"sd_write_byte"}


def test_what_brings_more_is_taken_more_often() -> None:
    """Of two ways the one of which more comes is taken more often, the other one still is; in time that turns round."""
    random, choice = Random(1), Choice({"one": 1.0, "other": 1.0})

    def taken(one: int, other: int) -> float:
        for _ in range(4000):
            choice.came("one", one, 0.01)
            choice.came("other", other, 0.01)
        return sum(choice.one(random) == "one" for _ in range(2000)) / 2000

    assert 0.8 < taken(10, 0) < 0.95
    assert 0.4 < taken(1, 1) < 0.6
    assert 0.05 < taken(0, 10) < 0.2


def test_weights_hold_where_as_much_comes_of_each() -> None:
    """What a way's weight says is how often it is taken, at first and where all bring the same."""
    random, choice = Random(1), Choice({"often": 3.0, "seldom": 1.0})
    for _ in range(2):
        assert 0.7 < sum(choice.one(random) == "often" for _ in range(2000)) / 2000 < 0.8
        for way in ["often", "seldom"] * 500:
            choice.came(way, 2, 0.01)


def test_where_little_is_told_values_count() -> None:
    """For a device without trace events what its registers return is the feedback; else it is not."""
    silent, told = Coverage(), Coverage()
    lines = [b"event_%c 1" % (ord("a") + number) for number in range(SPARSE)]
    for _ in range(LEARNING):
        silent.new((), (), ())
        told.new(lines, (), ())
    accesses, replies = (Write(0, 1, 4), Read(0x10, 4), In(0x70, 1)), (None, 0x80, 3)
    assert silent.new((), accesses, replies) == 2
    assert silent.new((), accesses, (None, 0x81, 3)) == 0
    assert silent.new((), accesses, (None, 0x7F, 3)) == 1
    assert told.new(lines, accesses, replies) == 0


def test_events_are_taken_once() -> None:
    """Lines come once, and the file is emptied where it has become large, while its writer goes on where it was."""
    events = Events()
    with Path(f"/proc/self/fd/{events.fd}").open("wb", buffering=0) as writer:
        assert events.take() == []
        writer.write(b"one 1\ntwo 2\n")
        assert events.take() == [b"one 1", b"two 2"]
        assert events.take() == []
        writer.write(b"x" * (FULL + 1) + b"\n")
        assert len(events.take()) == 1
        assert events.take() == []
        writer.write(b"three 3\n")
        assert events.take() == [b"three 3"]
    assert os.fstat(events.fd).st_blocks < FULL // 512
    events.close()


def _fresh(random: Random) -> list[Access]:
    return [Write(0xE0000000 + 4 * random.randrange(64), random.getrandbits(32), 4) for _ in range(20)]


def test_sequences_are_changed() -> None:
    """What is made of sequences that are kept can be said, is of bounded length, goes by the seed, and is new."""
    corpus = Corpus(ARENA, _fresh)
    kept: list[Access] = [Out(0xCF8, 5, 4), Store(0x100000, bytes(40)), Fill(0x100100, 64, 0), *_fresh(Random(1))]
    corpus.add(kept)
    corpus.add([*_fresh(Random(2)), Read(0xE0000000, 8)] * 30)
    found = [corpus.sequence(Random(seed)) for seed in range(500)]
    assert [corpus.sequence(Random(seed)) for seed in range(500)] == found
    for sequence in found:
        assert len(sequence) <= LONGEST
        for access in sequence:
            encode(access)
    assert sum(sequence in ([], kept) for sequence in found) < 50
    assert any(isinstance(one, Store) and one.data != bytes(40) for sequence in found for one in sequence)


def test_the_corpus_is_bounded() -> None:
    """The oldest sequences go where there are too many."""
    corpus = Corpus(ARENA, _fresh)
    for number in range(MOST + 10):
        corpus.add([Write(number, 0, 1)])
    assert MOST * 0.9 <= len(corpus) <= MOST
