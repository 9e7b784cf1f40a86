/* What runs cases inside QEMU's machine "virt": no operating system, just this. The host has put it into memory, with
 * the translation tables (vmtest/executors/qemu_arm.py, which has the layout, too); it begins in EL1 without MMU.
 *
 * Source: Arm ARM (DDI 0487), D1.4 (exceptions), D8 (translation); GICv2 (IHI 0048B); PL011 (DDI 0183); QEMU's
 * hw/arm/virt.c for addresses and interrupts. SCTLR_EL1 and TCR_EL1 are as Linux has them for a process, but for
 * pointer authentication, which is off.
 */

.equ KERNEL, 0xffffff8000000000		/* where all physical memory is, for EL1 */
.equ RAM, 0x40200000
.equ TABLE_1, RAM + 0x10000		/* of EL1, of EL0 */
.equ TABLE_0, RAM + 0x11000
.equ CONTROL, KERNEL + RAM + 0x20000
.equ CODE_PAGE, KERNEL + RAM + 0x22000
.equ DATA_PAGE, KERNEL + RAM + 0x23000
.equ SLOTS, KERNEL + RAM + 0x200000
.equ UART, KERNEL + 0x09000000
.equ GIC, KERNEL + 0x08000000		/* the distributor; the CPU's interface is 0x10000 behind it */

/* In CONTROL: cases in this batch, the one that runs, ticks since it began. */
.equ INDEX, 8
.equ TICKS, 16

/* A slot: x0 to x30, sp, nzcv, q0 to q31, and what is the same for all instruction sets. */
.equ SLOT_SIZE, 0x3000
.equ SLOT_SP, 248
.equ SLOT_NZCV, 256
.equ SLOT_VECTORS, 264
.equ CODE, 0x600
.equ PAGES, 0x640
.equ PC, 0x648
.equ VECTOR, 0x650
.equ ERROR, 0x658
.equ ADDRESS, 0x660
.equ WINDOW, 0x1000

.equ TIMEOUT, 0x100			/* a vector that no exception has */
.equ TICKS_MOST, 2
.equ TICKS_A_SECOND, 20			/* few: a tick makes an exclusive store fail that is under way */

