"""Ethernet frames, as a driver is given them to send (RFC 791, 768, 826, 8200, 9293; IEEE 802.1Q, 802.2)."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from vmtest.devices.layout import Field, Pen, Struct, anything, constant, drawn, number

__all__ = ["BROADCAST", "GROUP", "MAC", "Frame", "frame", "pieces"]

MAC = bytes.fromhex("525400123456")
"""The address that QEMU gives to its first network card."""
BROADCAST, GROUP = b"\xff" * 6, bytes.fromhex("01005e000001")
OTHERS = (GROUP, GROUP, bytes.fromhex("333300000001"), bytes.fromhex("525400123457"), bytes(6))
VLANS = (0, 1, 5, 0x123, 0xFFF, 0x2005, 0xFFFF)
PAYLOADS = (0, 1, 2, 3, 6, 7, 18, 33, 46, 47, 100, 255, 512, 1400, 1459, 1460, 1461, 1473, 2001)
JUMBO = (3100, 4099, 9001, 16000)

HOP_BY_HOP, TCP, UDP, IPV6, ROUTING, FRAGMENT, ESP, AH, ICMPV6, NOTHING, DESTINATION = (
    0,
    6,
    17,
    41,
    43,
    44,
    50,
    51,
    58,
    59,
    60,
)
OTHER_PROTOCOLS = (1, 2, 4, IPV6, 47, ESP, AH, ICMPV6, 132, 255)


class Frame(NamedTuple):
    """``network``, ``transport`` and ``payload`` are where these begin: the latter two where the former end if there is
    none of them.
    """

    data: bytes
    network: int
    transport: int
    payload: int
    is_ipv6: bool = False
    is_tcp: bool = False


def _big(name: str, bits: int, *likely: int) -> Field:
    """A number in the network's order."""
    field = number(name, bits, *likely)
    return drawn(name, bits, lambda pen: _swapped(field.draw(pen) & (1 << bits) - 1, bits))


