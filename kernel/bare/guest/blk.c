/*
 * blk.c - virtio-blk (virtio 1.2, 5.2): the driver and the steady workload with its
 * measurements. What mixes everything is in soak.c.
 */
#include "blk.h"

void blk_open(struct blk *b, int nth, u64 features, int queues, u16 size)
{
	b->dev = vdev_get(VIRTIO_ID_BLOCK, nth);
	if (!b->dev)
		fail("no block device %d among %d devices; command line: %s", nth, vdevs_found, cmdline);
	if (queues > 1)
		features |= VIRTIO_BLK_F_MQ;
	vdev_negotiate(b->dev, features | VIRTIO_BLK_F_FLUSH);
	b->queues = 1;
	if (b->dev->features & VIRTIO_BLK_F_MQ)
		b->queues = MIN(queues, vdev_config_u16(b->dev, 34));	/* num_queues */
	if (b->queues < queues)
		fail("block device %d has %d queues, not %d", nth, b->queues, queues);
	b->sectors = vdev_config_u64(b->dev, 0);	/* capacity */
	for (int i = 0; i < b->queues; i++)
		vq_setup(b->dev, i, size);
	vdev_ready(b->dev);
}

struct blk_request *blk_requests(int n, u32 room)
{
	struct blk_request *r = alloc(n * sizeof *r, 64);
	for (int i = 0; i < n; i++) {
		r[i].slot = i;
		r[i].data = room ? alloc(room, 4096) : NULL;
	}
	return r;
}

int blk_submit(struct vq *q, struct blk_request *r, u32 type, u64 sector, u32 len, int pieces)
{
	struct segment seg[VQ_MAX_SEGMENTS];
	int n = 0;
	r->header.type = type;
	r->header.reserved = 0;
	r->header.sector = sector;
	r->status = 0xff;
	r->len = len;
	seg[n++] = (struct segment){&r->header, 16};
	if (len) {
		/* Pieces of any length: the device must not care where a sector is cut. */
		u32 piece = MAX(len / pieces, 1u), off = 0;
		for (int i = 0; i < pieces && off < len; i++) {
			u32 l = i + 1 == pieces ? len - off : MIN(piece, len - off);
			seg[n++] = (struct segment){r->data + off, l};
			off += l;
		}
	}
	seg[n++] = (struct segment){&r->status, 1};
	int out = type == VIRTIO_BLK_T_IN ? 1 : n - 1;
	return vq_add(q, seg, out, n - out, r);
}

struct blk_request *blk_wait(struct vq *q, int with_interrupts)
{
	struct blk_request *r;
	while (!(r = vq_poll(q, NULL))) {
		if (with_interrupts)
			vq_wait(q);
		else
			cpu_pause();
	}
	return r;
}

int blk_do(struct vq *q, struct blk_request *r, u32 type, u64 sector, u32 len)
{
	if (!blk_submit(q, r, type, sector, len, 1))
		fail("no room for one request");
	vq_kick(q);
	if (blk_wait(q, 0) != r)
		fail("another request completed");
	return r->status == VIRTIO_BLK_S_OK;
}

static u64 pattern_seed(u64 sector, u32 generation)
{
	return (sector + 1) * 0x9e3779b97f4a7c15ull ^ generation * 0xc2b2ae3d27d4eb4full;
}

#define PATTERN_STEP 0xd6e8feb86659fd93ull
#define PATTERN_MAGIC 0x62617265ull	/* "bare" */

void pattern_fill(u8 *p, u64 sector, u32 generation)
{
	u64 *w = (u64 *)p, s = pattern_seed(sector, generation);
	if (!generation) {
		memset(p, 0, SECTOR);
		return;
	}
	w[0] = PATTERN_MAGIC << 32 | generation;
	w[1] = sector;
	for (int i = 2; i < 64; i++)
		w[i] = s + i * PATTERN_STEP;
}

int pattern_is(const u8 *p, u64 sector, u32 generation)
{
	const u64 *w = (const u64 *)p;
	u64 s = pattern_seed(sector, generation), bad = 0;
	if (!generation) {
		for (int i = 0; i < 64; i++)
			bad |= w[i];
		return !bad;
	}
	bad = (w[0] ^ (PATTERN_MAGIC << 32 | generation)) | (w[1] ^ sector);
	for (int i = 2; i < 64; i++)
		bad |= w[i] ^ (s + i * PATTERN_STEP);
	return !bad;
}

/* ---- the steady workload ---- */