/* \how is ldp or stp: x2 to x29, whose slot is sp; q0 to q31, from x0 on. */
.macro general how
	\how	x2, x3, [sp, #16]
	\how	x4, x5, [sp, #32]
	\how	x6, x7, [sp, #48]
	\how	x8, x9, [sp, #64]
	\how	x10, x11, [sp, #80]
	\how	x12, x13, [sp, #96]
	\how	x14, x15, [sp, #112]
	\how	x16, x17, [sp, #128]
	\how	x18, x19, [sp, #144]
	\how	x20, x21, [sp, #160]
	\how	x22, x23, [sp, #176]
	\how	x24, x25, [sp, #192]
	\how	x26, x27, [sp, #208]
	\how	x28, x29, [sp, #224]
.endm
.macro vectors how
	\how	q0, q1, [x0, #0]
	\how	q2, q3, [x0, #32]
	\how	q4, q5, [x0, #64]
	\how	q6, q7, [x0, #96]
	\how	q8, q9, [x0, #128]
	\how	q10, q11, [x0, #160]
	\how	q12, q13, [x0, #192]
	\how	q14, q15, [x0, #224]
	\how	q16, q17, [x0, #256]
	\how	q18, q19, [x0, #288]
	\how	q20, q21, [x0, #320]
	\how	q22, q23, [x0, #352]
	\how	q24, q25, [x0, #384]
	\how	q26, q27, [x0, #416]
	\how	q28, q29, [x0, #448]
	\how	q30, q31, [x0, #480]
.endm

.text
.balign 4096
.globl _start
_start:
	ldr	x0, =0x00ff			/* 0: normal, write-back; 1: device */
	msr	mair_el1, x0
	ldr	x0, =0x20b5193519		/* 39 bits each, 4 KiB, write-back, inner shareable, TBI0 */
	msr	tcr_el1, x0
	ldr	x0, =TABLE_1			/* for EL0, too, until we have left the physical addresses */
	msr	ttbr0_el1, x0
	msr	ttbr1_el1, x0
	mov	x0, #3 << 20			/* floating point for all; SVE and SME are trapped */
	msr	cpacr_el1, x0
	mov	x0, #2				/* EL0 may read the virtual counter */
	msr	cntkctl_el1, x0
	isb
	ldr	x0, =0x34d5d91d
	msr	sctlr_el1, x0
	isb
	ldr	x0, =KERNEL
	adr	x1, high
	orr	x1, x1, x0
	br	x1
high:
	adr	x0, vector_table
	msr	vbar_el1, x0
	ldr	x0, =TABLE_0
	msr	ttbr0_el1, x0
	tlbi	vmalle1
	dsb	ish
	isb
	/* Interrupts 27, the virtual timer, and 33, the serial port. */
	ldr	x1, =GIC
	mov	w0, #1
	str	w0, [x1]			/* GICD_CTLR */
	mov	w0, #1 << 27
	str	w0, [x1, #0x100]		/* GICD_ISENABLER0, 1 */
	mov	w0, #1 << 1
	str	w0, [x1, #0x104]
	mov	w0, #0x100
	str	w0, [x1, #0x820]		/* GICD_ITARGETSR8 */
	add	x1, x1, #0x10000
	mov	w0, #0xff
	str	w0, [x1, #4]			/* GICC_PMR */
	mov	w0, #1
	str	w0, [x1]			/* GICC_CTLR */
	ldr	x21, =UART
	mov	w0, #0x301
	str	w0, [x21, #0x30]		/* UARTCR: on, both ways */
	mov	w0, #0x10
	str	w0, [x21, #0x38]		/* UARTIMSC: receives */
	ldr	x20, =CONTROL

/* A byte to the host says that we wait; one from it says that there is a batch. */
tell:
	msr	cntv_ctl_el0, xzr
	mov	w0, #'.'
	str	w0, [x21]
wait:
	ldr	w0, [x21, #0x18]		/* UARTFR: nothing received */
	tbz	w0, #4, 1f
	wfi
	b	wait
1:	ldr	w0, [x21]
	ldr	x19, =SLOTS
	bl	set_timer

load:						/* x19 is the slot, x20 CONTROL, x21 the serial port */
	ldp	x0, x1, [x20]
	cmp	x1, x0
	b.hs	tell
	ldr	x2, =CODE_PAGE
	add	x3, x2, #4096 - 64
	add	x4, x19, #CODE
	ldp	x6, x7, [x4]
	ldp	x8, x9, [x4, #16]
	ldp	x10, x11, [x4, #32]
	ldp	x12, x13, [x4, #48]
	stp	x6, x7, [x3]
	stp	x8, x9, [x3, #16]
	stp	x10, x11, [x3, #32]
	stp	x12, x13, [x3, #48]
	/* What a case has written to the rest of the page goes, if it has. */
	mov	x4, x2
1:	ldp	x6, x7, [x4], #16
	ldp	x8, x9, [x4], #16
	orr	x6, x6, x7
	orr	x8, x8, x9
	orr	x6, x6, x8
	cbnz	x6, 2f
	cmp	x4, x3
	b.lo	1b
	b	3f
2:	stp	xzr, xzr, [x2], #16
	cmp	x2, x3
	b.lo	2b
3:	ldr	x5, [x19, #PAGES]
	ldr	x2, =DATA_PAGE
	add	x3, x19, #WINDOW
	tbz	x5, #0, 4f
	bl	copy_page
4:	tbz	x5, #1, 5f
	add	x2, x2, #4096
	add	x3, x3, #4096
	bl	copy_page
5:	ic	iallu
	dsb	ish
	isb
	str	xzr, [x20, #TICKS]
	mov	sp, x19
	ldr	x0, [x19, #PC]
	msr	elr_el1, x0
	ldr	x0, [x19, #SLOT_NZCV]
	and	x0, x0, #0xf0000000
	msr	spsr_el1, x0
	ldr	x0, [x19, #SLOT_SP]
	msr	sp_el0, x0
	msr	tpidr_el0, xzr
	msr	tpidrro_el0, xzr
	msr	fpcr, xzr
	msr	fpsr, xzr
	add	x0, x19, #SLOT_VECTORS
	vectors	ldp
	clrex
	general	ldp
	ldr	x30, [sp, #240]
	ldp	x0, x1, [sp]
	eret

copy_page:					/* from x3 to x2, which stay */
	mov	x0, #0
1:	add	x1, x3, x0
	ldp	x6, x7, [x1]
	ldp	x8, x9, [x1, #16]
	add	x1, x2, x0
	stp	x6, x7, [x1]
	stp	x8, x9, [x1, #16]
	add	x0, x0, #32
	cmp	x0, #4096
	b.lo	1b
	ret

set_timer:
	mrs	x0, cntfrq_el0
	mov	x1, #TICKS_A_SECOND
	udiv	x0, x0, x1
	msr	cntv_tval_el0, x0
	mov	x0, #1
	msr	cntv_ctl_el0, x0
	ret

/* The slot is sp, and what the case had in its registers is still in ours. */
done:
	stp	x0, x1, [sp]
	mrs	x0, esr_el1
save:						/* x0 is the syndrome */
	general	stp
	str	x30, [sp, #240]
	mov	x19, sp
	ldr	x20, =CONTROL
	ldr	x21, =UART
	lsr	x1, x0, #26
	and	x2, x0, #0x1ffffff
	str	x1, [x19, #VECTOR]
	str	x2, [x19, #ERROR]
	mrs	x0, far_el1
	str	x0, [x19, #ADDRESS]
	mrs	x0, elr_el1
	str	x0, [x19, #PC]
	mrs	x0, spsr_el1
	and	x0, x0, #0xf0000000
	str	x0, [x19, #SLOT_NZCV]
	mrs	x0, sp_el0
	str	x0, [x19, #SLOT_SP]
	add	x0, x19, #SLOT_VECTORS
	vectors	stp
	/* Pages that differ from what they began with are given back, and all are zeros again. */
	mov	x22, #0				/* which page */
	mov	x23, #0				/* which have been written to */
	ldr	x24, [x19, #PAGES]
	ldr	x2, =DATA_PAGE
	add	x3, x19, #WINDOW
next_page:
	lsr	x5, x24, x22
	mov	x0, #0
	tbz	x5, #0, 2f
1:	ldr	x6, [x2, x0]
	ldr	x7, [x3, x0]
	cmp	x6, x7
	b.ne	written
	add	x0, x0, #8
	cmp	x0, #4096
	b.lo	1b
	b	zero
2:	ldr	x6, [x2, x0]
	cbnz	x6, written
	add	x0, x0, #8
	cmp	x0, #4096
	b.lo	2b
	b	page_done
written:
	mov	x6, #1
	lsl	x6, x6, x22
	orr	x23, x23, x6
	mov	x4, x2				/* to the slot: copy_page has it the other way */
	mov	x2, x3
	mov	x3, x4
	bl	copy_page
	mov	x4, x2
	mov	x2, x3
	mov	x3, x4
zero:
	mov	x0, #0
1:	add	x1, x2, x0
	stp	xzr, xzr, [x1]
	stp	xzr, xzr, [x1, #16]
	add	x0, x0, #32
	cmp	x0, #4096
	b.lo	1b
page_done:
	add	x2, x2, #4096
	add	x3, x3, #4096
	add	x22, x22, #1
	cmp	x22, #2
	b.lo	next_page
	str	x23, [x19, #PAGES]
	add	x19, x19, #SLOT_SIZE
	ldr	x0, [x20, #INDEX]
	add	x0, x0, #1
	str	x0, [x20, #INDEX]
	b	load

tick:
	stp	x0, x1, [sp]
	stp	x2, x30, [sp, #16]
	bl	set_timer
	ldr	x1, =GIC + 0x10000
	ldr	w0, [x1, #0xc]			/* GICC_IAR, GICC_EOIR */
	str	w0, [x1, #0x10]
	ldr	x2, =CONTROL
	ldr	x0, [x2, #TICKS]
	add	x0, x0, #1
	str	x0, [x2, #TICKS]
	cmp	x0, #TICKS_MOST
	ldp	x2, x30, [sp, #16]
	mov	x0, #TIMEOUT << 26
	b.hs	save
	ldp	x0, x1, [sp]
	eret

.balign 2048
vector_table:				/* from EL1, which would be our own fault: the host looks after that */
.rept 8
	b	.
.balign 128
.endr
	b	done				/* from EL0: synchronous, interrupt, fast interrupt, error */
.balign 128
	b	tick
.balign 128
	b	tick
.balign 128
	b	done
.balign 128
.rept 4						/* from 32-bit EL0, where there is none */
	b	.
.balign 128
.endr
