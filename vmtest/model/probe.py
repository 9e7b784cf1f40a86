"""The probe programs: one tiny bare-metal guest an architecture, by which an accelerator shows that it works.

Each program does the same, for ever, and the host kills it when it has seen enough::

    count = FIRST
    repeat:
        print "S"
        x = 1; repeat count times: call step, which does x = x * MULTIPLIER + INCREMENT (modulo 2**32)
        print "E", then x as four bytes, the lowest first
        count = count * GROWTH

The host knows what x must be (``checksum``), and times "S" to "E" by the CPU time that QEMU used: a busy host does
not count. So the speed is measured from inside to inside, without QEMU's start, and the growing stages suit 2
million instructions a second as well as 5,000 million. The call in the loop is on purpose: its return is an
indirect jump, which an emulator must look up and hardware predicts; without it TCG runs the loop as fast as the
hardware would, and nothing is learnt.

The programs use registers, the serial port and (x86) two words of stack. They need no firmware, no RAM contents
and no exceptions. Assembled with binutils (x86) and LLVM (others); the listing is the source of the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PROBES", "Probe", "checksum", "iterations"]

MULTIPLIER = 1664525
INCREMENT = 1013904223
"""A full-period linear congruential generator (Numerical Recipes, 2nd ed., section 7.1, "ranqd1")."""

FIRST = 4099
"""The first stage's count: odd, so that all bytes of the checksums differ from stage to stage."""
GROWTH = 3


def iterations(stage: int) -> int:
    """How often the loop of that stage (0, 1, …) runs. The guest's counter has 32 bits: stages 0 to 12."""
    return FIRST * int(GROWTH**stage)


def checksum(count: int) -> int:
    """What x is after ``count`` iterations, by squaring the step instead of repeating it."""
    x, a, c = 1, MULTIPLIER, INCREMENT
    while count:
        if count & 1:
            x = (x * a + c) % 2**32
        a, c = a * a % 2**32, (a + 1) * c % 2**32
        count >>= 1
    return x


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A program for the default machine of ``arch``.

    ``listing`` has a line an instruction: its bytes as they lie in memory, a bar, its assembly.
    ``loop`` is the number of instructions in one iteration. ``arguments`` load the image: QEMU's, with ``{image}``
    for the file's name. ``size`` is that of the image in bytes, 0 for as long as the code. ``patches`` are
    (offset, bytes) put into the image besides the code, which is at its start.
    """

    arch: str
    listing: str
    loop: int
    arguments: tuple[str, ...]
    size: int = 0
    patches: tuple[tuple[int, bytes], ...] = ()

    @property
    def code(self) -> bytes:
        """The machine code, out of the listing."""
        return b"".join(bytes.fromhex(line.partition("|")[0]) for line in self.listing.splitlines())

    def image(self) -> bytes:
        """The file that QEMU loads."""
        image = bytearray(self.code)
        image.extend(bytes(self.size - len(image)) if self.size else b"")
        for offset, patch in self.patches:
            image[offset : offset + len(patch)] = patch
        return bytes(image)


# A 64 KiB BIOS, which QEMU puts below 4 GiB (and a copy below 1 MiB). The CPU starts at 0xfffffff0 in real mode
# (Intel SDM vol. 3A, "First Instruction Executed"), goes to flat 32-bit protected mode at once ("Switching to
# Protected Mode"; the first VT-x could not run real mode at all, and KVM emulated it), and caching is switched on
# by the same write to CR0 (CD and NW are set by reset). The serial port is a 16550 at port 0x3f8; bit 5 of its
# line status (0x3fd) says that it takes a byte.
_X86_64 = """
                 |         .code16
fa               | _start: cli
2e660f0116a000   |         lgdtl   %cs:gdtr - _start
66b811000000     |         movl    $0x11, %eax
0f22c0           |         movl    %eax, %cr0
66ea1900ffff0800 |         ljmpl   $8, $0xffff0000 + (start32 - _start)
                 |         .code32
