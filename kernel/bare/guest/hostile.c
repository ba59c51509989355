/*
 * hostile.c - a driver that breaks the rules. Each case starts from a working block device, does one wrong
 * thing, and then wants three things of the VMM: the device answers in one of the ways that
 * the specification allows (error status, NEEDS_RESET, nothing at all), after a reset it works again,
 * and a second disk, if there is one, never noticed.
 */
#include "blk.h"

#define HOSTILE_WAIT_NS 30000000ul	/* how long a broken request may stay unanswered */

static struct {
	struct blk disk, other;
	struct vq *q;
	struct blk_request *r;		/* 0, 1: of the hostile disk; 2: of the other */
	int has_other;
	u32 answered, needs_reset, silent, dead, disturbed;
} h;

/* A chain written by hand: descriptor i of the ring. */
static void desc(u16 i, u64 addr, u32 len, u16 flags, u16 next)
{
	h.q->desc[i].addr = addr;
	h.q->desc[i].len = len;
	h.q->desc[i].flags = flags;
	h.q->desc[i].next = next;
}

static void offer(u16 head)
{
	h.q->avail->ring[h.q->avail_idx % h.q->size] = head;
	full_barrier();
	h.q->avail->idx = ++h.q->avail_idx;
	full_barrier();
	vq_notify(h.q);
}

#define IN	VIRTQ_DESC_F_WRITE
#define NEXT	VIRTQ_DESC_F_NEXT
#define HEADER	((u64)&h.r->header)
#define STATUS	((u64)&h.r->status)
#define DATA	((u64)h.r->data)

static void header(u32 type, u64 sector)
{
	h.r->header.type = type;
	h.r->header.reserved = 0;
	h.r->header.sector = sector;
	h.r->status = 0xff;
}

/* A read of len bytes to addr, otherwise right. */
static void read_to(u64 addr, u32 len)
{
	header(VIRTIO_BLK_T_IN, 0);
	desc(0, HEADER, 16, NEXT, 1);
	desc(1, addr, len, NEXT | IN, 2);
	desc(2, STATUS, 1, IN, 0);
	offer(0);
}

static void desc_loop(void)
{
	header(VIRTIO_BLK_T_IN, 0);
	desc(0, HEADER, 16, NEXT, 1);
	desc(1, DATA, 512, NEXT | IN, 1);
	offer(0);
}
static void desc_self(void) { desc(0, HEADER, 16, NEXT, 0); offer(0); }
static void next_range(void) { header(0, 0); desc(0, HEADER, 16, NEXT, 60000); offer(0); }
static void head_range(void) { offer(h.q->size); }
static void head_huge(void) { offer(0xffff); }
static void addr_hole(void) { read_to(0xd0000000, 4096); }
static void addr_mmio(void) { read_to(h.disk.dev->base, 512); }
static void addr_far(void) { read_to(1ull << 51, 4096); }
static void addr_wrap(void) { read_to(~0ull - 511, 4096); }
static void addr_cross(void) { read_to(ram_end() - 512, 4096); }
static void len_huge(void) { read_to(DATA, 0xffffffff); }
static void len_zero(void) { read_to(DATA, 0); }
static void len_odd(void) { read_to(DATA, 513); }
static void sector_huge(void)
{
	header(VIRTIO_BLK_T_IN, ~0ull / 512);
	desc(0, HEADER, 16, NEXT, 1);
	desc(1, DATA, 512, NEXT | IN, 2);
	desc(2, STATUS, 1, IN, 0);
	offer(0);
}
static void type_unknown(void)
{
	header(0x5a5a5a5a, 0);
	desc(0, HEADER, 16, NEXT, 1);
	desc(1, STATUS, 1, IN, 0);
	offer(0);
}
static void header_short(void) { header(0, 0); desc(0, HEADER, 8, NEXT, 1); desc(1, STATUS, 1, IN, 0); offer(0); }
static void header_none(void) { desc(0, DATA, 512, IN, 0); offer(0); }
static void status_none(void) { header(VIRTIO_BLK_T_OUT, 0); desc(0, HEADER, 16, 0, 0); offer(0); }
static void readable_after_writable(void)
{
	header(VIRTIO_BLK_T_IN, 0);
	desc(0, DATA, 512, NEXT | IN, 1);
	desc(1, HEADER, 16, NEXT, 2);
	desc(2, STATUS, 1, IN, 0);
	offer(0);
}
static void avail_jump(void)
{
	h.q->avail_idx += h.q->size + 7;
	read_to(DATA, 512);
}
static void avail_back(void)
{
	h.q->avail_idx -= 2;
	read_to(DATA, 512);
}
static void indirect(u32 len, u16 flags)
{
	static struct virtq_desc t[3] __attribute__((aligned(16)));
	header(VIRTIO_BLK_T_IN, 0);
	t[0] = (struct virtq_desc){HEADER, 16, NEXT | flags, 1};
	t[1] = (struct virtq_desc){DATA, 512, NEXT | IN, 2};
	t[2] = (struct virtq_desc){STATUS, 1, IN, 0};
	desc(0, (u64)t, len, VIRTQ_DESC_F_INDIRECT, 0);
	offer(0);
}
static void indirect_nested(void) { indirect(48, VIRTQ_DESC_F_INDIRECT); }
static void indirect_odd(void) { indirect(47, 0); }
static void indirect_empty(void) { indirect(0, 0); }
static void indirect_short(void) { indirect(16, 0); }
static void indirect_huge(void) { indirect(0xfffffff0, 0); }
static void indirect_next(void)
{
	header(0, 0);
	desc(0, DATA, 48, VIRTQ_DESC_F_INDIRECT | NEXT, 1);
	desc(1, STATUS, 1, IN, 0);
	offer(0);
}
static void queue_unknown(void) { vdev_write(h.disk.dev, VIRTIO_MMIO_QUEUE_NOTIFY, 999); }
static void config_range(void)
{
	(void)mmio_read32(h.disk.dev->base + 0x1fc);
	mmio_write32(h.disk.dev->base + 0x1fc, ~0u);
	mmio_write32(h.disk.dev->base + 0x100, ~0u);
	(void)mmio_read8(h.disk.dev->base + 1);
}
static void queue_select(void)
{
	vdev_write(h.disk.dev, VIRTIO_MMIO_QUEUE_SEL, 0xffffffff);
	vdev_write(h.disk.dev, VIRTIO_MMIO_QUEUE_NUM, 0xffffffff);
	vdev_write(h.disk.dev, VIRTIO_MMIO_QUEUE_READY, 1);
}
static void reset_in_flight(void)
{
	for (u16 i = 0; i < 32; i++) {
		header(VIRTIO_BLK_T_IN, 0);
		read_to(DATA, 4096);
	}
	vdev_reset(h.disk.dev);
}

