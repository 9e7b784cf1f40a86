/* What runs cases inside QEMU's machine "virt": no operating system, just this, in M-mode, where all memory is as it is.
 * The host has put it into memory, with the page tables of user mode (vmtest/executors/qemu_riscv.py, which has the
 * layout, too).
 *
 * Source: the RISC-V privileged specification, 3 (machine level) and 4.4 (Sv39); QEMU's hw/riscv/virt.c for addresses
 * and interrupts.
 */

.equ RAM, 0x80000000
.equ TABLE, RAM + 0x10000
.equ CONTROL, RAM + 0x20000
.equ CODE_PAGE, RAM + 0x22000
.equ DATA_PAGE, RAM + 0x23000
.equ SLOTS, RAM + 0x200000
.equ UART, 0x10000000
.equ UART_STATUS, 5
.equ CLOCK, 0x0200bff8			/* mtime; mtimecmp */
.equ ALARM, 0x02004000
.equ PLIC, 0x0c000000
.equ PLIC_ENABLE, 0x2000
.equ PLIC_CLAIM, 0x200004
.equ UART_INTERRUPT, 10

/* In CONTROL: cases in this batch, the one that runs, ticks since it began. */
.equ INDEX, 8
.equ TICKS, 16

/* A slot: x1 to x31, f0 to f31, and what is the same for all instruction sets. */
.equ SLOT_SIZE, 0x3000
.equ CODE, 0x600
.equ PAGES, 0x640
.equ PC, 0x648
.equ VECTOR, 0x650
.equ ERROR, 0x658
.equ ADDRESS, 0x660
.equ WINDOW, 0x1000

.equ TIMEOUT, 0x100			/* a cause that no exception has */
.equ TICKS_MOST, 2
.equ TICK, 500000			/* 50 ms: a tick makes a conditional store fail that is under way */

.equ MIE_TIMER, 1 << 7
.equ MIE_EXTERNAL, 1 << 11
.equ MSTATUS, 3 << 13 | 1 << 7		/* FS: dirty; MPIE; MPP: user */

/* \how is ld or sd, of x1 to x30, in the slot \slot. */
.macro general how, slot
.irp number, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
	\how	x\number, 8 * (\number - 1)(\slot)
.endr
.endm
.macro floats how, slot
.irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	\how	f\number, 8 * (31 + \number)(\slot)
.endr
.endm

.text
.balign 4096
.option norvc
.globl _start
_start:
	lla	t0, trap
	csrw	mtvec, t0
	li	t0, -1				/* user mode may reach all memory, by its page tables */
	csrw	pmpaddr0, t0
	li	t0, 0x1f
	csrw	pmpcfg0, t0
	li	t0, TABLE >> 12 | 8 << 60
	csrw	satp, t0
	sfence.vma
	li	t0, 2				/* as under Linux user mode may read the time, and no counter */
	csrw	mcounteren, t0
	csrw	scounteren, t0
	csrw	medeleg, zero
	csrw	mideleg, zero
	li	t0, PLIC
	li	t1, 1
	sw	t1, 4 * UART_INTERRUPT(t0)	/* its priority */
	li	t2, PLIC + PLIC_ENABLE
	li	t1, 1 << UART_INTERRUPT
	sw	t1, 0(t2)
	li	s1, UART
	li	t1, 1
	sb	t1, 1(s1)			/* an interrupt where there is a byte */
	li	s2, CONTROL

/* A byte to the host says that we wait; one from it says that there is a batch. */
tell:
	li	t0, MIE_EXTERNAL
	csrw	mie, t0
	li	t0, '.'
	sb	t0, 0(s1)
wait:
	lbu	t0, UART_STATUS(s1)
	andi	t0, t0, 1
	bnez	t0, 1f
	wfi
	j	wait
1:	lbu	t0, 0(s1)
	li	t1, PLIC + PLIC_CLAIM
	lw	t0, 0(t1)
	sw	t0, 0(t1)
	li	s0, SLOTS
	li	t0, MIE_TIMER
	csrw	mie, t0
	li	t0, CLOCK
	ld	t0, 0(t0)
	li	t1, TICK
	add	t0, t0, t1
	li	t1, ALARM
	sd	t0, 0(t1)

load:						/* s0 is the slot, s1 the serial port, s2 CONTROL */
	ld	t0, 0(s2)
	ld	t1, INDEX(s2)
	bgeu	t1, t0, tell
	li	a0, CODE_PAGE
	li	a1, CODE_PAGE + 4096 - 64
.irp place, 0, 8, 16, 24, 32, 40, 48, 56
	ld	t0, CODE + \place(s0)
	sd	t0, \place(a1)
.endr
	/* What a case has written to the rest of the page goes, if it has. */
	mv	a2, a0
1:	ld	t0, 0(a2)
	ld	t1, 8(a2)
	ld	t2, 16(a2)
	ld	t3, 24(a2)
	or	t0, t0, t1
	or	t2, t2, t3
	or	t0, t0, t2
	bnez	t0, 2f
	addi	a2, a2, 32
	bltu	a2, a1, 1b
	j	3f
