"""What is known of devices, as it is drawn: without a QEMU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

import pytest

from vmtest.devices.access import Access, Fill, In, Out, Read, Store, Write, encode
from vmtest.devices.layout import (
    Area,
    Pen,
    Struct,
    anything,
    array,
    constant,
    either,
    flags,
    number,
    octets,
    pointer,
    zeros,
)
from vmtest.devices.models import Model, known, models
from vmtest.devices.models.usb_devices import Device
from vmtest.errors import UsageError

ARENA = (0x100000, 0x40000)


def _areas(model: type[Model]) -> Sequence[Area]:
    names = [re.sub(r"\W*\.\*$|\\", "", pattern) for pattern in model.regions]
    names = [next(iter(re.split(r"[|)]", re.sub(r"\(\??:?", "", name)))) for name in names]
    return [Area(name=name, address=0xE0000000 + 0x100000 * at, size=0x20000) for at, name in enumerate(names)]


def _drawn(model: type[Model], seed: int) -> list[Access]:
    pen = Pen(Random(seed), ARENA)
    model(pen, _areas(model)).run(3, 24)
    return pen.accesses


@pytest.mark.parametrize("model", known(), ids=lambda model: model.name)
def test_what_a_model_draws(model: type[Model]) -> None:
    """All of it can be said, is on the device's registers or in the arena, and goes by the seed alone."""
    areas, (base, size) = _areas(model), ARENA
    assert model.knows(areas)
    kinds = set[type]()
    for seed in range(200):
        for access in (drawn := _drawn(model, seed)):
            encode(access)
            kinds.add(type(access))
            if isinstance(access, Read | Write | In | Out):
                at = access[0]
                assert any(area.address <= at <= area.address + area.size - access[-1] for area in areas), access
            elif isinstance(access, Store | Fill):
                length = len(access.data) if isinstance(access, Store) else access.length
                assert base <= access.address <= base + size - length, access
        assert _drawn(model, seed) == drawn
    assert kinds & {Write, Out}


def test_what_hangs_on_a_usb_controller() -> None:
    """Where what is worked on has a name of USB, it is mostly that which transfers are for; else it is anything."""

    def endpoints(name: str) -> list[frozenset[int]]:
        return [frozenset(Device(Pen(Random(seed), ARENA, name)).endpoints) for seed in range(200)]

    assert endpoints("usb-hub,port=1").count(frozenset({0x81})) > 180
    assert endpoints("usb-uas").count(frozenset({1, 0x82, 0x83, 4})) > 180
    assert len(set(endpoints("qemu-xhci"))) > 10


def test_models_are_found_by_their_regions() -> None:
    """A device is known by the names of its registers, all of one owner; others of the machine are not taken for it."""
    here = Area(name="ahci", address=0, size=4096, owner="/a")
    bell = Area(name="virtio-pci-notify-virtio-net", address=1 << 20, size=4096, owner="/b")
    common = Area(name="virtio-pci-common-virtio-net", address=2 << 20, size=4096, owner="/b")
    elsewhere = Area(name="virtio-pci-notify-virtio-blk", address=3 << 20, size=4096, owner="/c")
    found = models([here, bell, common, elsewhere])
    assert [(model.name, areas) for model, areas in found] == [("AHCI", (here,)), ("virtio on PCI", (bell, common))]


def test_structures() -> None:
    """Fields are packed from the lowest bit, little-endian; what is given is taken; pointers lead to what was laid."""
    inner = Struct("inner", constant("magic", 16, 0xABCD), zeros(16))
    outer = Struct(
        "outer",
        number("kind", 3, 5),
        flags("flags", 5, first=100, gap2=0, fourth=100),
        constant("one", 8, 1),
        zeros(16),
        pointer("inner", 64, inner, align=64, null=0, plus=(1,)),
        array("more", inner, 3, least=3),
        either("either", inner),
    )
    assert (outer.size, outer.bits) == (28, 224)
    usual = 0
    for seed in range(300):
        pen = Pen(Random(seed), ARENA)
        at = pen.lay(outer, kind=2)
        *_, last = pen.accesses
        assert isinstance(last, Store)
        assert (last.address, len(last.data)) == (at, 28)
        assert last.data[0] & 7 == 2
        whole = last.data[:4] == bytes([2 | 1 << 3 | 1 << 6, 1, 0, 0])
        target = int.from_bytes(last.data[4:12], "little")
        leads = any(isinstance(one, Store) and one.address == target - 1 for one in pen.accesses)
        usual += whole and leads and last.data[12:] == bytes([0xCD, 0xAB, 0, 0]) * 4
    assert 150 < usual < 300  # it is not always as it should be


def test_structures_that_cannot_be() -> None:
    """What is no whole number of bytes, has a name twice, or no such field, is the mistake of who wrote it."""
    with pytest.raises(UsageError, match="7 bits"):
        Struct("odd", anything("a", 7))
    with pytest.raises(UsageError, match="two fields"):
        Struct("twice", anything("a", 8), anything("a", 8))
    with pytest.raises(UsageError, match="9 were named"):
        flags("many", 8, gap8=0, one=50)
    with pytest.raises(UsageError, match="no field 'b'"):
        Pen(Random(1), ARENA).lay(Struct("one", anything("a", 8)), b=1)
    with pytest.raises(UsageError, match="do not fit"):
        Pen(Random(1), ARENA).room(ARENA[1] + 1)


def test_pointers_end() -> None:
    """A structure that points to its own kind is followed so deep, and then leads back."""
    ring: Struct = Struct("ring", pointer("next", 64, lambda: ring, null=0), pointer("data", 64, octets(64), null=0))
    pen = Pen(Random(1), (0x1000, 0x1000))
    for _ in range(500):
        pen.lay(ring)
    assert all(0x1000 <= one.address < 0x2000 for one in pen.accesses if isinstance(one, Store | Fill))