/* Queue set up wrongly: before DRIVER_OK, so the device is opened by hand. */
static void wrong_ring(u64 ring, u32 size, int features_ok)
{
	struct vdev *d = h.disk.dev;
	vdev_negotiate(d, 0);
	if (!features_ok) {
		vdev_reset(d);
		vdev_write(d, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
	}
	vdev_write(d, VIRTIO_MMIO_QUEUE_SEL, 0);
	vdev_write(d, VIRTIO_MMIO_QUEUE_NUM, size);
	for (u32 reg = VIRTIO_MMIO_QUEUE_DESC_LOW; reg <= VIRTIO_MMIO_QUEUE_USED_LOW; reg += 0x10) {
		vdev_write(d, reg, (u32)ring);
		vdev_write(d, reg + 4, ring >> 32);
	}
	vdev_write(d, VIRTIO_MMIO_QUEUE_READY, 1);
	vdev_ready(d);
	vdev_write(d, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
}
static void ring_hole(void) { wrong_ring(0xd0000000, 64, 1); }
static void ring_wrap(void) { wrong_ring(~0ull & ~0xfffull, 64, 1); }
static void ring_unaligned(void) { wrong_ring(DATA + 1, 64, 1); }
static void ring_size_odd(void) { wrong_ring(DATA, 3, 1); }
static void ring_size_huge(void) { wrong_ring(DATA, 0x10000, 1); }
static void ring_size_zero(void) { wrong_ring(DATA, 0, 1); }
static void driver_ok_early(void) { wrong_ring(DATA, 64, 0); }

static const struct {
	const char *name;
	void (*run)(void);
	int indirect;		/* negotiate INDIRECT_DESC */
} cases[] = {
	{"desc-loop", desc_loop, 0}, {"desc-self", desc_self, 0}, {"next-range", next_range, 0},
	{"head-range", head_range, 0}, {"head-huge", head_huge, 0},
	{"addr-hole", addr_hole, 0}, {"addr-mmio", addr_mmio, 0}, {"addr-far", addr_far, 0},
	{"addr-wrap", addr_wrap, 0}, {"addr-cross", addr_cross, 0},
	{"len-huge", len_huge, 0}, {"len-zero", len_zero, 0}, {"len-odd", len_odd, 0},
	{"sector-huge", sector_huge, 0}, {"type-unknown", type_unknown, 0},
	{"header-short", header_short, 0}, {"header-none", header_none, 0}, {"status-none", status_none, 0},
	{"readable-after-writable", readable_after_writable, 0},
	{"avail-jump", avail_jump, 0}, {"avail-back", avail_back, 0},
	{"indirect-nested", indirect_nested, 1}, {"indirect-odd", indirect_odd, 1}, {"indirect-empty", indirect_empty, 1},
	{"indirect-short", indirect_short, 1}, {"indirect-huge", indirect_huge, 1}, {"indirect-next", indirect_next, 1},
	{"indirect-unasked", indirect_odd, 0},
	{"queue-unknown", queue_unknown, 0}, {"queue-select", queue_select, 0}, {"config-range", config_range, 0},
	{"reset-in-flight", reset_in_flight, 0},
	{"ring-hole", ring_hole, 0}, {"ring-wrap", ring_wrap, 0}, {"ring-unaligned", ring_unaligned, 0},
	{"ring-size-odd", ring_size_odd, 0}, {"ring-size-huge", ring_size_huge, 0}, {"ring-size-zero", ring_size_zero, 0},
	{"driver-ok-early", driver_ok_early, 0},
};

/* A write of a new generation and its reading back. */
static int works(struct vq *q, struct blk_request *r, u32 generation)
{
	pattern_fill(r->data, 8, generation);
	if (!blk_do(q, r, VIRTIO_BLK_T_OUT, 8, SECTOR))
		return 0;
	memset(r->data, 0, SECTOR);
	return blk_do(q, r, VIRTIO_BLK_T_IN, 8, SECTOR) && pattern_is(r->data, 8, generation);
}

static int selected(const char *name)
{
	char want[64];
	return !arg_str("case", want, sizeof want) || str_equal(want, "all") || str_equal(want, name);
}

static void run_case(int i)
{
	int disk = arg_u64("disk", 0);
	blk_open(&h.disk, disk, cases[i].indirect ? VIRTIO_F_INDIRECT_DESC : 0, 1, 64);
	h.q = &h.disk.dev->vq[0];
	u32 other_before = h.disturbed;
	u16 used = h.q->used->idx;
	cases[i].run();
	/* The other disk is used while the hostile one chews. */
	u64 until = rdtsc() + ns_to_tsc(HOSTILE_WAIT_NS);
	u32 status = 0;
	do {
		if (h.has_other && !works(&h.other.dev->vq[0], &h.r[2], i + 1))
			h.disturbed++;
		status = vdev_read(h.disk.dev, VIRTIO_MMIO_STATUS);
	} while (!(status & VIRTIO_CONFIG_S_NEEDS_RESET) && h.q->used->idx == used && rdtsc() < until);
	const char *what = "silent";
	if (status & VIRTIO_CONFIG_S_NEEDS_RESET) {
		what = "needs-reset";
		h.needs_reset++;
	} else if (h.q->used->idx != used) {
		what = "answered";
		h.answered++;
	} else {
		h.silent++;
	}
	blk_open(&h.disk, disk, 0, 1, 64);
	int alive = works(&h.disk.dev->vq[0], &h.r[1], i + 1);
	h.dead += !alive;
	print("H %s %s %x %s %s\n", cases[i].name, what, h.r->status, alive ? "alive" : "dead",
	      h.disturbed == other_before ? "undisturbed" : "disturbed");
}

int test_hostile(void)
{
	u32 n = 0;
	h.r = blk_requests(3, 64 * KIB);
	h.has_other = vdev_get(VIRTIO_ID_BLOCK, arg_u64("disk", 0) ^ 1) != NULL;
	if (h.has_other)
		blk_open(&h.other, arg_u64("disk", 0) ^ 1, 0, 1, 64);
	for (size_t i = 0; i < ARRAY_LEN(cases); i++)
		if (selected(cases[i].name)) {
			run_case(i);
			n++;
		}
	json_open("hostile");
	json_u64("cases", n);
	json_u64("answered", h.answered);
	json_u64("needs_reset", h.needs_reset);
	json_u64("silent", h.silent);
	json_u64("dead", h.dead);
	json_u64("disturbed", h.disturbed);
	int ok = n && !h.dead && !h.disturbed;
	json_close(ok);
	return ok;
}