enum op { OP_RANDREAD, OP_RANDWRITE, OP_RANDRW, OP_SEQREAD, OP_SEQWRITE, OPS };
static const char *const op_names[OPS] = {"randread", "randwrite", "randrw", "seqread", "seqwrite"};

static struct {
	enum op op;
	u32 depth, size, flush_every;
	int with_interrupts, verify, pieces, cpus;
	u64 seconds, max_ops;
	u64 span;		/* bytes of the disk that are used */
	u32 *generation;	/* of each block of size bytes, when verifying */
	int disks;		/* more than 1: processor i uses disk i and its queue 0 */
	struct blk disk[MAX_CPUS];
} job;

static struct worker {
	struct vq *q;
	struct random random;
	u64 ops, bytes, errors, mismatches, flushes, next;
	u32 writes_since_flush;
	struct blk_request *slot;
	struct histogram latency;
	u8 pad[64];
} workers[MAX_CPUS] __attribute__((aligned(64)));

/*
 * Each slot of each processor owns every n-th block, so two requests in flight never
 * name the same block and a generation is never in doubt.
 */
static u64 pick_block(struct worker *w, int owner, int owners)
{
	u64 mine = job.span / job.size / owners;
	u64 k = job.op >= OP_SEQREAD ? w->next++ / job.depth % mine : random_below(&w->random, mine);
	return k * owners + owner;
}

static int is_write(struct worker *w)
{
	switch (job.op) {
	case OP_RANDWRITE:
	case OP_SEQWRITE:
		return 1;
	case OP_RANDRW:
		return random_next(&w->random) >> 63;
	default:
		return 0;
	}
}

static void start(struct worker *w, int cpu, struct blk_request *r)
{
	u32 sectors = job.size / SECTOR;
	u32 type = VIRTIO_BLK_T_IN;
	r->started = rdtsc();
	if (job.flush_every && w->writes_since_flush >= job.flush_every) {
		w->writes_since_flush = 0;
		if (!blk_submit(w->q, r, VIRTIO_BLK_T_FLUSH, 0, 0, 1))
			fail("ring of %u is too small for depth %u", w->q->size, job.depth);
		return;
	}
	r->block = pick_block(w, r->slot + cpu * job.depth, job.cpus * job.depth);
	if (is_write(w)) {
		type = VIRTIO_BLK_T_OUT;
		w->writes_since_flush++;
		if (job.verify) {
			r->generation = ++job.generation[r->block];
			for (u32 i = 0; i < sectors; i++)
				pattern_fill(r->data + i * SECTOR, r->block * sectors + i, r->generation);
		}
	} else if (job.verify) {
		r->generation = job.generation[r->block];
	}
	if (!blk_submit(w->q, r, type, r->block * sectors, job.size, job.pieces))
		fail("ring of %u is too small for depth %u", w->q->size, job.depth);
}

static void end(struct worker *w, struct blk_request *r)
{
	u32 sectors = job.size / SECTOR;
	histogram_add(&w->latency, tsc_to_ns(rdtsc() - r->started));
	w->ops++;
	w->bytes += r->len;
	if (r->status != VIRTIO_BLK_S_OK)
		w->errors++;
	else if (r->header.type == VIRTIO_BLK_T_FLUSH)
		w->flushes++;
	else if (job.verify && r->header.type == VIRTIO_BLK_T_IN)
		for (u32 i = 0; i < sectors; i++)
			if (!pattern_is(r->data + i * SECTOR, r->block * sectors + i, r->generation)) {
				w->mismatches++;
				break;
			}
}

static void work(int cpu, void *arg)
{
	(void)arg;
	struct worker *w = &workers[cpu];
	struct blk_request *r;
	u64 deadline = rdtsc() + ns_to_tsc(job.seconds * NS_PER_S);
	u32 in_flight = 0;
	int stop = 0;
	w->next = 0;
	for (; in_flight < job.depth; in_flight++)
		start(w, cpu, &w->slot[in_flight]);
	vq_kick(w->q);
	while (in_flight) {
		int n = 0;
		while ((r = vq_poll(w->q, NULL))) {
			end(w, r);
			n++;
			if (stop)
				in_flight--;
			else
				start(w, cpu, r);
		}
		if (n) {
			vq_kick(w->q);
			stop = rdtsc() > deadline || (job.max_ops && w->ops >= job.max_ops);
		} else if (job.with_interrupts) {
			vq_wait(w->q);
		} else {
			cpu_pause();
		}
	}
}

