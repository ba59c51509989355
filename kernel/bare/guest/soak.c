/*
 * soak.c - block workloads whose result is what they verify, not how fast they are:
 * the soak, which mixes everything, and the flush log, which is killed from outside.
 */
#include "blk.h"

/* ---- soak: rounds of random I/O, each under another agreement with the device ---- */

#define SOAK_DEPTH	16
#define SOAK_MAX_BYTES	(256 * KIB)
#define SOAK_REGION	(SOAK_MAX_BYTES / SECTOR)	/* sectors that one slot owns */

/*
 * A sector's content is one of two generations: the one that was last acknowledged, or, if a reset
 * cut a write of it short, that write's. After a read has shown which it is, it is one again.
 */
static struct sector_state { u32 sure, maybe; } *soak_state;

static struct {
	struct blk disk;
	struct vq *q;
	struct random random;
	struct blk_request *slot;
	int busy[SOAK_DEPTH];
	int torn[SOAK_DEPTH];	/* a write that the last reset cut, in doubt until read */
	u32 generation, regions;
	u64 ops, bytes, resets, flushes, cut, rounds, mismatches, errors;
} soak;

static void soak_start(int s)
{
	struct blk_request *r = &soak.slot[s];
	u64 region = random_below(&soak.random, soak.regions / SOAK_DEPTH) * SOAK_DEPTH + s;
	u32 n = 1 + random_below(&soak.random, random_next(&soak.random) & 3 ? 16 : SOAK_REGION);
	u32 first = random_below(&soak.random, SOAK_REGION - n + 1);
	u32 kind = random_below(&soak.random, 16);
	u32 type = kind == 0 ? VIRTIO_BLK_T_FLUSH : kind < 8 ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
	int pieces = 1 + random_below(&soak.random, VQ_MAX_SEGMENTS - 2);
	r->block = region * SOAK_REGION + first;
	if (type == VIRTIO_BLK_T_FLUSH)
		n = 0;
	if (type == VIRTIO_BLK_T_OUT) {
		r->generation = ++soak.generation;
		for (u32 i = 0; i < n; i++) {
			pattern_fill(r->data + i * SECTOR, r->block + i, r->generation);
			soak_state[r->block + i].maybe = r->generation;
		}
	}
	/* A small ring may be full: then the slot stays idle until the next turn. */
	if (blk_submit(soak.q, r, type, n ? r->block : 0, n * SECTOR, pieces)) {
		soak.busy[s] = 1;
	} else if (type == VIRTIO_BLK_T_OUT) {
		for (u32 i = 0; i < n; i++)
			soak_state[r->block + i].maybe = soak_state[r->block + i].sure;
	}
}

static void soak_end(struct blk_request *r)
{
	soak.busy[r->slot] = 0;
	soak.ops++;
	soak.bytes += r->len;
	if (r->status != VIRTIO_BLK_S_OK) {
		soak.errors++;
		return;
	}
	if (r->header.type == VIRTIO_BLK_T_FLUSH)
		soak.flushes++;
	for (u32 i = 0; i < r->len / SECTOR; i++) {
		struct sector_state *st = &soak_state[r->block + i];
		const u8 *p = r->data + i * SECTOR;
		if (r->header.type == VIRTIO_BLK_T_OUT)
			st->sure = st->maybe = r->generation;
		else if (pattern_is(p, r->block + i, st->sure))
			st->maybe = st->sure;
		else if (pattern_is(p, r->block + i, st->maybe))
			st->sure = st->maybe;
		else
			soak.mismatches++;
	}
}

/* One agreement: features, ring size, way of waiting; then I/O; then a drain, or a reset in the middle. */
static void soak_round(u64 until)
{
	u64 features = 0;
	u32 dice = random_next(&soak.random) >> 32;
	if (dice & 1)
		features |= VIRTIO_F_EVENT_IDX;
	if (dice & 2)
		features |= VIRTIO_F_INDIRECT_DESC;
	int with_interrupts = dice >> 2 & 1, cut = dice >> 3 & 1;
	u16 size = 1u << (6 + (dice >> 4) % 3);	/* 64, 128 or 256 */
	blk_open(&soak.disk, arg_u64("disk", 0), features, 1, size);
	soak.q = &soak.disk.dev->vq[0];
	u64 ops = 100 + (dice >> 8) % 400;
	struct blk_request *r;
	int in_flight;
	for (int s = 0; s < SOAK_DEPTH; s++)
		if (soak.torn[s]) {
			/* Now, because the state has no room for a second write of doubt. */
			soak.torn[s] = 0;
			r = &soak.slot[s];
			blk_do(soak.q, r, VIRTIO_BLK_T_IN, r->block, r->len);
			soak_end(r);
		}
	do {
		if (soak.q->indirect)
			soak.q->use_indirect = random_next(&soak.random) >> 63;
		in_flight = 0;
		for (int s = 0; s < SOAK_DEPTH; s++) {
			if (!soak.busy[s] && ops && rdtsc() < until) {
				soak_start(s);
				ops -= soak.busy[s];
			}
			in_flight += soak.busy[s];
		}
		vq_kick(soak.q);
		if (cut && (!ops || rdtsc() >= until))
			break;
		if (in_flight) {
			soak_end(blk_wait(soak.q, with_interrupts));
			while ((r = vq_poll(soak.q, NULL)))
				soak_end(r);
		}
	} while (in_flight);
	vdev_reset(soak.disk.dev);
	soak.resets++;
	/* What the device had in work has happened or never will; which, the next round reads. */
	while (cut && (r = vq_poll(soak.q, NULL)))
		soak_end(r);
	for (int s = 0; s < SOAK_DEPTH; s++) {
		soak.cut += soak.busy[s];
		soak.torn[s] = soak.busy[s] && soak.slot[s].header.type == VIRTIO_BLK_T_OUT;
		soak.busy[s] = 0;
	}
}