b810000000       | start32: movl   $0x10, %eax
8ed8             |         movl    %eax, %ds
8ed0             |         movl    %eax, %ss
bc00700000       |         movl    $0x7000, %esp
bb03100000       |         movl    $4099, %ebx
b053             | stage:  movb    $'S', %al
e83b000000       |         call    putc
b801000000       |         movl    $1, %eax
89d9             |         movl    %ebx, %ecx
e823000000       | again:  call    step
49               |         decl    %ecx
75f8             |         jnz     again
89c6             |         movl    %eax, %esi
b045             |         movb    $'E', %al
e823000000       |         call    putc
b904000000       |         movl    $4, %ecx
89f0             | digits: movl    %esi, %eax
e817000000       |         call    putc
c1ee08           |         shrl    $8, %esi
49               |         decl    %ecx
75f3             |         jnz     digits
8d1c5b           |         leal    (%ebx,%ebx,2), %ebx
ebca             |         jmp     stage
69c00d661900     | step:   imull   $1664525, %eax, %eax
055ff36e3c       |         addl    $1013904223, %eax
c3               |         ret
88c4             | putc:   movb    %al, %ah
bafd030000       |         movl    $0x3fd, %edx
ec               | busy:   inb     (%dx), %al
a820             |         testb   $0x20, %al
74fb             |         jz      busy
88e0             |         movb    %ah, %al
baf8030000       |         movl    $0x3f8, %edx
ee               |         outb    %al, (%dx)
c3               |         ret
8d74260090       |         .balign 8
0000000000000000 | gdt:    .quad   0, 0x00cf9b000000ffff, 0x00cf93000000ffff
ffff0000009bcf00 |
ffff00000093cf00 |
1700             | gdtr:   .word   23
8800ffff         |         .long   0xffff0000 + (gdt - _start)
"""

# QEMU's "virt" board (docs/system/arm/virt.rst): flash at 0, where the CPU starts in EL1, and a PL011 at
# 0x09000000. SCTLR_EL1.I (bit 12) lets instructions be cached although the MMU is off (Arm ARM, SCTLR_EL1), or
# hardware would fetch each from memory; data without an MMU is never cached, so the loop touches none.
# The PL011's manual (DDI 0183): UARTCR at 0x30 (enable, transmit, receive), UARTFR at 0x18 (bit 5: the transmit
# FIFO is full), UARTDR at 0.
_AARCH64 = """
001038d5 | _start: mrs     x0, sctlr_el1
000074b2 |         orr     x0, x0, #0x1000
001018d5 |         msr     sctlr_el1, x0
df3f03d5 |         isb
1320a1d2 |         movz    x19, #0x0900, lsl #16
20608052 |         mov     w0, #0x301
603200b9 |         str     w0, [x19, #0x30]
b5c18c52 |         movz    w21, #0x660d
3503a072 |         movk    w21, #0x19, lsl #16
f66b9e52 |         movz    w22, #0xf35f
d68da772 |         movk    w22, #0x3c6e, lsl #16
74008252 |         mov     w20, #4099
600a8052 | stage:  mov     w0, #'S'
13000094 |         bl      putc
20008052 |         mov     w0, #1
e103142a |         mov     w1, w20
0e000094 | again:  bl      step
21040071 |         subs    w1, w1, #1
c1ffff54 |         b.ne    again
f703002a |         mov     w23, w0
a0088052 |         mov     w0, #'E'
0b000094 |         bl      putc
98008052 |         mov     w24, #4
e01e0012 | digits: and     w0, w23, #0xff
08000094 |         bl      putc
f77e0853 |         lsr     w23, w23, #8
18070071 |         subs    w24, w24, #1
81ffff54 |         b.ne    digits
9406140b |         add     w20, w20, w20, lsl #1
efffff17 |         b       stage
0058151b | step:   madd    w0, w0, w21, w22
c0035fd6 |         ret
621a40b9 | putc:   ldr     w2, [x19, #0x18]
e2ff2f37 |         tbnz    w2, #5, putc
600200b9 |         str     w0, [x19]
c0035fd6 |         ret
"""

# QEMU's "virt" board (docs/system/riscv/virt.rst): RAM at 0x80000000, where a raw -kernel goes when there is no
# firmware, in M mode under TCG and in VS mode under KVM; the code uses nothing that differs and runs anywhere.
# A 16550 at 0x10000000. Encodings: The RISC-V Instruction Set Manual, volume I, RV64IM.
_RISCV64 = """
b7040010 | _start: lui     s1, 0x10000
37691900 |         lui     s2, 0x196
1b09d960 |         addiw   s2, s2, 0x60d
b7f96e3c |         lui     s3, 0x3c6ef
9b89f935 |         addiw   s3, s3, 0x35f
371a0000 |         lui     s4, 1
1b0a3a00 |         addiw   s4, s4, 3
13053005 | stage:  li      a0, 'S'
ef004005 |         jal     putc
13051000 |         li      a0, 1
93050a00 |         mv      a1, s4
ef00c003 | again:  jal     step
9b85f5ff |         addiw   a1, a1, -1
e39c05fe |         bnez    a1, again
930a0500 |         mv      s5, a0
13055004 |         li      a0, 'E'
ef004003 |         jal     putc
130b4000 |         li      s6, 4
13850a00 | digits: mv      a0, s5
ef008002 |         jal     putc
9bda8a00 |         srliw   s5, s5, 8
130bfbff |         addi    s6, s6, -1
e3180bfe |         bnez    s6, digits
9b121a00 |         slliw   t0, s4, 1
3b0a5a00 |         addw    s4, s4, t0
6ff09ffb |         j       stage
3b052503 | step:   mulw    a0, a0, s2
3b053501 |         addw    a0, a0, s3
67800000 |         ret
83c25400 | putc:   lbu     t0, 5(s1)
93f20202 |         andi    t0, t0, 0x20
e38c02fe |         beqz    t0, putc
2380a400 |         sb      a0, 0(s1)
67800000 |         ret
"""

PROBES: dict[str, Probe] = {
    row.arch: row
    for row in (
        Probe(
            arch="x86_64",
            listing=_X86_64,
            loop=6,
            arguments=("-bios", "{image}"),
            size=0x10000,
            # jmp _start: from 0xfff0, with 16-bit wrap-around.
            patches=((0xFFF0, bytes.fromhex("e90d00")),),
        ),
        Probe(arch="aarch64", listing=_AARCH64, loop=5, arguments=("-bios", "{image}")),
        Probe(arch="riscv64", listing=_RISCV64, loop=6, arguments=("-bios", "none", "-kernel", "{image}")),
    )
}