static void job_from_cmdline(void)
{
	char name[32];
	arg_str("op", name, sizeof name);
	job.op = OPS;
	for (int i = 0; i < OPS; i++)
		if (str_equal(name, op_names[i]))
			job.op = i;
	if (job.op == OPS)
		fail("op=%s is none of randread, randwrite, randrw, seqread, seqwrite", name);
	job.depth = arg_u64("depth", 1);
	job.size = arg_u64("size", 4096);
	job.seconds = arg_u64("seconds", 1);
	job.max_ops = arg_u64("ops", 0);
	job.verify = arg_u64("verify", 0);
	job.flush_every = arg_u64("flush_every", 0);
	job.pieces = arg_u64("pieces", 1);
	job.cpus = arg_u64("cpus", 1);
	job.disks = arg_u64("disks", 1);
	job.with_interrupts = arg_is("wait", "irq");
	if (!job.size || job.size % SECTOR || !job.depth || job.depth > VQ_MAX_SIZE || job.cpus < 1 ||
	    job.cpus > MAX_CPUS || job.pieces < 1 || job.pieces > VQ_MAX_SEGMENTS - 2 || (job.disks > 1 && job.disks != job.cpus))
		fail("blk: a number is out of range");
	if (job.with_interrupts && job.cpus > 1)
		fail("blk: wait=irq is for one processor, to which interrupts go");
}

static void job_open(void)
{
	u64 features = 0;
	if (arg_u64("event_idx", 1))
		features |= VIRTIO_F_EVENT_IDX;
	if (arg_u64("indirect", 1))
		features |= VIRTIO_F_INDIRECT_DESC;
	int queues = job.disks > 1 ? 1 : job.cpus, first = arg_u64("disk", 0);
	u16 size = arg_u64("ring", VQ_MAX_SIZE);
	u64 sectors = ~0ull;
	for (int i = 0; i < job.disks; i++) {
		blk_open(&job.disk[i], first + i, features, queues, size);
		sectors = MIN(sectors, job.disk[i].sectors);
	}
	job.span = MIN(arg_u64("span", ~0ull), sectors * SECTOR) / job.size * job.size;
	if (job.span / job.size < job.depth * job.cpus)
		fail("disk of %lu sectors is too small", sectors);
	if (job.verify)
		job.generation = alloc(job.span / job.size * sizeof *job.generation, 64);
	u64 seed = arg_u64("seed", 1);
	for (int i = 0; i < job.cpus; i++) {
		struct worker *w = &workers[i];
		w->q = job.disks > 1 ? &job.disk[i].dev->vq[0] : &job.disk[0].dev->vq[i];
		w->random.s = seed * 0x9e3779b97f4a7c15ull + i + 1;
		w->slot = blk_requests(job.depth, job.size);
	}
}

int test_blk(void)
{
	job_from_cmdline();
	job_open();
	if (cpus_start(job.cpus) < job.cpus)
		fail("processors up to %d do not start", job.cpus);
	u32 irqs = 0;
	for (int i = 0; i < job.disks; i++)
		irqs -= *job.disk[i].dev->irqs;
	u64 t0 = rdtsc();
	cpus_run(job.cpus, work, NULL);
	u64 ns = tsc_to_ns(rdtsc() - t0);
	struct worker sum = {0};
	u64 kicks = 0, waits = 0;
	for (int i = 0; i < job.cpus; i++) {
		struct worker *w = &workers[i];
		sum.ops += w->ops;
		sum.bytes += w->bytes;
		sum.errors += w->errors;
		sum.mismatches += w->mismatches;
		sum.flushes += w->flushes;
		histogram_merge(&sum.latency, &w->latency);
		kicks += w->q->kicks;
		waits += w->q->waits;
	}
	for (int i = 0; i < job.disks; i++) {
		irqs += *job.disk[i].dev->irqs;
		vdev_reset(job.disk[i].dev);
	}
	json_open("blk");
	json_str("op", op_names[job.op]);
	json_u64("ops", sum.ops);
	json_u64("bytes", sum.bytes);
	json_u64("ns", ns);
	json_u64("errors", sum.errors);
	json_u64("mismatches", sum.mismatches);
	json_u64("flushes", sum.flushes);
	json_u64("kicks", kicks);
	json_u64("waits", waits);
	json_u64("irqs", irqs);
	json_histogram(&sum.latency);
	int ok = sum.ops && !sum.errors && !sum.mismatches;
	json_close(ok);
	return ok;
}
