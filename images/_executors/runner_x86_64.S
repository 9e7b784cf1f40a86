/* What runs cases inside QEMU: no operating system, just this. The host has put it into memory at IMAGE, with the
 * tables that the CPU wants (vmtest/executors/qemu_x86.py, which has the layout, too); it begins in real mode.
 *
 * A case goes by four steps: ring 3 loads vectors and x87 (XRSTOR), ring 3 runs the case, whose exception is its end,
 * ring 3 stores vectors and x87, and ring 0 gives the outcome. All that could be emulated badly where ring 0 is slow
 * and in software, as in some hosts' KVM, is done in ring 3.
 *
 * Source: Intel SDM, volume 3, chapters 4 (paging), 6 (interrupts) and 9.8 (64-bit mode); volume 1, chapter 13 (XSAVE).
 */
.intel_syntax noprefix

.set KERNEL, -0x80000000         /* where all physical memory is, for ring 0 */
.set USER, 0x40000000            /* where the first page of this image and the slots are, for ring 3, in the setup map */
.set IMAGE, 0x8000
.set RING3_LOAD, 0x10
.set RING3_STORE, 0x20
.set RING3_STORE_KEYLESS, 0x30
.set SETUP_MAP, 0x10000
.set CASE_MAP, 0x11000
.set GDT, 0x1d000
.set IDT, 0x1e000
.set STACK, KERNEL + 0x20000     /* its end */
.set CODE_PTE, KERNEL + 0x1b000
.set DATA_PTE, KERNEL + 0x1c000
.set CODE_PAGE, 0x22000
.set DATA_PAGE, 0x23000
.set SLOTS, 0x200000

.set COUNT, KERNEL + 0x20000     /* cases in this batch */
.set INDEX, KERNEL + 0x20008     /* the one that runs */
.set TICKS, KERNEL + 0x20010     /* of the timer, since the case began */
.set PHASE, KERNEL + 0x20018     /* what comes after the next exception */
.set SLOT, KERNEL + 0x20020      /* the case's */
.set SPOILED, KERNEL + 0x20028   /* whether a case has left what cannot be taken back */

/* A slot: XSAVE area, general registers, and what is the same for all instruction sets. */
.set SLOT_SIZE, 0x3000
.set GENERAL, 0x340
.set CODE, 0x600
.set PAGES, 0x640
.set PC, 0x648
.set VECTOR, 0x650
.set ERROR, 0x658
.set ADDRESS, 0x660
.set WINDOW, 0x1000

.set TIMEOUT, 0x100              /* vectors that no exception has */
.set UNSUPPORTED, 0x101
.set TICKS_MOST, 5               /* of 10 ms */
.set RING0_DATA, 0x18
.set RING3_DATA, 0x2b
.set RING3_CODE, 0x33
.set PRESENT_WRITABLE_USER, 7
.set DIRTY, 0x40
.set VIF_VIP, 0x180000

.text
.balign 4096
.globl _start
.code16
_start:
	jmp	real_mode

/* Ring 3's part, in the page that ring 3 sees. edi is its view of the slot. #UD is what gets back everywhere. */
.org RING3_LOAD
.code64
	fninit						/* QEMU's XRSTOR leaves the last x87 instruction's address */
	xrstor64 [rdi]
	ud2
.org RING3_STORE
	xor	eax, eax				/* the case may have left keys that forbid all memory */
	xor	ecx, ecx
	xor	edx, edx
	wrpkru
.org RING3_STORE_KEYLESS, 0x90
	mov	eax, 7					/* x87 SSE AVX */
	xor	edx, edx
	xsave64	[rdi]
	ud2

.org 0x40
.code16
real_mode:
	cli
	xor	ax, ax
	mov	ds, ax
	.byte	0x66, 0x0f, 0x01, 0x16			/* lgdt, of 32 bits */
	.word	IMAGE + (gdt_low - _start)
	mov	eax, cr0
	or	al, 1
	mov	cr0, eax
	.byte	0x66, 0xea				/* jmp 8:protected_mode */
	.long	IMAGE + (protected_mode - _start)
	.word	8
.code32
protected_mode:
	mov	eax, RING0_DATA
	mov	ds, eax
	mov	es, eax
	mov	ss, eax
	mov	eax, 0xfee00000				/* the local APIC: on, and the PIC's interrupts go through it */
	mov	dword ptr [eax + 0xf0], 0x1ff
	mov	dword ptr [eax + 0x350], 0x700
	mov	eax, 0x6e0				/* PAE MCE PGE OSFXSR OSXMMEXCPT */
	mov	cr4, eax
	mov	eax, SETUP_MAP
	mov	cr3, eax
	mov	ecx, 0xc0000080				/* EFER */
	rdmsr
	or	eax, 0x901				/* SCE LME NXE */
	wrmsr
	mov	eax, 0x80010033				/* PG WP NE ET MP PE */
	mov	cr0, eax
	.byte	0xea					/* jmp 16:long_mode */
	.long	IMAGE + (long_mode - _start)
	.word	16
.code64
long_mode:
	lea	rax, [rip + high]			/* whose address is still the physical one */
	add	rax, KERNEL
	jmp	rax

