/*
 * boot.S - from the PVH entry point to C in ring 3, on every processor.
 *
 * The bare guest does its work in ring 3. Some KVMs execute ring 3 natively but
 * emulate ring 0 instruction by instruction, and only the plain integer ones; so
 * this file keeps ring 0 to what cannot be done elsewhere, with instructions that
 * every KVM's emulator has. All page tables, the GDT, IDT and TSSes are writable
 * from ring 3, which fills in what needs more than a few instructions (cpu.c).
 *
 * What ring 0 still does:
 *   - the way into long mode, of the boot processor and of the others;
 *   - gates for port I/O, HLT and the interrupt flag. They are entered by UD2 and not by INT, because
 *     some KVMs turn an INT of ring 3 into #UD anyway, and all deliver #UD as it should be;
 *   - interrupt handlers that count and acknowledge, nothing else;
 *   - exceptions, by returning to a C function in ring 3 that reports and ends.
 */
#include "layout.h"

	.section .note.pvh, "a", @note
	.balign	4
	.long	4, 4, 18		/* name bytes, value bytes, XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.long	_start

/* ---- 32-bit entry: EBX has the hvm_start_info, paging is off ---- */
	.section .text.boot, "ax"
	.code32
	.globl	_start
_start:
	cli
	cld
	/* The entry stamp: the host times the arrival of this byte. */
	mov	$COM1, %edx
	mov	$'B', %al
	out	%al, %dx
	mov	%ebx, start_info
	/* A firmware may have left the 8259s and the PIT running. */
	mov	$0xff, %al
	out	%al, $0x21
	out	%al, $0xa1
	xor	%ebp, %ebp

/* EBP is the processor's number from here to C. */
enter_long_mode:
	cmp	$MAX_CPUS, %ebp
	jae	park
	mov	$0x620, %eax		/* CR4: PAE, OSFXSR, OSXMMEXCPT */
	mov	%eax, %cr4
	mov	$pml4, %eax
	mov	%eax, %cr3
	mov	$0xc0000080, %ecx	/* EFER */
	xor	%edx, %edx
	mov	$0x100, %eax		/* LME */
	wrmsr
	mov	$0x80000033, %eax	/* CR0: PG, NE, ET, MP, PE */
	mov	%eax, %cr0
	lgdt	gdtr
	ljmp	$SEL_CODE0, $long_mode
park:
	hlt
	jmp	park

	.code64
long_mode:
	mov	$SEL_DATA0, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	/* This processor's ring-0 stack, used by every gate and handler. */
	mov	%ebp, %eax
	inc	%eax
	shl	$RING0_STACK_SHIFT, %eax
	add	$ring0_stacks, %eax
	mov	%rax, %rsp
	/* TSS: RSP0 at offset 4. */
	mov	%ebp, %eax
	shl	$TSS_SHIFT, %eax
	add	$tss, %eax
	mov	%rsp, 4(%rax)
	/* Its descriptor: limit 103, base < 4 GiB, type 9 (available 64-bit TSS). */
	mov	%ebp, %edi
	shl	$4, %edi
	add	$gdt + SEL_TSS, %edi
	movw	$103, (%rdi)
	mov	%ax, 2(%rdi)
	shr	$16, %eax
	mov	%al, 4(%rdi)
	movb	$0x89, 5(%rdi)
	movb	$0, 6(%rdi)
	mov	%ah, 7(%rdi)
	movq	$0, 8(%rdi)
	mov	%ebp, %eax
	shl	$4, %eax
	add	$SEL_TSS, %eax
	ltr	%ax
	lidt	idtr
	/* To ring 3 with interrupts off: the IDT is still empty. */
	mov	%ebp, %eax
	inc	%eax
	shl	$RING3_STACK_SHIFT, %eax
	add	$ring3_stacks - 8, %eax	/* as after a call: RSP = 8 (mod 16) */
	pushq	$SEL_DATA3 | 3
	push	%rax
	pushq	$2			/* RFLAGS: only the bit that is always 1 */
	pushq	$SEL_CODE3 | 3
	pushq	$cpu_main
	mov	%ebp, %edi
	iretq

/* ---- exceptions 0 to 31: note them, go on in fault_main() in ring 3 ---- */
	.globl	exception_stubs
	.balign	16
exception_stubs:
	.set	v, 0
	.rept	32
	.balign	16
	.if	(v == 8) || (v >= 10 && v <= 14) || (v == 17) || (v == 21)
	.else
	pushq	$0			/* no error code of its own */
	.endif
	pushq	$v
	jmp	exception
	.set	v, v + 1
	.endr
exception:
	pop	%rax
	mov	%rax, fault_vector
	pop	%rax
	mov	%rax, fault_error
	mov	(%rsp), %rax
	mov	%rax, fault_rip
	mov	8(%rsp), %rax
	mov	%rax, fault_cs
	mov	%cr2, %rax
	mov	%rax, fault_address
	movq	$fault_main, (%rsp)
	movq	$SEL_CODE3 | 3, 8(%rsp)
	movq	$2, 16(%rsp)
	movq	$fault_stack_top - 8, 24(%rsp)
	movq	$SEL_DATA3 | 3, 32(%rsp)
	iretq

