"""Which extensions of x86 an executor has, by what its own CPUID says.

Sources: Intel SDM, volume 2, CPUID, and volume 1, section 13.3 (XCR0); AMD64 APM, volume 3, appendix E. The names are
iced-x86's CpuidFeature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vmtest.model.case import Case, Outcome
from vmtest.model.isa import Isa

__all__ = ["cpuid_cases", "features_said"]

_LEAVES: tuple[tuple[int, int, str, str], ...] = (
    # leaf, subleaf, register, feature:bit
    (1, 0, "rdx", "FPU:0 TSC:4 MSR:5 CX8:8 SEP:11 CMOV:15 CLFSH:19 MMX:23 FXSR:24 SSE:25 SSE2:26"),
    (
        1, 0, "rcx",
        "SSE3:0 PCLMULQDQ:1 MONITOR:3 VMX:5 SMX:6 SSSE3:9 FMA:12 CMPXCHG16B:13 SSE4_1:19 SSE4_2:20 MOVBE:22 POPCNT:23"
        " AES:25 XSAVE:27 AVX:28 F16C:29 RDRAND:30",  # 27 is OSXSAVE: that it may be used
    ),
    (
        7, 0, "rbx",
        "FSGSBASE:0 SGX1:2 BMI1:3 HLE:4 AVX2:5 BMI2:8 INVPCID:10 RTM:11 MPX:14 AVX512F:16 AVX512DQ:17 RDSEED:18 ADX:19"
        " SMAP:20 AVX512_IFMA:21 CLFLUSHOPT:23 CLWB:24 AVX512PF:26 AVX512ER:27 AVX512CD:28 SHA:29 AVX512BW:30"
        " AVX512VL:31",
    ),
    (
        7, 0, "rcx",
        "PREFETCHWT1:0 AVX512_VBMI:1 PKU:4 WAITPKG:5 AVX512_VBMI2:6 CET_SS:7 GFNI:8 VAES:9 VPCLMULQDQ:10 AVX512_VNNI:11"
        " AVX512_BITALG:12 AVX512_VPOPCNTDQ:14 RDPID:22 KL:23 CLDEMOTE:25 MOVDIRI:27 MOVDIR64B:28 ENQCMD:29",
    ),
    (
        7, 0, "rdx",
        "AVX512_4VNNIW:2 AVX512_4FMAPS:3 UINTR:5 AVX512_VP2INTERSECT:8 SERIALIZE:14 TSXLDTRK:16 PCONFIG:18 CET_IBT:20"
        " AMX_BF16:22 AVX512_FP16:23 AMX_TILE:24 AMX_INT8:25",
    ),
    (
        7, 1, "rax",
        "SHA512:0 SM3:1 SM4:2 RAO_INT:3 AVX_VNNI:4 AVX512_BF16:5 CMPCCXADD:7 FRED:17 LKGS:18 AMX_FP16:21 HRESET:22"
        " AVX_IFMA:23 MSRLIST:27",
    ),
    (7, 1, "rdx", "AVX_VNNI_INT8:4 AVX_NE_CONVERT:5 AMX_COMPLEX:8 AVX_VNNI_INT16:10 PREFETCHITI:14"),
    (0xD, 1, "rax", "XSAVEOPT:0 XSAVEC:1 XSAVES:3"),
    (0x14, 0, "rbx", "PTWRITE:4"),
    (
        0x80000001, 0, "rcx",
        "SVM:2 LZCNT:5 SSE4A:6 PREFETCHW:8 XOP:11 SKINIT:12 LWP:15 FMA4:16 TBM:21 MONITORX:29",
    ),
    (0x80000001, 0, "rdx", "SYSCALL:11 RDTSCP:27 X64:29 D3NOWEXT:30 D3NOW:31"),
    (0x80000008, 0, "rbx", "CLZERO:0 INVLPGB:3 RDPRU:4 MCOMMIT:8 WBNOINVD:9"),
)  # fmt: skip
_ASKED = tuple(dict.fromkeys((leaf, subleaf) for leaf, subleaf, _, _ in _LEAVES))
_ALWAYS = "INTEL8086 INTEL186 INTEL286 INTEL386 INTEL486 X64 MULTIBYTENOP PAUSE FPU287 FPU387 CPUID RDPMC"
"""What every 64-bit CPU has: no bit tells of it."""
_AVX, _AVX512, _AMX = 0x6, 0xE6, 0x60000  # of XCR0


def cpuid_cases(row: Isa) -> list[Case]:
    """What an executor is to run to be asked: CPUID a leaf, the highest of both ranges, and XGETBV."""
    lines = [f"{row.name} 0fa2 {_a(row)}={leaf:#x} {_c(row)}={subleaf}" for leaf, subleaf in _ASKED]
    most = [f"{row.name} 0fa2 {_a(row)}={base:#x}" for base in (0, 0x80000000)]
    return [Case.parse(line) for line in (*lines, *most, f"{row.name} 0f01d0")]


def features_said(row: Isa, outcomes: Sequence[Outcome]) -> frozenset[str]:
    """The features that the outcomes of ``cpuid_cases`` say."""
    *leaves, low, high, xgetbv = [_values(row, outcome) for outcome in outcomes]
    said = dict(zip(_ASKED, leaves, strict=True))
    enabled = xgetbv.get("rax", 0) if outcomes[-1].status == "ok" else 0
    found = set(_ALWAYS.split())
    for leaf, subleaf, register, bits in _LEAVES:
        if leaf > (high if leaf >> 31 else low).get("rax", 0):
            continue  # which would be answered as the highest one is
        value = said[leaf, subleaf].get(register, 0)
        for word in bits.split():
            name, _, bit = word.partition(":")
            if value >> int(bit) & 1 and enabled & (needed := _state(name)) == needed:
                found.add(name)
    return frozenset(found)


def _state(feature: str) -> int:
    """The bits of XCR0 without which a feature cannot be used."""
    if feature.startswith("AVX512"):
        return _AVX512
    if feature.startswith("AMX"):
        return _AMX
    return _AVX if feature.startswith(("AVX", "FMA", "F16C", "XOP", "VAES", "VPCLMUL", "SHA512", "SM3", "SM4")) else 0


def _values(row: Isa, outcome: Outcome) -> Mapping[str, int]:
    """Registers by their 64-bit names, none where it did not come to its end."""
    if outcome.status != "ok":
        return {}
    return {f"r{name[1:]}": value for name, value in row.values(outcome.state).items() if len(name) == 3}


def _a(row: Isa) -> str:
    return row.registers[0].name


def _c(row: Isa) -> str:
    return row.registers[1].name