.balign 8
gdt_low:
	.word	0x7f
	.long	GDT
.balign 8
gdt_high:
	.word	0x7f
	.quad	KERNEL + GDT
.balign 8
idt_high:
	.word	0xfff
	.quad	KERNEL + IDT

/* The 256 exceptions' entries, 16 bytes each: they leave the vector and an error code on the stack. */
.org 0x1000
.set number, 0
.rept 256
.balign 16
.if number == 0x20
	jmp	tick
.elseif number == 0x24 || number == 0x27		/* the serial port's, whoever waits for it looks there; a spurious one */
	jmp	end_of_interrupt
.else
.if !(number == 8 || number >= 10 && number <= 14 || number == 17 || number == 21 || number == 29 || number == 30)
	push	0
.endif
	push	number
	jmp	[PHASE]
.endif
.set number, number + 1
.endr

.org 0x2000
system_call:						/* with the case's stack: none of it is told */
	mov	rsp, STACK - 40
	push	0
	push	UNSUPPORTED
	jmp	[PHASE]

tick:
	push	rax
	mov	al, 0x20
	out	0x20, al
	inc	qword ptr [TICKS]
	test	byte ptr [rsp + 16], 3			/* the ring that it has interrupted */
	jz	1f
	cmp	qword ptr [TICKS], TICKS_MOST
	jae	2f
1:	pop	rax
	iretq
2:	pop	rax
	push	0
	push	TIMEOUT
	jmp	[PHASE]

end_of_interrupt:
	push	rax
	mov	al, 0x20
	out	0x20, al
	pop	rax
	iretq

.macro outb port, value
	mov	dx, \port
	mov	al, \value
	out	dx, al
.endm

.macro wrmsr_rax number
	mov	ecx, \number
	mov	rdx, rax
	shr	rdx, 32
	wrmsr
.endm

.macro wrmsrq number, value
	mov	rax, \value
	wrmsr_rax \number
.endm

high:
	mov	rsp, STACK
	lgdt	[rip + gdt_high]
	lidt	[rip + idt_high]
	mov	eax, 0x40
	ltr	ax
	/* As Linux does where the CPU has them: FSGSBASE, UMIP, protection keys, OSXSAVE. */
	mov	eax, 7
	xor	ecx, ecx
	cpuid
	mov	rsi, cr4
	mov	edi, ebx
	and	edi, 1
	shl	edi, 16
	or	rsi, rdi
	mov	edi, ecx
	and	edi, 4
	shl	edi, 9
	or	rsi, rdi
	and	ecx, 8
	shl	ecx, 19
	or	rsi, rcx
	or	rsi, 0x40000
	mov	cr4, rsi
	mov	eax, 13
	xor	ecx, ecx
	cpuid
	and	eax, 0x2e7				/* x87 SSE AVX AVX-512 PKRU */
	xor	edx, edx
	xor	ecx, ecx
	xsetbv
	mov	rax, 0x0023001000000000
	wrmsr_rax 0xc0000081				/* STAR */
	lea	rax, [rip + system_call]
	wrmsr_rax 0xc0000082				/* LSTAR, CSTAR, SYSENTER_EIP */
	wrmsr_rax 0xc0000083
	wrmsr_rax 0x176
	wrmsrq	0xc0000084, 0x47700			/* SFMASK */
	wrmsrq	0x174, 0x10				/* SYSENTER_CS, ESP */
	wrmsrq	0x175, STACK
	/* Interrupts 0 (a timer of 100 Hz) and 4 (the serial port), from vector 0x20 on. */
	outb	0x20, 0x11
	outb	0x21, 0x20
	outb	0x21, 4
	outb	0x21, 1
	outb	0x21, 0xee
	outb	0x43, 0x34
	outb	0x40, 11932 & 0xff
	outb	0x40, 11932 >> 8
	outb	0x3f9, 1
	outb	0x3fc, 0x0b

/* A byte to the host says that we wait; one from it says that there is a batch. */
tell:
	outb	0x3f8, '.'
wait:
	mov	dx, 0x3fd
	in	al, dx
	test	al, 1
	jnz	1f
	sti
	hlt
	cli
	jmp	wait
1:	mov	dx, 0x3f8
	in	al, dx
	mov	r15, KERNEL + SLOTS

load:							/* r15 is the slot, and the setup map is in force */
	mov	rax, [INDEX]
	cmp	rax, [COUNT]
	jae	tell
	mov	[SLOT], r15
	lea	rsi, [r15 + CODE]
	mov	rdi, KERNEL + CODE_PAGE + 4096 - 64
	mov	ecx, 8
	rep movsq
	lea	rsi, [r15 + WINDOW]
	mov	rdi, KERNEL + DATA_PAGE
	test	byte ptr [r15 + PAGES], 1
	jz	1f
	mov	ecx, 512
	rep movsq
1:	lea	rsi, [r15 + WINDOW + 4096]
	mov	rdi, KERNEL + DATA_PAGE + 4096
	test	byte ptr [r15 + PAGES], 2
	jz	1f
	mov	ecx, 512
	rep movsq
