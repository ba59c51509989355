/*
 * cpu.c - processors, interrupts and time, from ring 3.
 *
 * Ring 3 builds the IDT in memory that ring 0 has loaded, programs the local APIC
 * and the IOAPIC through their memory windows, and starts the other processors with
 * INIT and SIPI. What only ring 0 can do goes through the UD2 gates of boot.S.
 */
#include "bare.h"

extern char exception_stubs[], undefined_stub[], irq_stubs[], spurious_stub[];
extern char gate_outb[], gate_inb[], gate_outw[], gate_outl[], gate_wait[], gate_sti[], gate_cli[];
extern char ap_start[], ap_end[];
extern u64 idt[512], pdpt[512];
extern u64 fault_vector, fault_error, fault_rip, fault_cs, fault_address;

void bare_main(void);

u64 tsc_khz = 1000000;

enum { /* local APIC registers */
	APIC_SVR = 0xf0, APIC_ICR_LOW = 0x300, APIC_ICR_HIGH = 0x310, APIC_LVT_TIMER = 0x320,
	APIC_TIMER_INITIAL = 0x380, APIC_TIMER_CURRENT = 0x390, APIC_TIMER_DIVIDE = 0x3e0,
};
#define APIC_DIVIDE_BY_1	0xb
#define APIC_TIMER_PERIODIC	0x20000
#define APIC_MASKED		0x10000

/* KVM's local APIC timer counts nanoseconds (its bus runs at 1 GHz). */

#define AP_TIMEOUT_NS		(2 * NS_PER_S)

void outb(u16 port, u8 v) { __asm__ volatile("ud2" ::"c"(gate_outb), "a"(v), "d"(port) : "memory"); }
void outw(u16 port, u16 v) { __asm__ volatile("ud2" ::"c"(gate_outw), "a"(v), "d"(port) : "memory"); }
void outl(u16 port, u32 v) { __asm__ volatile("ud2" ::"c"(gate_outl), "a"(v), "d"(port) : "memory"); }
void interrupts_on(void) { __asm__ volatile("ud2" ::"c"(gate_sti) : "memory", "cc"); }
void interrupts_off(void) { __asm__ volatile("ud2" ::"c"(gate_cli) : "memory", "cc"); }

u8 inb(u16 port)
{
	u32 v = 0;
	__asm__ volatile("ud2" : "+a"(v) : "c"(gate_inb), "d"(port) : "memory");
	return (u8)v;
}

void wait_while_equal(volatile u32 *counter, u32 seen)
{
	__asm__ volatile("ud2" ::"c"(gate_wait), "D"(counter), "S"(seen) : "memory", "cc");
}

static void set_gate(int vector, const void *handler)
{
	u64 a = (u64)handler;
	idt[2 * vector] = (a & 0xffff) | (u64)SEL_CODE0 << 16 | 0x8e00ull << 32 | (a >> 16 & 0xffff) << 48;
	idt[2 * vector + 1] = a >> 32;
}

static void build_idt(void)
{
	for (int v = 0; v < 32; v++)
		set_gate(v, exception_stubs + 16 * v);
	for (int i = 0; i < IRQ_VECTORS; i++)
		set_gate(IRQ_BASE + i, irq_stubs + 16 * i);
	set_gate(VECTOR_SPURIOUS, spurious_stub);
	set_gate(6, undefined_stub);
}

static void apic_write(u32 reg, u32 v) { mmio_write32(LAPIC + reg, v); }

void timer_oneshot(u32 ns)
{
	apic_write(APIC_TIMER_INITIAL, ns);
}

static int this_cpu(void) { return mmio_read32(LAPIC + 0x20) >> 24; }

static void timer_mode(u32 bits) { apic_write(APIC_LVT_TIMER, (IRQ_BASE + IRQ_TIMER(this_cpu())) | bits); }

void timer_periodic(u32 ns)
{
	timer_mode(APIC_TIMER_PERIODIC);
	apic_write(APIC_TIMER_INITIAL, ns);
}

static void apic_setup(void)
{
	apic_write(APIC_SVR, 0x100 | VECTOR_SPURIOUS);
	apic_write(APIC_TIMER_DIVIDE, APIC_DIVIDE_BY_1);
	timer_mode(0);
}

/* The host knows the rate exactly and says tsc_khz=; otherwise the local APIC's
   nanoseconds are the measure, good to about 0.1 %. */