2:	sd	zero, 0(a0)
	addi	a0, a0, 8
	bltu	a0, a1, 2b
3:	ld	s3, PAGES(s0)
	li	a0, DATA_PAGE
	li	a3, WINDOW
	add	a1, s0, a3
	andi	t0, s3, 1
	beqz	t0, 4f
	call	copy_page
4:	andi	t0, s3, 2
	li	a0, DATA_PAGE + 4096
	li	a3, WINDOW + 4096
	add	a1, s0, a3
	beqz	t0, 5f
	call	copy_page
5:	fence.i
	sd	zero, TICKS(s2)
	csrw	mscratch, s0
	ld	t0, PC(s0)
	csrw	mepc, t0
	li	t0, MSTATUS
	csrw	mstatus, t0
	csrw	fcsr, zero
	mv	x31, s0
	floats	fld, x31
	general	ld, x31
	ld	x31, 8 * 30(x31)
	mret

copy_page:					/* from a1 to a0, which stay */
	li	a2, 4096
	add	a2, a2, a0
	mv	a4, a1
	mv	a5, a0
1:	ld	t0, 0(a4)
	ld	t1, 8(a4)
	ld	t2, 16(a4)
	ld	t3, 24(a4)
	sd	t0, 0(a5)
	sd	t1, 8(a5)
	sd	t2, 16(a5)
	sd	t3, 24(a5)
	addi	a4, a4, 32
	addi	a5, a5, 32
	bltu	a5, a2, 1b
	ret

.balign 4
trap:						/* mscratch is the slot, where nothing but what the case began with is lost */
	csrrw	x31, mscratch, x31
	sd	x30, 8 * 29(x31)
	csrr	x30, mcause
	bltz	x30, tick
done:
	sd	x30, VECTOR(x31)
	ld	x30, 8 * 29(x31)
	general	sd, x31
	floats	fsd, x31
	mv	s0, x31
	csrr	t0, mscratch
	sd	t0, 8 * 30(s0)
	csrr	t0, mepc
	sd	t0, PC(s0)
	csrr	t0, mtval
	sd	t0, ADDRESS(s0)
	sd	zero, ERROR(s0)
	li	s1, UART
	li	s2, CONTROL
	/* Pages that differ from what they began with are given back, and all are zeros again. */
	ld	s3, PAGES(s0)
	li	s4, 0				/* which page, as a bit; which have been written to */
	li	s5, 1
	li	a0, DATA_PAGE
	li	a3, WINDOW
	add	a1, s0, a3
next_page:
	li	a2, 4096
	add	a2, a2, a0
	mv	a5, a0
	and	t0, s3, s5
	beqz	t0, 2f
	mv	a4, a1
1:	ld	t0, 0(a4)
	ld	t1, 0(a5)
	bne	t0, t1, written
	addi	a4, a4, 8
	addi	a5, a5, 8
	bltu	a5, a2, 1b
	j	zero
2:	ld	t0, 0(a5)
	ld	t1, 8(a5)
	or	t0, t0, t1
	bnez	t0, written
	addi	a5, a5, 16
	bltu	a5, a2, 2b
	j	page_done
written:
	or	s4, s4, s5
	mv	s6, a0				/* to the slot: copy_page has it the other way */
	mv	s7, a1
	mv	a0, s7
	mv	a1, s6
	call	copy_page
	mv	a0, s6
	mv	a1, s7
	li	a2, 4096
	add	a2, a2, a0
zero:
	mv	a5, a0
1:	sd	zero, 0(a5)
	sd	zero, 8(a5)
	sd	zero, 16(a5)
	sd	zero, 24(a5)
	addi	a5, a5, 32
	bltu	a5, a2, 1b
page_done:
	mv	a0, a2
	li	a3, 4096
	add	a1, a1, a3
	slli	s5, s5, 1
	li	t0, 4
	bltu	s5, t0, next_page
	sd	s4, PAGES(s0)
	li	t0, SLOT_SIZE
	add	s0, s0, t0
	ld	t0, INDEX(s2)
	addi	t0, t0, 1
	sd	t0, INDEX(s2)
	j	load

tick:						/* x31 is the slot, mscratch the case's x31 */
	sd	x29, 8 * 28(x31)
	li	x30, CLOCK
	ld	x30, 0(x30)
	li	x29, TICK
	add	x30, x30, x29
	li	x29, ALARM
	sd	x30, 0(x29)
	li	x29, CONTROL
	ld	x30, TICKS(x29)
	addi	x30, x30, 1
	sd	x30, TICKS(x29)
	addi	x29, x30, -TICKS_MOST
	li	x30, TIMEOUT
	bgez	x29, done
	ld	x29, 8 * 28(x31)
	ld	x30, 8 * 29(x31)
	csrrw	x31, mscratch, x31
	mret