/* ---- interrupts: one counter a vector, end of interrupt, back ---- */
	.globl	irq_stubs
	.balign	16
irq_stubs:
	.set	v, 0
	.rept	IRQ_VECTORS
	.balign	16
	incl	irq_count + 4 * v
	jmp	end_of_interrupt
	.set	v, v + 1
	.endr
end_of_interrupt:
	push	%rax
	mov	$LAPIC + 0xb0, %eax
	movl	$0, (%rax)
	pop	%rax
	.globl	spurious_stub
spurious_stub:
	iretq

/*
 * ---- gates: UD2 in ring 3 with the gate's address in RCX (cpu.c has the C side). Any other
 * #UD is what it seems. ----
 */
	.globl	undefined_stub
undefined_stub:
	cmp	$gates, %rcx
	jb	1f
	cmp	$gates_end, %rcx
	jae	1f
	addq	$2, (%rsp)		/* behind the UD2 */
	jmp	*%rcx
1:	pushq	$0
	pushq	$6
	jmp	exception

	.globl	gate_outb, gate_inb, gate_outw, gate_outl, gate_wait, gate_sti, gate_cli
gates:
gate_outb:
	out	%al, %dx
	iretq
gate_inb:
	in	%dx, %al
	iretq
gate_outw:
	out	%ax, %dx
	iretq
gate_outl:
	out	%eax, %dx
	iretq
/* Sleep until the counter at RDI is no longer ESI. Interrupts are off on entry, and
   STI lets none in before HLT has begun: a count that moves meanwhile wakes it. */
gate_wait:
	cmp	%esi, (%rdi)
	jne	1f
	sti
	hlt
1:	iretq
gate_sti:
	orl	$0x200, 16(%rsp)
	iretq
gate_cli:
	andl	$~0x200, 16(%rsp)
	iretq
gates_end:

/* ---- other processors: real mode at AP_START after SIPI ---- */
	.globl	ap_start, ap_end
	.code16
ap_start:
	cli
	xor	%ax, %ax
	mov	%ax, %ds
	lgdtl	AP_START + ap_gdtr - ap_start
	mov	$0x11, %eax		/* CR0: ET, PE */
	mov	%eax, %cr0
	ljmpl	$SEL_CODE32, $ap_protected
	.balign	4
ap_gdtr:
	.word	GDT_BYTES - 1
	.long	gdt
ap_end:
	.code32
ap_protected:
	mov	$SEL_DATA0, %eax
	mov	%eax, %ds
	mov	%eax, %ss
	mov	LAPIC + 0x20, %ebp	/* local APIC ID: the processor's number */
	shr	$24, %ebp
	jmp	enter_long_mode

/* ---- tables; ring 3 writes to them too ---- */
	.data
	.balign	4096
	.globl	pml4, pdpt
pml4:	.quad	pdpt + 7
	.fill	511, 8, 0
pdpt:	.quad	pd + 7, pd + 0x1007, pd + 0x2007, pd + 0x3007
	.fill	508, 8, 0
/* 0 to 4 GiB in 2 MiB pages for ring 3, accessed and dirty; not cached from
   3 GiB, where no RAM is. */
pd:
	.set	a, 0
	.rept	1536
	.quad	a + 0xe7
	.set	a, a + 0x200000
	.endr
	.rept	512
	.quad	a + 0xff
	.set	a, a + 0x200000
	.endr
	.globl	gdt, idt, tss
gdt:	.quad	0
	.quad	0x00af9b000000ffff	/* SEL_CODE0, 64 bit */
	.quad	0x00cf93000000ffff	/* SEL_DATA0 */
	.quad	0x00affb000000ffff	/* SEL_CODE3, 64 bit */
	.quad	0x00cff3000000ffff	/* SEL_DATA3 */
	.quad	0x00cf9b000000ffff	/* SEL_CODE32 */
	.fill	2 * MAX_CPUS, 8, 0	/* SEL_TSS */
	.balign	16
tss:	.rept	MAX_CPUS
	.fill	102, 1, 0
	.word	104			/* no I/O permission bitmap */
	.fill	(1 << TSS_SHIFT) - 104, 1, 0
	.endr
	.balign	16
gdtr:	.word	GDT_BYTES - 1
	.quad	gdt
	.balign	16
idtr:	.word	256 * 16 - 1
	.quad	idt
	.balign	8
	.globl	start_info, fault_vector, fault_error, fault_rip, fault_cs, fault_address
start_info:	.quad	0
fault_vector:	.quad	0
fault_error:	.quad	0
fault_rip:	.quad	0
fault_cs:	.quad	0
fault_address:	.quad	0

	.bss
	.balign	4096
idt:	.skip	256 * 16
	.globl	irq_count
irq_count:	.skip	4 * IRQ_VECTORS
	.balign	4096
ring0_stacks:	.skip	MAX_CPUS << RING0_STACK_SHIFT
ring3_stacks:	.skip	MAX_CPUS << RING3_STACK_SHIFT
		.skip	8192
fault_stack_top:
	.section .note.GNU-stack, "", @progbits
