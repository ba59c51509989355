/* layout.h - numbers that the assembly and the C share. Assembler-safe: no types. */
#ifndef LAYOUT_H
#define LAYOUT_H

#define COM1			0x3f8
#define LAPIC			0xfee00000
#define IOAPIC			0xfec00000

#define MAX_CPUS		8	/* bounded by the GDT, the stacks and the timer vectors */

/* GDT selectors; the ring-3 ones are used with RPL 3. */
#define SEL_CODE0		0x08
#define SEL_DATA0		0x10
#define SEL_CODE3		0x18
#define SEL_DATA3		0x20
#define SEL_CODE32		0x28
#define SEL_TSS			0x30	/* 16 bytes a processor */
#define GDT_BYTES		(SEL_TSS + 16 * MAX_CPUS)
#define TSS_SHIFT		7	/* 128 bytes a TSS */
#define RING0_STACK_SHIFT	12
#define RING3_STACK_SHIFT	16

/* Where other processors start: SIPI vector 0x08. Free in machine version 1. */
#define AP_START		0x8000

/* Vectors of interrupts: a timer for each processor, then devices. */
#define IRQ_BASE		0x50
#define IRQ_VECTORS		32
#define IRQ_TIMER(cpu)		(cpu)			/* index of a counter */
#define IRQ_DEVICE(i)		(MAX_CPUS + (i))
#define VECTOR_SPURIOUS		0xff

#endif