def _swapped(value: int, bits: int) -> int:
    return int.from_bytes(value.to_bytes(bits // 8, "little"), "big")


IPV4_HEADER = Struct(
    "IPv4 header",  # RFC 791, 3.1
    number("version and words", 8, 0x45),
    number("service", 8, 0, 3, 0xB8),
    anything("length", 16),
    _big("identification", 16, 0, 1, 0xFFFF),
    _big("fragment", 16, 0x4000, 0x4000, 0x4000, 0, 0, 0x2000, 0x2001, 0x0005, 0x1FFF),
    number("time to live", 8, 64, 1, 0),
    number("protocol", 8, TCP, UDP),
    constant("checksum", 16, 0),
    _big("source", 32, 0x0A000001, 0xC0A80101),
    _big("destination", 32, 0x0A000002, 0xE0000001, 0xFFFFFFFF),
)
IPV6_HEADER = Struct(
    "IPv6 header",  # RFC 8200, 3
    _big("version, class, flow", 32, 0x60000000, 0x60012345),
    anything("length", 16),
    number("next", 8, TCP, UDP),
    number("hops", 8, 64, 1),
    _big("source", 128, 0xFE80 << 112 | 1, 1),
    _big("destination", 128, 0xFF02 << 112 | 1, 0xFE80 << 112 | 2),
)
TCP_HEADER = Struct(
    "TCP header",  # RFC 9293, 3.1
    _big("source", 16, 80, 0x1234),
    _big("destination", 16, 80, 3260),
    _big("sequence", 32, 1, 0xFFFFFFF0),
    _big("acknowledged", 32, 0, 1),
    number("words", 8, 0x50),
    number("flags", 8, 0x10, 0x18, 0x02, 0x19, 0xFF),
    _big("window", 16, 0xFFFF),
    constant("checksum", 16, 0),
    number("urgent", 16, 0, 1),
)
UDP_HEADER = Struct(
    "UDP header",  # RFC 768
    _big("source", 16, 53, 319),
    _big("destination", 16, 53, 319, 2049),
    anything("length", 16),
    constant("checksum", 16, 0),
)
ARP_PACKET = Struct(
    "ARP packet",  # RFC 826
    *(
        _big(name, bits, value)
        for name, bits, value in (("hardware", 16, 1), ("protocol", 16, 0x800), ("lengths", 16, 0x604))
    ),
    _big("operation", 16, 1, 2),
    *(_big(name, bits, 0x0A000001) for name, bits in (("sender", 48), ("sent", 32), ("target", 48), ("asked", 32))),
)


def _sum(data: bytes) -> int:
    """RFC 1071, before its complement is taken: 2**16 is 1 modulo 2**16 - 1."""
    return int.from_bytes(data if len(data) % 2 == 0 else data + b"\0", "big") % 0xFFFF


def _about(pen: Pen, value: int) -> int:
    """A 16-bit length in the network's order; now and then it is another than it should be."""
    if pen.chance(0.06):
        value = pen.one_of((0, 1, value - 1, value + 1, value + 8, 0xFFFF, pen.value(16)))
    return _swapped(value & 0xFFFF, 16)


def _transport(pen: Pen, protocol: int, ends: bytes, content: bytes) -> tuple[bytes, int]:
    """A segment or datagram; and how long its header is. ``ends`` are both addresses, for its checksum."""
    if protocol == TCP:
        options = bytes(4 * pen.one_of((0, 0, 0, 3, 10)))
        words = (20 + len(options)) << 2 if pen.chance(0.95) else pen.random.getrandbits(8)
        header, at = TCP_HEADER.draw(pen, words=words) + options, 16
    elif protocol == UDP:
        header, at = UDP_HEADER.draw(pen, length=_about(pen, 8 + len(content))), 6
    else:
        return content, 0
    data = header + content
    if pen.chance(0.6):
        summed = _sum(ends + bytes([0, protocol]) + len(data).to_bytes(2, "big"))
        if pen.chance(0.5):  # complete; else what a card goes on from
            summed = 0xFFFF - (summed + _sum(data)) % 0xFFFF
        data = data[:at] + summed.to_bytes(2, "big") + data[at + 2 :]
    return data, len(header)


def _ipv4(pen: Pen, content: bytes) -> tuple[bytes, int, int, bool]:
    """A packet; how long its header is, that of its transport, and whether that is TCP."""
    protocol = pen.one_of((TCP, TCP, UDP)) if pen.chance(0.9) else pen.one_of(OTHER_PROTOCOLS)
    options = bytes(4 * pen.one_of((0, 0, 0, 0, 0, 1, 10)))
    size = 20 + len(options)
    words = 0x40 | size >> 2 if pen.chance(0.95) else pen.one_of((0, 0x40, 0x41, 0x44, 0x46, 0x4F, 0x55))
    header = IPV4_HEADER.draw(pen, **{"version and words": words}, protocol=protocol, length=0)
    data, of_transport = _transport(pen, protocol, header[12:20], content)
    header = header[:2] + _about(pen, size + len(data)).to_bytes(2, "little") + header[4:] + options
    if pen.chance(0.7):
        header = header[:10] + (0xFFFF - _sum(header[:10] + header[12:])).to_bytes(2, "big") + header[12:]
    return header + data, size, of_transport, protocol == TCP


def _extension(pen: Pen, kind: int, following: int) -> bytes:
    """A header between that of IPv6 and the transport's (RFC 8200, 4; RFC 6275, 6.3 and 6.4)."""
    units = pen.one_of((0, 1, 2))
    content = bytes(8 * units + 6)
    if kind == ROUTING and pen.chance(0.6):  # one address of where it is really for
        units, content = 2, bytes([pen.one_of((2, 0)), pen.one_of((1, 1, 0, 2))]) + bytes(4) + b"\xfe\x80" + bytes(14)
    elif kind == DESTINATION and pen.chance(0.7):  # the home address of who sends
        units, content = 2, bytes([0xC9, pen.one_of((16, 16, 4, 0xFF))]) + b"\xfe\x80" + bytes(14) + b"\1\2\0\0"
    elif kind == FRAGMENT:
        units, content = 0, pen.one_of((0, 1, 8, 9, 0xFFF8)).to_bytes(2, "big") + bytes(4)
    if pen.chance(0.06):
        units = pen.one_of((0, 1, 5, 31, 255))
    return bytes([following, units]) + content


def _ipv6(pen: Pen, content: bytes) -> tuple[bytes, int, int, bool]:
    """As for IPv4."""
    protocol = pen.one_of((TCP, TCP, UDP)) if pen.chance(0.9) else pen.one_of((ICMPV6, ESP, NOTHING, 255))
    kinds: list[int] = []
    if pen.chance(0.4):
        kinds = [pen.one_of((HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT, AH)) for _ in range(pen.count(1, 3))]
    chain = [*kinds, protocol]
    extensions = b"".join(_extension(pen, kind, following) for kind, following in zip(kinds, chain[1:], strict=True))
    header = IPV6_HEADER.draw(pen, next=chain[0], length=0)
    data, of_transport = _transport(pen, protocol, header[8:40], content)
    length = _about(pen, len(extensions) + len(data)).to_bytes(2, "little")
    return header[:4] + length + header[6:] + extensions + data, 40 + len(extensions), of_transport, protocol == TCP


def frame(pen: Pen, *, jumbo: float = 0.04) -> Frame:
    """One frame without its checksum, mostly for the card itself, so that looped back it is received."""
    to = MAC if pen.chance(0.65) else BROADCAST if pen.chance(0.5) else pen.one_of(OTHERS)
    tags = b""
    if pen.chance(0.2):
        tags = b"\x81\x00" + pen.one_of(VLANS).to_bytes(2, "big")
        if pen.chance(0.15):
            tags = pen.one_of((b"\x88\xa8", b"\x81\x00")) + b"\0\5" + tags
    link = to + MAC + tags
    content = b"\x5a" * pen.one_of(JUMBO if pen.chance(jumbo) else PAYLOADS)
    kind = pen.roll()
    at = len(link) + 2
    if kind < 0.85:
        is_ipv6 = kind >= 0.55
        packet, of_network, of_transport, is_tcp = (_ipv6 if is_ipv6 else _ipv4)(pen, content)
        data = link + (b"\x86\xdd" if is_ipv6 else b"\x08\x00") + packet
        made = Frame(data, at, at + of_network, at + of_network + of_transport, is_ipv6, is_tcp)
    elif kind < 0.9:
        made = Frame(link + b"\x08\x06" + ARP_PACKET.draw(pen), at, at, at)
    elif kind < 0.94:  # a length and 802.2, with or without SNAP
        body = pen.one_of((b"\xaa\xaa\3\0\0\0\x08\0", b"\x42\x42\3", b"")) + content[:1497]
        made = Frame(link + len(body).to_bytes(2, "big") + body, at, at, at)
    else:
        types = (b"\x88\xf7", b"\x88\x08", b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x88\xcc", pen.random.randbytes(2))
        made = Frame(link + pen.one_of(types) + pen.random.randbytes(pen.count(0, 64)), at, at, at)
    if pen.chance(0.03):
        made = made._replace(data=made.data[: pen.count(1, min(len(made.data), 90))])
    return made


def pieces(pen: Pen, data: bytes, most: int, *, first: int = 0) -> list[tuple[int, int]]:
    """Lay a frame into memory, and give the addresses and lengths of up to ``most`` parts of it, of which the first
    has often ``first`` bytes: a driver has the headers in a buffer of their own.
    """
    at = pen.lay(data, pen.one_of((1, 2, 16, 16, 4096))) if data else pen.room(16)
    if pen.chance(0.3):
        at += 0 if pen.chance(0.8) else pen.one_of((1, 2, 3))
    cuts = {pen.count(0, len(data)) for _ in range(pen.one_of((0, 0, 0, 1, 1, 2, 3, most)))}
    if first and pen.chance(0.7):
        cuts.add(min(first, len(data)))
    ends = [0, *sorted(cuts)[: most - 1], len(data)]
    parts = [(at + begin, end - begin) for begin, end in pairwise(ends)]
    if pen.chance(0.05):
        where = pen.count(0, len(parts) - 1)
        wrong = (0, 1, 13, 14, 17, 0xFFF, 0x1000, 0x3FFF, 0x4000, 0x8000, 0xFFFF)
        parts[where] = parts[where][0] if pen.chance(0.7) else pen.address(), pen.one_of(wrong)
    return parts
