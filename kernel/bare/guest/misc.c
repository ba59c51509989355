/* misc.c - tests without a disk: entropy, console, timer, processors, dirtying memory. */
#include "virtio.h"

/* ---- rng: bytes arrive, fill what was asked for, and look random ---- */

int test_rng(void)
{
	struct vdev *d = vdev_get(VIRTIO_ID_RNG, 0);
	if (!d)
		fail("rng: no device");
	u64 want = arg_u64("bytes", 64 * KIB), got = 0, requests = 0;
	u64 ones = 0;
	vdev_negotiate(d, VIRTIO_F_EVENT_IDX);
	struct vq *q = vq_setup(d, 0, 8);
	vdev_ready(d);
	u8 *buf = alloc(4096, 4096);
	while (got < want) {
		struct segment s = {buf, MIN(want - got, 4096)};
		u32 len = 0;
		memset(buf, 0, 4096);
		vq_add(q, &s, 0, 1, buf);
		vq_kick(q);
		while (!vq_poll(q, &len))
			vq_wait(q);
		if (!len || len > s.len)
			fail("rng: %u bytes for a buffer of %u", len, s.len);
		for (u32 i = 0; i < len; i++)
			ones += __builtin_popcount(buf[i]);
		got += len;
		requests++;
	}
	vdev_reset(d);
	/* Half of all bits, within 6 standard deviations: |ones - n/2| <= 6 * sqrt(n)/2. */
	u64 n = got * 8, off = ones > n / 2 ? ones - n / 2 : n / 2 - ones;
	int ok = off * off <= 9 * n;
	json_open("rng");
	json_u64("bytes", got);
	json_u64("requests", requests);
	json_u64("ones", ones);
	json_close(ok);
	return ok;
}

/* ---- console: port 0 without multiport; op=bulk sends a counted pattern, op=echo returns what comes ---- */

#define CONSOLE_BUF 4096
#define CONSOLE_DEPTH 8

static void console_send(struct vq *tx, u8 *buf, u32 len)
{
	struct segment s = {buf, len};
	while (!vq_add(tx, &s, 1, 0, buf))
		while (!vq_poll(tx, NULL))
			vq_wait(tx);
	vq_kick(tx);
}

static void console_drain(struct vq *tx)
{
	while (tx->free_count < tx->size)
		if (!vq_poll(tx, NULL))
			vq_wait(tx);
}

static void console_receive(struct vq *rx, u8 *buf)
{
	struct segment s = {buf, CONSOLE_BUF};
	if (!vq_add(rx, &s, 0, 1, buf))
		fail("console: receive ring full");
}

int test_console(void)
{
	struct vdev *d = vdev_get(VIRTIO_ID_CONSOLE, 0);
	if (!d)
		fail("console: no device");
	u64 want = arg_u64("bytes", MIB), done = 0;
	int echo = arg_is("op", "echo");
	vdev_negotiate(d, VIRTIO_F_EVENT_IDX);
	struct vq *rx = vq_setup(d, 0, 2 * CONSOLE_DEPTH), *tx = vq_setup(d, 1, CONSOLE_DEPTH);
	vdev_ready(d);
	u8 *bufs = alloc(2 * CONSOLE_DEPTH * CONSOLE_BUF, 4096);
	for (int i = 0; echo && i < CONSOLE_DEPTH; i++)
		console_receive(rx, bufs + i * CONSOLE_BUF);
	vq_kick(rx);
	print("console ready\n");
	u64 t0 = rdtsc();
	while (done < want) {
		if (!echo) {
			u8 *buf = bufs + done / CONSOLE_BUF % CONSOLE_DEPTH * CONSOLE_BUF;
			u32 n = MIN(want - done, CONSOLE_BUF);
			/* A buffer is free again once fewer than all of them are in flight. */
			while (tx->free_count == 0)
				if (!vq_poll(tx, NULL))
					vq_wait(tx);
			for (u32 i = 0; i < n; i++)
				buf[i] = (done + i) * 31 >> 3;
			console_send(tx, buf, n);
			done += n;
			continue;
		}
		u32 len;
		u8 *buf = vq_poll(rx, &len);
		if (!buf) {
			vq_wait(rx);
			continue;
		}
		console_send(tx, buf, len);
		console_drain(tx);
		done += len;
		console_receive(rx, buf);
		vq_kick(rx);
	}
	console_drain(tx);
	u64 ns = tsc_to_ns(rdtsc() - t0);
	vdev_reset(d);
	json_open("console");
	json_u64("bytes", done);
	json_u64("ns", ns);
	json_close(1);
	return 1;
}