/* Every sector that may have been touched, read back in order. */
static void soak_verify_all(void)
{
	blk_open(&soak.disk, arg_u64("disk", 0), 0, 1, VQ_MAX_SIZE);
	soak.q = &soak.disk.dev->vq[0];
	struct blk_request *r = &soak.slot[0];
	for (u32 region = 0; region < soak.regions; region++) {
		r->block = (u64)region * SOAK_REGION;
		blk_do(soak.q, r, VIRTIO_BLK_T_IN, r->block, SOAK_MAX_BYTES);
		soak_end(r);
	}
	vdev_reset(soak.disk.dev);
}

int test_blk_soak(void)
{
	struct vdev *d = vdev_get(VIRTIO_ID_BLOCK, arg_u64("disk", 0));
	if (!d)
		fail("blk-soak: no block device");
	soak.random.s = arg_u64("seed", 1) * 0x9e3779b97f4a7c15ull;
	soak.regions = MIN(vdev_config_u64(d, 0), arg_u64("span", 64 * MIB) / SECTOR) / SOAK_REGION / SOAK_DEPTH * SOAK_DEPTH;
	if (!soak.regions)
		fail("blk-soak: the disk is smaller than %lu KiB", SOAK_DEPTH * SOAK_MAX_BYTES / KIB);
	soak_state = alloc(soak.regions * SOAK_REGION * sizeof *soak_state, 64);
	soak.slot = blk_requests(SOAK_DEPTH, SOAK_MAX_BYTES);
	u64 until = rdtsc() + ns_to_tsc(arg_u64("seconds", 2) * NS_PER_S);
	while (rdtsc() < until) {
		soak_round(until);
		soak.rounds++;
	}
	soak_verify_all();
	json_open("blk-soak");
	json_u64("ops", soak.ops);
	json_u64("bytes", soak.bytes);
	json_u64("flushes", soak.flushes);
	json_u64("resets", soak.resets);
	json_u64("cut", soak.cut);
	json_u64("errors", soak.errors);
	json_u64("mismatches", soak.mismatches);
	int ok = soak.ops && !soak.errors && !soak.mismatches;
	json_close(ok);
	return ok;
}

/*
 * ---- flush log: batches of writes, each followed by a flush; "F n" goes out once flush n was
 * acknowledged. Whoever kills the machine then finds generation n or later in every
 * block of batch n. ----
 */
int test_blk_flushlog(void)
{
	struct blk b;
	u32 batch = MIN(arg_u64("depth", 8), VQ_MAX_SIZE / 4), size = arg_u64("size", 4096);
	u64 batches = arg_u64("ops", ~0ull), blocks;
	blk_open(&b, arg_u64("disk", 0), VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC, 1, VQ_MAX_SIZE);
	struct vq *q = &b.dev->vq[0];
	struct blk_request *slot = blk_requests(batch + 1, size);
	blocks = MIN(b.sectors * SECTOR, arg_u64("span", 16 * MIB)) / size;
	if (!(b.dev->features & VIRTIO_BLK_F_FLUSH) || !batch || blocks < batch || size % SECTOR)
		fail("blk-flushlog: no flush, or a number is out of range");
	for (u64 g = 1; g <= batches; g++) {
		for (u32 i = 0; i < batch; i++) {
			u64 first = ((g - 1) * batch + i) % blocks * (size / SECTOR);
			for (u32 s = 0; s < size / SECTOR; s++)
				pattern_fill(slot[i].data + s * SECTOR, first + s, g);
			if (!blk_submit(q, &slot[i], VIRTIO_BLK_T_OUT, first, size, 1))
				fail("blk-flushlog: ring full");
		}
		vq_kick(q);
		for (u32 i = 0; i < batch; i++)
			if (blk_wait(q, 0)->status != VIRTIO_BLK_S_OK)
				fail("blk-flushlog: a write failed in batch %lu", g);
		if (!blk_do(q, &slot[batch], VIRTIO_BLK_T_FLUSH, 0, 0))
			fail("blk-flushlog: flush %lu failed", g);
		print("F %lu\n", g);
	}
	json_open("blk-flushlog");
	json_u64("batches", batches);
	json_close(1);
	return 1;
}
