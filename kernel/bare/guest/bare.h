/*
 * bare.h - what every part of the bare guest shares: types, the gates to ring 0,
 * time, the command line, output, memory. All C runs in ring 3, one thread for each
 * processor; nothing here is interrupted by other C, only by the counting stubs of boot.S.
 */
#ifndef BARE_H
#define BARE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define KIB		1024ul
#define MIB		(1024 * KIB)
#define GIB		(1024 * MIB)
#define NS_PER_S	1000000000ul
#define ARRAY_LEN(a)	(sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)	((a) < (b) ? (a) : (b))
#define MAX(a, b)	((a) > (b) ? (a) : (b))

/* A store is seen by the device before what follows is read. */
static inline void full_barrier(void) { __asm__ volatile("mfence" ::: "memory"); }
static inline void compiler_barrier(void) { __asm__ volatile("" ::: "memory"); }
static inline void cpu_pause(void) { __asm__ volatile("pause" ::: "memory"); }

static inline u64 rdtsc(void)
{
	u32 lo, hi;
	__asm__ volatile("lfence; rdtsc" : "=a"(lo), "=d"(hi)::"memory");
	return (u64)hi << 32 | lo;
}

static inline u32 mmio_read32(u64 addr) { return *(volatile u32 *)addr; }
static inline void mmio_write32(u64 addr, u32 v) { *(volatile u32 *)addr = v; }
static inline u8 mmio_read8(u64 addr) { return *(volatile u8 *)addr; }

/* cpu.c */
extern u64 tsc_khz;
extern volatile u32 irq_count[IRQ_VECTORS];	/* counted by boot.S */
void outb(u16 port, u8 v);
u8 inb(u16 port);
void outw(u16 port, u16 v);
void outl(u16 port, u32 v);
void interrupts_on(void);
void interrupts_off(void);
void wait_while_equal(volatile u32 *counter, u32 seen);	/* HLT; may return early */
void cpu_setup(void);			/* IDT, local APIC, TSC rate: first call of each processor's C */
int cpus_start(int n);			/* starts processors up to n in all; returns how many there are */
void cpus_run(int n, void (*fn)(int cpu, void *arg), void *arg);	/* on 0..n-1, waits for all */
void ioapic_route(u32 gsi, u8 vector);	/* edge triggered, to processor 0 */
void timer_oneshot(u32 ns);		/* this processor's local APIC timer; 0 stops it */
void timer_periodic(u32 ns);
void map_high(u64 start, u64 end);	/* identity map of [start, end) above 4 GiB, 2 MiB pages */

/* a * b / c with 128 bits between; the quotient must fit. */
static inline u64 mul_div(u64 a, u64 b, u64 c)
{
	u64 low, high;
	__asm__("mulq %3; divq %4" : "=&a"(low), "=&d"(high) : "0"(a), "r"(b), "r"(c) : "cc");
	return low;
}
static inline u64 tsc_to_ns(u64 t) { return mul_div(t, 1000000, tsc_khz); }
static inline u64 ns_to_tsc(u64 ns) { return mul_div(ns, tsc_khz, 1000000); }

/* lib.c */
void *memset(void *d, int c, size_t n);
void *memcpy(void *d, const void *s, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t str_len(const char *s);
int str_equal(const char *a, const char *b);
int str_starts(const char *s, const char *prefix);
u64 parse_number(const char *s, const char **end);	/* decimal or 0x, with K, M or G */
extern char cmdline[4096];
u64 arg_u64(const char *key, u64 otherwise);
int arg_str(const char *key, char *out, size_t room);	/* 1: there */
int arg_is(const char *key, const char *value);
void print(const char *fmt, ...) __attribute__((format(printf, 1, 2)));	/* %s %c %d %u %lu %x %lx */
void finish(int ok) __attribute__((noreturn));		/* ends the machine */
void fail(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));
void *alloc(u64 bytes, u64 align);	/* zeroed, never freed */
u64 ram_end(void);			/* of the range that starts below 16 MiB */

struct ram_range { u64 start, end; };
extern struct ram_range ram[16];
extern int ram_ranges;
void memory_setup(void);

/* A JSON object on one line; the only thing that tests read. */
void json_open(const char *test);
void json_u64(const char *key, u64 v);
void json_str(const char *key, const char *v);
void json_close(int ok);

/* xorshift64*: seeded, never 0. */
struct random { u64 s; };
static inline u64 random_next(struct random *r)
{
	r->s ^= r->s >> 12;
	r->s ^= r->s << 25;
	r->s ^= r->s >> 27;
	return r->s * 0x2545f4914f6cdd1dull;
}
/* Uniform enough in [0, n). */
static inline u64 random_below(struct random *r, u64 n)
{
	return (u64)((__uint128_t)random_next(r) * n >> 64);
}

/* Latencies: 8 buckets to each power of two of nanoseconds. */
struct histogram { u64 n, max, bucket[64 * 8]; };
void histogram_add(struct histogram *h, u64 ns);
void histogram_merge(struct histogram *into, const struct histogram *from);
u64 histogram_at(const struct histogram *h, u32 per_mille);
void json_histogram(const struct histogram *h);

/* The tests. Each prints its JSON line and returns whether it went well. */
int test_blk(void);
int test_blk_soak(void);
int test_blk_flushlog(void);
int test_hostile(void);
int test_net(void);
int test_console(void);
int test_rng(void);
int test_timer(void);
int test_dirty(void);
int test_cpus(void);

#endif
