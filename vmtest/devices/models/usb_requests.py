"""What drivers ask of USB devices, whatever controller these hang on: control requests (USB 2.0, 9; HID 1.11; hubs,
audio, CDC), and what goes over other endpoints, such as SCSI commands (Mass Storage Bulk-Only 1.0; UAS).
"""

from __future__ import annotations

from collections.abc import Sequence

from vmtest.devices.layout import Field, Struct, number, zeros
from vmtest.devices.models.scsi_commands import big

__all__ = [
    *(
        "AUDIO",
        "CARD",
        "CBW",
        "CONFIGURE",
        "CONTAINER",
        "DATA_CONTAINER",
        "FRAME",
        "HID",
        "HUB",
        "IN",
        "MESSAGE",
        "MTP",
    ),
    *("NETWORK", "RNDIS", "SELECT", "SERIAL", "STANDARD", "STORAGE", "UAS_COMMAND", "UAS_TASK", "fields"),
]

IN = 0x80
"""In an endpoint's address, or a request's type: to the host."""


def fields(**said: Sequence[int]) -> list[Field]:
    """By their names, where ``_`` is a space, how many bits, and what is likely; ``gap`` for bits that are clear."""
    return [
        zeros(bits) if name.startswith("gap") else number(name.replace("_", " "), bits, *likely)
        for name, (bits, *likely) in said.items()
    ]


# -- control requests ------------------------------------------------------------------------------------------------

ZERO = (0,)
ENDPOINTS = (0x81, 0x01, 0x82, 0x02, 0x83, 0, 0x80, 0x0F)
DESCRIPTORS = (0x100, 0x200, 0x201, 0x300, 0x301, 0x302, 0x303, 0x30A, 0x3EE, 0x600, 0x700, 0xF00, 0x400, 0x500)
PORTS = (1, 1, 2, 3, 8, 0, 9)
CONTROLS, ENTITIES = (0x100, 0x200, 0x201, 0x202, 0x1FF, 0x2FF), (0x200, 0x200, 0x201, 0x100, 0x300, 1)
SIZES = (2, 4, 8, 9, 18, 32, 64, 255, 4096, 4097)


def _setup(kind: int, codes: Sequence[int], *more: Sequence[int]) -> Struct:
    """Setup data (USB 2.0, 9.3), with likely values, indexes and lengths, which are 0 where there are none. The type
    and the code are always these: what is unknown is refused at once.
    """
    first = Field("type", 8, lambda pen: kind), Field("request", 8, lambda pen: int(pen.one_of(codes)))
    rest = zip(("value", "index", "length"), (*more, ZERO, ZERO, ZERO), strict=False)
    return Struct("setup data", *first, *(number(name, 16, *likely) for name, likely in rest))


CONFIGURE, SELECT = _setup(0, (9,), (1, 1, 2, 0)), _setup(1, (11,), (0, 1, 1, 2), (0, 1))
STANDARD = (
    *[_setup(0x80, (6,), DESCRIPTORS, (0, 0x409), SIZES)] * 5,  # GET DESCRIPTOR
    *[_setup(kind, (0,), ZERO, ENDPOINTS, (2,)) for kind in (0x80, 0x81, 0x82)],  # GET STATUS
    *[_setup(kind, (1, 3), (0, 1, 2, 48), ENDPOINTS) for kind in (0, 1, 2, 2)],  # CLEAR FEATURE, SET FEATURE
    *(_setup(0x80, (8,), ZERO, ZERO, (1,)), _setup(0x81, (10,), ZERO, (0, 1, 2), (1,))),  # GET CONFIGURATION, INTERFACE
    *(CONFIGURE, SELECT, _setup(0, (5,), (1, 2, 127))),  # SET CONFIGURATION, INTERFACE, ADDRESS
    _setup(0, (7,), DESCRIPTORS, ZERO, SIZES),  # SET DESCRIPTOR
    *(_setup(0x82, (12,), ZERO, ENDPOINTS, (2,)), _setup(0, (0x30, 0x31), (0, 40), ZERO, (6, 0))),  # SYNCH FRAME, SEL
    _setup(0xC0, (1, 0x20, 0x51), ZERO, (4, 5, 7), SIZES),  # what Windows asks first
)
HID = (
    _setup(0x81, (6,), (0x2200, 0x2100, 0x2300), ZERO, SIZES),
    _setup(0xA1, (1, 2, 3), (0, 0x100, 0x200, 0x300), ZERO, (0, 1, 2, 3, 6, 8, 64)),  # GET REPORT, IDLE, PROTOCOL
    *[_setup(0x21, (9, 10, 11), (0, 1, 0x100, 0x200, 0xFF00), ZERO, (0, 0, 1, 8))] * 3,  # SET REPORT, ...
)
STORAGE = (_setup(0xA1, (0xFE,), ZERO, ZERO, (1,)), _setup(0x21, (0xFF,)), _setup(2, (1,), ZERO, (0x81, 2)))
HUB = (
    _setup(0xA0, (6,), (0x2900, 0x2A00, 0), ZERO, (9, 7, 71, 255)),  # GET HUB DESCRIPTOR
    *(_setup(0xA0, (0,), ZERO, ZERO, (4, 2)), _setup(0xA3, (0,), ZERO, PORTS, (4, 2))),  # GET HUB STATUS, PORT STATUS
    _setup(0x20, (1, 3), (0, 1)),
    *[_setup(0x23, (1, 3, 3), (0, 1, 2, 4, 4, 8, 8, 16, 17, 18, 19, 20), PORTS)] * 3,  # SET PORT FEATURE, CLEAR ...
)
AUDIO = (
    _setup(0xA1, (0x81, 0x82, 0x83, 0x84), CONTROLS, ENTITIES, (1, 2, 2, 4)),
    _setup(0x21, (1, 2, 3, 4), CONTROLS, ENTITIES, (1, 2, 2, 4)),
    *(_setup(0xA2, (0x81,), (0x100,), (1, 0x81), (3,)), _setup(0x22, (1,), (0x100,), (1, 0x81), (3,))),
    *[_setup(1, (11,), (0, 1, 1, 2, 3), (1,))] * 2,
)
MTP = (_setup(0x21, (0x64, 0x66), ZERO, ZERO, (6, 2, 0)), _setup(0xA1, (0x65, 0x67), ZERO, ZERO, (4, 64)))
NETWORK = (  # SEND ENCAPSULATED COMMAND, GET ENCAPSULATED RESPONSE
    *(_setup(0x21, (0,), ZERO, ZERO, (24, 28, 28, 32, 36, 12, 0)), _setup(0xA1, (1,), ZERO, ZERO, (1025, 256, 24, 8))),
    _setup(0x21, (0x43,), (0xF, 0)),
)
SERIAL = (
    _setup(0x40, (0, 1, 6, 7, 9), (0, 1, 2, 0x101, 0x202, 0x303), (0, 1)),
    _setup(0x40, (2,), (0, 0x1311), (0, 0x100, 0x200, 0x400)),  # flow control
    _setup(0x40, (3,), (0, 1, 0x4138, 0xC001, 0x3FFF, 26), (0, 1)),  # baud rate
    _setup(0x40, (4,), (8, 7, 0x108, 0x208, 0x308, 0x1008, 0x808, 5)),  # parity and stop bits
    _setup(0xC0, (5, 10), ZERO, ZERO, (2, 1)),
)
CARD = (_setup(0x21, (1,), (0, 0x100)), _setup(0xA1, (2, 3), ZERO, ZERO, (4, 64)))