static void tsc_setup(void)
{
	tsc_khz = arg_u64("tsc_khz", 0);
	if (tsc_khz)
		return;
	const u32 span_ns = 20000000;
	timer_mode(APIC_MASKED);
	apic_write(APIC_TIMER_INITIAL, 0xffffffff);
	u32 start = mmio_read32(LAPIC + APIC_TIMER_CURRENT), now;
	u64 t0 = rdtsc(), t1;
	do {
		now = mmio_read32(LAPIC + APIC_TIMER_CURRENT);
		t1 = rdtsc();
	} while (start - now < span_ns);
	tsc_khz = (t1 - t0) * 1000000 / (start - now);
	timer_oneshot(0);
	timer_mode(0);
}

void cpu_setup(void)
{
	build_idt();
	apic_setup();
	tsc_setup();
	interrupts_on();
}

void fault_main(void)
{
	print("\n");
	json_open("fault");
	json_u64("vector", fault_vector);
	json_u64("error", fault_error);
	json_u64("rip", fault_rip);
	json_u64("cs", fault_cs);
	json_u64("address", fault_address);
	json_close(0);
	finish(0);
}

/* ---- other processors ---- */

static struct {
	volatile u32 here;	/* it has reached C */
	volatile u32 turn;	/* a new number: there is work */
	volatile u32 done;	/* the last turn that it finished */
	void (*fn)(int cpu, void *arg);
	void *arg;
	u8 pad[32];		/* a cache line each: they spin on it */
} cpus[MAX_CPUS] __attribute__((aligned(64)));

static void ap_main(int cpu)
{
	apic_setup();
	interrupts_on();
	cpus[cpu].here = 1;
	for (u32 turn = 0;;) {
		if (cpus[cpu].turn == turn) {
			cpu_pause();
			continue;
		}
		turn = cpus[cpu].turn;
		full_barrier();
		cpus[cpu].fn(cpu, cpus[cpu].arg);
		full_barrier();
		cpus[cpu].done = turn;
	}
}

/* The first C of every processor, called by boot.S. */
void cpu_main(int cpu)
{
	if (cpu)
		ap_main(cpu);
	bare_main();
}

static void spin_ns(u64 ns)
{
	for (u64 end = rdtsc() + ns_to_tsc(ns); rdtsc() < end;)
		cpu_pause();
}

static void send_ipi(int cpu, u32 low)
{
	apic_write(APIC_ICR_HIGH, (u32)cpu << 24);
	apic_write(APIC_ICR_LOW, low);
}

int cpus_start(int n)
{
	n = MIN(n, MAX_CPUS);
	memcpy((void *)AP_START, ap_start, ap_end - ap_start);
	full_barrier();
	int up = 1;
	for (; up < n; up++) {
		if (cpus[up].here)
			continue;
		send_ipi(up, 0x4500);			/* INIT, assert */
		spin_ns(100000);
		send_ipi(up, 0x4600 | AP_START >> 12);	/* SIPI */
		u64 end = rdtsc() + ns_to_tsc(AP_TIMEOUT_NS);
		while (!cpus[up].here && rdtsc() < end)
			cpu_pause();
		if (!cpus[up].here)
			break;
	}
	return up;
}

void cpus_run(int n, void (*fn)(int, void *), void *arg)
{
	for (int i = 1; i < n; i++) {
		cpus[i].fn = fn;
		cpus[i].arg = arg;
		full_barrier();
		cpus[i].turn++;
	}
	fn(0, arg);
	for (int i = 1; i < n; i++)
		while (cpus[i].done != cpus[i].turn)
			cpu_pause();
}

/* ---- interrupt routing and mapping ---- */

void ioapic_route(u32 gsi, u8 vector)
{
	/* A second IOAPIC, where there is one, takes the pins from 24. */
	u64 base = IOAPIC + (gsi >= 24 ? 0x10000 : 0);
	u32 pin = gsi % 24;
	mmio_write32(base, 0x11 + 2 * pin);	/* high word: destination processor 0 */
	mmio_write32(base + 0x10, 0);
	mmio_write32(base, 0x10 + 2 * pin);	/* low word: fixed, active high, edge, unmasked */
	mmio_write32(base + 0x10, vector);
}

void map_high(u64 start, u64 end)
{
	for (u64 g = MAX(start, 4 * GIB) / GIB; g * GIB < end && g < 512; g++) {
		if (pdpt[g])
			continue;
		u64 *pd = alloc(4096, 4096);
		for (u64 i = 0; i < 512; i++)
			pd[i] = (g * GIB + i * 2 * MIB) | 0xe7;
		full_barrier();
		pdpt[g] = (u64)pd | 7;
	}
}