1:	mov	qword ptr [CODE_PTE], CODE_PAGE | PRESENT_WRITABLE_USER
	mov	qword ptr [DATA_PTE], DATA_PAGE | PRESENT_WRITABLE_USER
	mov	qword ptr [DATA_PTE + 8], DATA_PAGE + 4096 | PRESENT_WRITABLE_USER
	lea	rax, [rip + loaded]
	mov	[PHASE], rax
	lea	edi, [r15 + USER + KERNEL]		/* the low half of KERNEL is the same negated */
	mov	eax, -1
	mov	edx, eax
	push	RING3_DATA
	push	0
	push	2
	push	RING3_CODE
	push	USER + IMAGE + RING3_LOAD
	iretq

loaded:
	mov	rax, [rsp]
	mov	rsp, STACK
	mov	r15, [SLOT]
	cmp	eax, 6
	jne	not_loaded				/* such as an MXCSR that cannot be */
	mov	eax, CASE_MAP
	mov	cr3, rax
	xor	eax, eax
	mov	ds, eax
	mov	es, eax
	mov	fs, eax
	mov	gs, eax
	lldt	ax					/* QEMU 10.0 lets ring 3 load it, by 8E /6 */
	wrmsrq	0xc0000100, 0				/* FS and GS base */
	wrmsrq	0xc0000101, 0
	mov	qword ptr [TICKS], 0
	lea	rax, [rip + done]
	mov	[PHASE], rax
	push	RING3_DATA
	push	[r15 + GENERAL + 8 * 4]
	push	[r15 + GENERAL + 8 * 16]
	push	RING3_CODE
	push	[r15 + PC]
.set number, 0
.irp register, rax, rcx, rdx, rbx, r15, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14
.if number != 4						/* the stack pointer's place */
	mov	\register, [r15 + GENERAL + 8 * number]
.endif
.set number, number + 1
.endr
	mov	r15, [r15 + GENERAL + 8 * 15]
	iretq

done:							/* vector, error code, rip, cs, rflags, rsp, ss are on the stack */
	cld
	push	r15
	mov	r15, [SLOT]
.set number, 0
.irp register, rax, rcx, rdx, rbx, r15, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14
.if number != 4
	mov	[r15 + GENERAL + 8 * number], \register
.endif
.set number, number + 1
.endr
	pop	[r15 + GENERAL + 8 * 15]
	pop	[r15 + VECTOR]
	pop	[r15 + ERROR]
	pop	[r15 + PC]
	pop	rax
	pop	rax
	mov	[r15 + GENERAL + 8 * 16], rax
	pop	[r15 + GENERAL + 8 * 4]
	/* QEMU (7.2 to 10.0) lets ring 3 set these by an IRETD to virtual-8086 mode, and no IRETQ takes them away. */
	and	eax, VIF_VIP
	or	[SPOILED], eax
	mov	rsp, STACK
	mov	rax, cr2
	mov	[r15 + ADDRESS], rax
	mov	eax, SETUP_MAP
	mov	cr3, rax
	lea	rax, [rip + stored]
	mov	[PHASE], rax
	lea	edi, [r15 + USER + KERNEL]		/* the low half of KERNEL is the same negated */
	mov	rax, cr4
	bt	eax, 22					/* PKE */
	mov	eax, USER + IMAGE + RING3_STORE
	mov	ecx, USER + IMAGE + RING3_STORE_KEYLESS
	cmovnc	eax, ecx
	push	RING3_DATA
	push	0
	push	2
	push	RING3_CODE
	push	rax
	iretq

not_loaded:
	mov	qword ptr [r15 + VECTOR], UNSUPPORTED
stored:							/* pages that were written to are given back, and all are zeros again */
	mov	rsp, STACK
	mov	r15, [SLOT]
	mov	ebx, [r15 + PAGES]
	xor	ebp, ebp
	mov	edx, 0
1:	test	byte ptr [DATA_PTE + rdx * 8], DIRTY
	jz	2f
	bts	ebp, edx
	mov	rsi, rdx
	shl	rsi, 12
	lea	rdi, [r15 + rsi + WINDOW]
	add	rsi, KERNEL + DATA_PAGE
	mov	ecx, 512
	rep movsq
	bts	ebx, edx
2:	bt	ebx, edx
	jnc	3f
	mov	rdi, rdx
	shl	rdi, 12
	add	rdi, KERNEL + DATA_PAGE
	xor	eax, eax
	mov	ecx, 512
	rep stosq
3:	inc	edx
	cmp	edx, 2
	jb	1b
	mov	[r15 + PAGES], rbp
	test	byte ptr [CODE_PTE], DIRTY
	jz	4f
	mov	rdi, KERNEL + CODE_PAGE
	xor	eax, eax
	mov	ecx, 512
	rep stosq
4:	add	r15, SLOT_SIZE
	inc	qword ptr [INDEX]
	cmp	dword ptr [SPOILED], 0
	je	load
	lidt	[PHASE + 0x100]				/* zeros: a triple fault, at which QEMU ends, and the host starts another */
	ud2