/* ---- timer: how late one-shot interrupts are seen, spinning or sleeping ---- */

int test_timer(void)
{
	static struct histogram late;
	u64 count = arg_u64("ops", 1000), delay_ns = arg_u64("delay_ns", 100000);
	int sleep = arg_is("wait", "irq");
	volatile u32 *ticks = &irq_count[IRQ_TIMER(0)];
	for (u64 i = 0; i < count; i++) {
		u32 seen = *ticks;
		u64 due = rdtsc() + ns_to_tsc(delay_ns);
		timer_oneshot(delay_ns);
		while (*ticks == seen) {
			if (sleep)
				wait_while_equal(ticks, seen);
			else
				cpu_pause();
			if (rdtsc() > due + ns_to_tsc(10 * NS_PER_S))
				fail("timer: no interrupt within 10 s");
		}
		u64 now = rdtsc();
		histogram_add(&late, now > due ? tsc_to_ns(now - due) : 0);
	}
	json_open("timer");
	json_u64("ops", count);
	json_histogram(&late);
	json_close(1);
	return 1;
}

/* ---- cpus: every processor comes up and runs at the same time as the others ---- */

static volatile u64 cpu_loops[MAX_CPUS][8];
static volatile u32 cpus_in;

static void count_loops(int cpu, void *arg)
{
	u64 end = rdtsc() + ns_to_tsc(*(u64 *)arg);
	__atomic_add_fetch(&cpus_in, 1, __ATOMIC_SEQ_CST);
	while (rdtsc() < end)
		cpu_loops[cpu][0]++;
}

int test_cpus(void)
{
	int want = arg_u64("cpus", 2), up = cpus_start(want), ok = up == want;
	u64 ns = arg_u64("ms", 50) * 1000000;
	cpus_run(up, count_loops, &ns);
	for (int i = 0; i < up; i++)
		ok &= cpu_loops[i][0] > 0;
	json_open("cpus");
	json_u64("cpus", up);
	json_u64("ran", cpus_in);
	json_close(ok);
	return ok;
}

/*
 * ---- dirty: one word in each page of mib= MiB, again and again, checked at every pass. Each page
 * holds its own address and the pass number, so a page that was lost, torn or swapped shows.
 * "D pass" goes out after every every= passes. ----
 */
int test_dirty(void)
{
	u64 bytes = arg_u64("mib", 64) * MIB, passes = arg_u64("passes", ~0ull), every = arg_u64("every", 0);
	u64 until = rdtsc() + ns_to_tsc(arg_u64("seconds", 1) * NS_PER_S);
	u64 bad = 0, pass = 0;
	volatile u64 *base = NULL;
	if (arg_u64("high", 0)) {	/* in RAM above 4 GiB */
		for (int i = 0; i < ram_ranges; i++)
			if (ram[i].start >= 4 * GIB && ram[i].end - ram[i].start >= bytes) {
				map_high(ram[i].start, ram[i].start + bytes);
				base = (volatile u64 *)ram[i].start;
			}
		if (!base)
			fail("dirty: no RAM of that size above 4 GiB");
	} else {
		base = alloc(bytes, 4096);
	}
	for (u64 p = 0; p < bytes / 4096; p++) {
		base[p * 512] = 0;
		base[p * 512 + 511] = (u64)&base[p * 512];
	}
	while (pass < passes && rdtsc() < until) {
		for (u64 p = 0; p < bytes / 4096; p++) {
			bad += base[p * 512] != pass || base[p * 512 + 511] != (u64)&base[p * 512];
			base[p * 512] = pass + 1;
		}
		pass++;
		if (every && pass % every == 0)
			print("D %lu\n", pass);
	}
	json_open("dirty");
	json_u64("passes", pass);
	json_u64("bad", bad);
	json_close(!bad);
	return !bad;
}
