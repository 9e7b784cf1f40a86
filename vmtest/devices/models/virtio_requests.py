"""What the drivers of virtio devices ask for: the first bytes of a request (Virtual I/O Device 1.2, chapter 5)."""

from __future__ import annotations

from collections.abc import Mapping

from vmtest.devices.layout import Struct, anything, drawn, number, zeros
from vmtest.devices.models.scsi_commands import cdb

__all__ = ["ANSWERS", "OTHERS", "QUEUES", "REQUESTS"]

NET = Struct(
    "virtio_net_hdr",  # 5.1.6
    number("flags", 8, 0, 1, 2, 4),
    number("gso", 8, 0, 1, 3, 4, 5, 0x80, 0x81),
    *(number(name, 16, 0, 14, 34, 54, 1500) for name in ("header", "segment", "checksum start", "checksum offset")),
    number("buffers", 16, 0, 1),
)
CONTROL = Struct(
    "virtio_net_ctrl", number("class", 8, 0, 1, 2, 3, 4, 5), number("command", 8, 0, 1, 2, 3), anything("data", 64)
)
BLOCK = Struct(
    "virtio_blk_req",  # 5.2.6
    number("type", 32, 0, 1, 4, 8, 11, 13, 14, 15, 17, 18, 20, 22, 24, 26),
    number("priority", 32, 0),
    number("sector", 64, 0, 1, 8, 1 << 20, (1 << 64) - 1),
)
SCSI = Struct(
    "virtio_scsi_req_cmd",  # 5.6.6
    number("lun", 64, 0x00400001, 0x00400001, 0x00400101, 0x01400001),
    anything("tag", 64),
    number("attribute", 24, 0, 1, 2, 3),
    drawn("cdb", 256, lambda pen: int.from_bytes(cdb(pen), "little")),
)
TASK = Struct(
    "virtio_scsi_ctrl",
    number("type", 32, 0, 1, 2),
    number("subtype", 32, *range(8)),
    SCSI.fields[0],
    anything("id", 64),
)
IOMMU = Struct(
    "virtio_iommu_req",  # 5.13.6
    number("type", 8, 1, 2, 3, 4, 5),
    zeros(24),
    number("domain", 32, 0, 1, 2),
    *(anything(name, 64) for name in ("first", "last", "physical")),
    number("flags", 32, 1, 2, 3, 4),
)
GPU = Struct(
    "virtio_gpu_ctrl",  # 5.7.6
    number("type", 32, *range(0x100, 0x10F), *range(0x200, 0x208), *range(0x300, 0x302)),
    number("flags", 32, 0, 1),
    anything("fence", 64),
    number("context", 32, 0, 1),
    number("ring", 32, 0),
    number("resource", 32, 0, 1, 2),
    *(number(name, 32, 0, 1, 2, 16, 640) for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")),
)
CRYPTO = Struct(
    "virtio_crypto_op",  # 5.9.7
    number("opcode", 32, 0x002, 0x003, 0x102, 0x103, 0x302, 0x400, 0x401, 0x402, 0, 0x100, 0x200, 0x300),
    number("algorithm", 32, *range(14)),
    *(number(name, 32, 0, 1, 2) for name in ("session", "session high", "flags", "padding")),
    *(number(f"parameter {index}", 32, 0, 1, 2, 3, 16, 32, 64) for index in range(12)),
)
SOUND = Struct(
    "virtio_snd",
    number("code", 32, 1, 2, *range(0x100, 0x106), 0x200),
    *(number(f"{n}", 32, 0, 1, 2, 64, 4096) for n in range(7)),
)
CONSOLE = Struct(
    "virtio_console_control", number("port", 32, 0, 1, 2), number("event", 16, *range(8)), number("value", 16, 0, 1)
)
INPUT = Struct(
    "virtio_input_event", number("type", 16, 0, 1, 0x11), number("code", 16, 0, 1, 2), number("value", 32, 0, 1)
)
MEM = Struct(
    "virtio_mem_req",
    number("type", 16, 0, 1, 2, 3),
    zeros(48),
    anything("address", 64),
    number("blocks", 16, 0, 1),
    zeros(48),
)
NINE = Struct(
    "9P",
    number("size", 32, 7, 13, 24, 64),
    number("type", 8, *range(6, 128, 2)),
    number("tag", 16, 0, 1),
    *(anything(f"{n}", 32) for n in range(8)),
)
BALLOON = Struct("page numbers", *(number(f"{n}", 32, 0, 0x100, 0x101, 0x110, 0x3FF00) for n in range(8)))
ANY = Struct("words", *(anything(f"{n}", 32) for n in range(8)))

REQUESTS: Mapping[str, tuple[Struct, ...]] = {
    "net": (NET, NET, CONTROL),
    "blk": (BLOCK,),
    "scsi": (SCSI, SCSI, TASK),
    "iommu": (IOMMU,),
    "gpu": (GPU,),
    "crypto": (CRYPTO,),
    "sound": (SOUND,),
    "serial": (CONSOLE, ANY),
    "input": (INPUT,),
    "mem": (MEM,),
    "9p": (NINE,),
    "balloon": (BALLOON, ANY),
}
"""By what QEMU calls a device, what its driver writes first."""

ANSWERS: Mapping[str, int] = {"scsi": 108, "gpu": 408, "9p": 128, "net": 1, "blk": 1, "mem": 24}
"""Bytes that the device's answer has; 16 do for the others."""
QUEUES: Mapping[str, int] = {"scsi": 3}
"""Queues without which a device has nothing to do."""
OTHERS = (ANY, NET, BLOCK)
"""For a device that is not in the table."""