# -- what goes over the other endpoints ------------------------------------------------------------------------------

RARE = (*[0] * 20, 1)
CBW = Struct(
    "command block wrapper",  # Bulk-Only 5.1
    *fields(signature=(32, *[0x43425355] * 2), tag=(32, 1, 2), length=(32, 0, 512)),
    *fields(flags=(8, IN, 0), lun=(8, *RARE, 15), size=(8, 6, 10, 12, 16), cdb=(128,)),
)
UAS_COMMAND = Struct(
    "command IU",  # UAS 6.2
    *(*fields(id=(16, 1)), big("tag", 16, 1, 2), *fields(priority=(16, 0, 1), more=(16, *RARE))),
    *(big("lun", 64, *RARE, 1 << 48), *fields(cdb=(128,))),
)
UAS_TASK = Struct(
    "task management IU",  # UAS 6.6
    *(*fields(id=(16, *[5] * 20, 6)), big("tag", 16, 1, 2), *fields(function=(16, 1, 8, 2, 4, 0x80))),
    *(big("task", 16, 1, 2), big("lun", 64, *RARE)),
)
OPERATIONS = (*range(0x1001, 0x101C), *range(0x9801, 0x9804))
HANDLES = (0x10001, 0x10001, 0xFFFFFFFF, 0, 1, 1, 2, 3, 0x3000, 0x3001)
PROPERTIES = (0xDC01, 0xDC02, 0xDC03, 0xDC04, 0xDC07, 0xDC0B, 0xDC41, 0xDC44)
CONTAINER = Struct(
    "container",  # Still Image Capture Device Definition 1.0, 7.1
    *fields(size=(32, *[32] * 12, 12, 16), type=(16, *[1] * 20, 2, 3, 4), code=(16, *OPERATIONS)),
    *fields(transaction=(32, 1, 2), first=(32, *HANDLES), second=(32, *[0] * 10, 0x3000, 1, *PROPERTIES)),
    *fields(third=(32, 0, 0xFFFFFFFF, 1, 2, *PROPERTIES), fourth=(32, 0, 64), fifth=(32, 0)),
)
DATA_CONTAINER = Struct(
    "container of data",
    *fields(size=(32, 76, 12, 512, 0xFFFFFFFF), type=(16, 2), code=(16, 0x100C, 0x100D), transaction=(32, 1)),
    *fields(storage=(32, 0x10001), format=(32, 0x3000, 0x3001), bytes=(32, 0, 8, 512, 0xFFFFFFFF), gap=(8 * 40,)),
    *fields(letters=(8, 3, 0, 255), name=(64, 0x620061, 0x2F002E002E)),
)
QUERIES = (*range(0x10101, 0x10117), *range(0x20101, 0x20106), *range(0x1010101, 0x1010105), 0x1020101, 0xFD010100)
RNDIS = Struct(
    "RNDIS message",  # MS-RNDIS 2.2
    *fields(type=(32, 2, 3, 4, 4, 5, 5, 6, 8), size=(32, 24, 28, 32, 12), request=(32, 1), query=(32, *QUERIES)),
    *fields(length=(32, 0, 4, 6), offset=(32, 20, 16, 0), handle=(32, 0), buffer=(32, 0xF, 1)),
)
FRAME = Struct(
    "RNDIS packet",
    *fields(type=(32, 1), size=(32, 104, 44, 1558), offset=(32, 36), bytes=(32, 60, 1514, 0), gap=(224,)),
    *fields(frame=(64,), gap=(416,)),
)
MESSAGE = Struct(
    "bulk-out message",  # CCID 1.1, 6.1
    *fields(type=(8, *range(0x61, 0x74)), length=(32, 0, 5, 7, 261), slot=(8, *RARE), number=(8, 0, 1), more=(88,)),
)
