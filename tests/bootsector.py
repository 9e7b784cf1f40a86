"""A tiny bare-metal x86 guest for tests of snapshots, under TCG and under a KVM that is too slow for Linux.

Its state is where a snapshot must look for it: in RAM, on the disk and in the devices. SeaBIOS boots it from the
disk that ``write_disk`` makes. It sets COM1 to 115200 8N1, prints "ready" and then obeys each character from COM1:

=====  =====================================================================  ==========================
``c``  adds one to a 16-bit counter in RAM                                    ``count=XXXX``
``p``  shows the counter                                                      ``count=XXXX``
``w``  writes the counter to disk sector 1                                    ``wrote`` or ``failed``
``r``  reads disk sector 1, 0 on a new disk                                   ``disk=XXXX`` or ``failed``
``f``  fills the 64 KiB at 0x20000 with the counter's low byte                ``filled``
``s``  sums these 64 KiB up (see ``checksum``)                                ``sum=XXXX``
``x``  resets the machine: SeaBIOS zeroes that RAM, the disk keeps its data   ``ready``
``z``  halts with interrupts off: only a reset helps                          nothing
=====  =====================================================================  ==========================

Numbers are four lower-case hexadecimal digits, lines end in CR LF, other characters are ignored. Until "ready" the
firmware owns the serial port: send nothing before. It polls, so that a host's CPU is busy while it waits.

The listing is the source of the bytes: real-mode instructions of the 8086 to 386, which KVM's emulator knows too.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["checksum", "write_disk"]

# Bytes, a bar, their assembly: one instruction a line, or a few that belong together (GNU as: .code16, linked at
# 0x7c00). "call say" prints the string that follows it and goes on behind it. "disk" returns only if the BIOS did it.
# "reset" waits before it tries the keyboard controller: a reset asked for twice can happen twice.
_LISTING = r"""
ea057c0000                       | _start: ljmp $0, $main
31c08ed88ec08ed0                 | main:   xorw %ax, %ax; movw %ax, %ds; movw %ax, %es; movw %ax, %ss
bc007c                           |         movw $0x7c00, %sp
fc                               |         cld
88164a7d                         |         movb %dl, drive
be4b7d                           |         movw $init, %si
b603                             |         movb $3, %dh
ad                               | uart:   lodsw
88c288e0ee                       |         movb %al, %dl; movb %ah, %al; outb %al, %dx
81fe577d72f4                     |         cmpw $say, %si; jb uart
e82e0172656164790d0a00           |         call say; .asciz "ready\r\n"
bafd03ec                         | next:   movw $0x3fd, %dx; inb %dx, %al
a80174f8                         |         testb $1, %al; jz next
b2f8ec                           |         movb $0xf8, %dl; inb %dx, %al
3c637436                         |         cmpb $'c', %al; je incr
3c707436                         |         cmpb $'p', %al; je show
3c77745f                         |         cmpb $'w', %al; je write
3c727475                         |         cmpb $'r', %al; je read
3c660f848300                     |         cmpb $'f', %al; je fill
3c730f849d00                     |         cmpb $'s', %al; je sum
3c787408                         |         cmpb $'x', %al; je reset
3c7a75d1                         |         cmpb $'z', %al; jne next
faf4ebfc                         | halt:   cli; hlt; jmp halt
baf90c                           | reset:  movw $0xcf9, %dx
b006ee                           |         movb $6, %al; outb %al, %dx
31c9                             |         xorw %cx, %cx
e464e2fc                         | later:  inb $0x64, %al; loop later
b0fee664                         |         movb $0xfe, %al; outb %al, $0x64
ebea                             |         jmp halt
ff06487d                         | incr:   incw count
e8da00636f756e743d00             | show:   call say; .asciz "count="
8b1e487d                         |         movw count, %bx
b90400                           | hex:    movw $4, %cx
c1c304                           | digit:  rolw $4, %bx
88d8240f                         |         movb %bl, %al; andb $0xf, %al
0430                             |         addb $'0', %al
3c397602                         |         cmpb $'9', %al; jbe ascii
0427                             |         addb $'a' - '9' - 1, %al
e8c700                           | ascii:  call putc
e2ec                             |         loop digit
e8b5000d0a00                     |         call say; .asciz "\r\n"
eb8a                             |         jmp next
a1487d                           | write:  movw count, %ax
a30080                           |         movw %ax, 0x8000
b80043e86300                     |         movw $0x4300, %ax; call disk
e8a10077726f74650d0a00           |         call say; .asciz "wrote\r\n"
e970ff                           |         jmp next
b442e85000                       | read:   movb $0x42, %ah; call disk
e88e006469736b3d00               |         call say; .asciz "disk="
8b1e0080                         |         movw 0x8000, %bx
ebb3                             |         jmp hex
b800208ec0                       | fill:   movw $0x2000, %ax; movw %ax, %es
31ff                             |         xorw %di, %di
b90080                           |         movw $0x8000, %cx
a0487d88c4                       |         movb count, %al; movb %al, %ah
f3ab                             |         rep stosw
e86e0066696c6c65640d0a00         |         call say; .asciz "filled\r\n"
e93cff                           |         jmp next
b800208ed8                       | sum:    movw $0x2000, %ax; movw %ax, %ds
31f631db                         |         xorw %si, %si; xorw %bx, %bx
b90080                           |         movw $0x8000, %cx
ad                               | add:    lodsw
01c3                             |         addw %ax, %bx
83d300                           |         adcw $0, %bx
e2f8                             |         loop add
8ed9                             |         movw %cx, %ds
e8490073756d3d00                 |         call say; .asciz "sum="
e972ff                           |         jmp hex
c7063a7d0100                     | disk:   movw $1, dap + 2
be387d8a164a7dcd137201c3         |         movw $dap, %si; movb drive, %dl; int $0x13; jc failed; ret
58                               | failed: popw %ax
e82b006661696c65640d0a00         |         call say; .asciz "failed\r\n"
e9f9fe                           |         jmp next
10000100008000000100000000000000 | dap:    .word 16, 1, 0x8000, 0, 1, 0, 0, 0
0000                             | count:  .word 0
00                               | drive:  .byte 0
fb80f801f900fb03fa07fc03         | init:   .byte 0xfb, 0x80, 0xf8, 1, 0xf9, 0, 0xfb, 3, 0xfa, 7, 0xfc, 3
5e                               | say:    popw %si
ac                               | char:   lodsb
84c07405                         |         testb %al, %al; jz said
e80400                           |         call putc
ebf6                             |         jmp char
ffe6                             | said:   jmpw *%si
88c4                             | putc:   movb %al, %ah
bafd03                           |         movw $0x3fd, %dx
ec                               | full:   inb %dx, %al
a82074fb                         |         testb $0x20, %al; jz full
b2f8                             |         movb $0xf8, %dl
88e0ee                           |         movb %ah, %al; outb %al, %dx
c3                               |         ret
"""


def checksum(counter: int) -> int:
    """What ``s`` shows after ``f`` at that counter: the sum of the 16-bit words, each carry added again at the end.

    A plain 16-bit sum of 64 KiB of equal bytes is 0 whatever the byte; this one (RFC 1071) differs for each.
    """
    byte = counter & 0xFF
    return 0xFFFF if byte == 0xFF else byte * 0x0101 * 0x8000 % 0xFFFF


def write_disk(path: Path, size: int = 1 << 20) -> Path:
    """Make ``path`` a raw disk image of ``size`` bytes, zeros but for the boot sector, and give it back."""
    if size < 1024 or size % 512:
        raise ValueError(f"size={size}: the disk has whole sectors of 512 bytes, at least 2")
    code = b"".join(bytes.fromhex(line.partition("|")[0]) for line in _LISTING.splitlines())
    if len(code) > 510:
        raise ValueError(f"{len(code)} bytes of code do not fit into a boot sector")
    with path.open("wb") as image:
        image.write(code.ljust(510, b"\0") + b"\x55\xaa")
        image.truncate(size)
    return path
