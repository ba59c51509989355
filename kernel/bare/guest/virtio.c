/* virtio.c - see virtio.h. */
#include "virtio.h"

struct vdev vdevs[VDEVS_MAX];
int vdevs_found;

#define MAGIC 0x74726976	/* "virt" */
#define RESET_TIMEOUT_NS (10 * NS_PER_S)

/* Linux's syntax: virtio_mmio.device=SIZE@BASE:IRQ[:ID]. */
void vdevs_find(void)
{
	static const char key[] = "virtio_mmio.device=";
	for (const char *p = cmdline; *p && vdevs_found < VDEVS_MAX;) {
		while (*p == ' ')
			p++;
		if (str_starts(p, key)) {
			parse_number(p + sizeof key - 1, &p);
			if (*p++ != '@')
				fail("virtio_mmio.device= lacks its @");
			u64 base = parse_number(p, &p);
			if (*p++ != ':')
				fail("virtio_mmio.device= lacks its interrupt");
			u32 irq = parse_number(p, &p);
			u32 id = mmio_read32(base + VIRTIO_MMIO_DEVICE_ID);
			if (mmio_read32(base) == MAGIC && id) {
				struct vdev *d = &vdevs[vdevs_found];
				d->base = base;
				d->id = id;
				d->irq = irq;
				d->version = mmio_read32(base + VIRTIO_MMIO_VERSION);
				d->irqs = &irq_count[IRQ_DEVICE(vdevs_found)];
				if (d->version != 2)
					fail("device at %lx is version %u, not 2", base, d->version);
				ioapic_route(irq, IRQ_BASE + IRQ_DEVICE(vdevs_found));
				vdevs_found++;
			}
		}
		while (*p && *p != ' ')
			p++;
	}
}

struct vdev *vdev_get(u32 id, int nth)
{
	for (int i = 0; i < vdevs_found; i++)
		if (vdevs[i].id == id && nth-- == 0)
			return &vdevs[i];
	return NULL;
}

u64 vdev_offered(struct vdev *d)
{
	vdev_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
	u64 low = vdev_read(d, VIRTIO_MMIO_DEVICE_FEATURES);
	vdev_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
	return low | (u64)vdev_read(d, VIRTIO_MMIO_DEVICE_FEATURES) << 32;
}

void vdev_reset(struct vdev *d)
{
	vdev_write(d, VIRTIO_MMIO_STATUS, 0);
	u64 end = rdtsc() + ns_to_tsc(RESET_TIMEOUT_NS);
	while (vdev_read(d, VIRTIO_MMIO_STATUS))
		if (rdtsc() > end)
			fail("device at %lx: reset does not end", d->base);
	d->queues = 0;
}

static void status_add(struct vdev *d, u32 bits)
{
	vdev_write(d, VIRTIO_MMIO_STATUS, vdev_read(d, VIRTIO_MMIO_STATUS) | bits);
}

/* 3.1.1, steps 2 to 6. */
void vdev_negotiate(struct vdev *d, u64 wanted)
{
	vdev_reset(d);
	status_add(d, VIRTIO_CONFIG_S_ACKNOWLEDGE);
	status_add(d, VIRTIO_CONFIG_S_DRIVER);
	u64 offered = vdev_offered(d);
	if (!(offered & VIRTIO_F_VERSION_1))
		fail("device at %lx does not offer VERSION_1", d->base);
	d->features = offered & (wanted | VIRTIO_F_VERSION_1);
	vdev_write(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	vdev_write(d, VIRTIO_MMIO_DRIVER_FEATURES, (u32)d->features);
	vdev_write(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	vdev_write(d, VIRTIO_MMIO_DRIVER_FEATURES, d->features >> 32);
	status_add(d, VIRTIO_CONFIG_S_FEATURES_OK);
	if (!(vdev_read(d, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK))
		fail("device at %lx refuses features %lx of %lx", d->base, d->features, offered);
}

void vdev_ready(struct vdev *d) { status_add(d, VIRTIO_CONFIG_S_DRIVER_OK); }

/* Configuration fields wider than 32 bit are read until the generation holds still (4.2.2.2). */
u64 vdev_config_u64(struct vdev *d, u32 off)
{
	u32 before, low, high;
	do {
		before = vdev_read(d, VIRTIO_MMIO_CONFIG_GENERATION);
		low = vdev_read(d, VIRTIO_MMIO_CONFIG + off);
		high = vdev_read(d, VIRTIO_MMIO_CONFIG + off + 4);
	} while (vdev_read(d, VIRTIO_MMIO_CONFIG_GENERATION) != before);
	return low | (u64)high << 32;
}

u16 vdev_config_u16(struct vdev *d, u32 off) { return *(volatile u16 *)(d->base + VIRTIO_MMIO_CONFIG + off); }

static void write_addr(struct vdev *d, u32 reg, const volatile void *p)
{
	vdev_write(d, reg, (u32)(u64)p);
	vdev_write(d, reg + 4, (u64)p >> 32);
}

u16 vq_max(struct vdev *d, int index)
{
	vdev_write(d, VIRTIO_MMIO_QUEUE_SEL, index);
	return vdev_read(d, VIRTIO_MMIO_QUEUE_NUM_MAX);
}

/* The ring's memory is taken once and used again after a reset. */
struct vq *vq_setup(struct vdev *d, int index, u16 size)
{
	struct vq *q = &d->vq[index];
	u16 max = vq_max(d, index);
	if (!max)
		fail("device at %lx has no queue %d", d->base, index);
	size = MIN(MIN(size, max), VQ_MAX_SIZE);
	if (!q->desc) {
		q->desc = alloc(16 * VQ_MAX_SIZE, 4096);
		q->avail = alloc(4 + 2 * VQ_MAX_SIZE + 2, 4096);
		q->used = alloc(4 + 8 * VQ_MAX_SIZE + 2, 4096);
		q->tables = alloc(16ull * VQ_MAX_SEGMENTS * VQ_MAX_SIZE, 4096);
	}
	memset((void *)q->avail, 0, 4 + 2 * VQ_MAX_SIZE + 2);
	memset((void *)q->used, 0, 4 + 8 * VQ_MAX_SIZE + 2);
	q->dev = d;
	q->index = index;
	q->size = size;
	q->event_idx = (d->features & VIRTIO_F_EVENT_IDX) != 0;
	q->indirect = q->use_indirect = (d->features & VIRTIO_F_INDIRECT_DESC) != 0;
	q->avail_idx = q->kicked_idx = q->last_used = 0;
	q->kicks = q->waits = 0;
	memset(q->chain, 0, sizeof q->chain);
	for (u16 i = 0; i < size; i++)
		q->desc[i].next = i + 1;
	q->free_head = 0;
	q->free_count = size;
	vdev_write(d, VIRTIO_MMIO_QUEUE_SEL, index);
	vdev_write(d, VIRTIO_MMIO_QUEUE_NUM, size);
	write_addr(d, VIRTIO_MMIO_QUEUE_DESC_LOW, q->desc);
	write_addr(d, VIRTIO_MMIO_QUEUE_AVAIL_LOW, q->avail);
	write_addr(d, VIRTIO_MMIO_QUEUE_USED_LOW, q->used);
	vdev_write(d, VIRTIO_MMIO_QUEUE_READY, 1);
	vq_interrupts(q, 0);
	d->queues = MAX(d->queues, index + 1);
	return q;
}

static volatile u16 *used_event(struct vq *q) { return &q->avail->ring[q->size]; }
static volatile u16 *avail_event(struct vq *q) { return (volatile u16 *)&q->used->ring[q->size]; }

static void fill(volatile struct virtq_desc *d, struct segment s, u16 flags, u16 next)
{
	d->addr = (u64)s.addr;
	d->len = s.len;
	d->flags = flags;
	d->next = next;
}

int vq_add(struct vq *q, const struct segment *seg, int out, int in, void *token)
{
	int n = out + in;
	u16 head = q->free_head, need = q->use_indirect && n > 1 ? 1 : n;
	if (n > VQ_MAX_SEGMENTS)
		fail("request of %d segments", n);
	if (q->free_count < need)
		return 0;
	if (need == 1 && n > 1) {
		struct virtq_desc *t = &q->tables[head * VQ_MAX_SEGMENTS];
		for (int i = 0; i < n; i++)
			fill(&t[i], seg[i], (i >= out ? VIRTQ_DESC_F_WRITE : 0) | (i + 1 < n ? VIRTQ_DESC_F_NEXT : 0), i + 1);
		u16 next = q->desc[head].next;
		fill(&q->desc[head], (struct segment){t, 16 * n}, VIRTQ_DESC_F_INDIRECT, next);
		q->free_head = next;
	} else {
		u16 d = head;
		for (int i = 0; i < n; i++) {
			u16 next = q->desc[d].next;
			fill(&q->desc[d], seg[i], (i >= out ? VIRTQ_DESC_F_WRITE : 0) | (i + 1 < n ? VIRTQ_DESC_F_NEXT : 0), next);
			d = next;
		}
		q->free_head = d;
	}
	q->free_count -= need;
	q->chain[head] = need;
	q->token[head] = token;
	q->avail->ring[q->avail_idx % q->size] = head;
	compiler_barrier();	/* x86 keeps stores in order: the entry before the index */
	q->avail->idx = ++q->avail_idx;
	return 1;
}

void vq_notify(struct vq *q)
{
	q->kicks++;
	vdev_write(q->dev, VIRTIO_MMIO_QUEUE_NOTIFY, q->index);
}

/* 2.7.10 and 2.7.7.2. */
void vq_kick(struct vq *q)
{
	u16 before = q->kicked_idx, now = q->avail_idx;
	if (before == now)
		return;
	q->kicked_idx = now;
	full_barrier();		/* the index is out before the device's wish is read */
	if (q->event_idx ? (u16)(now - *avail_event(q) - 1) < (u16)(now - before)
			 : !(q->used->flags & VIRTQ_USED_F_NO_NOTIFY))
		vq_notify(q);
}

void *vq_poll(struct vq *q, u32 *len)
{
	if (q->used->idx == q->last_used)
		return NULL;
	compiler_barrier();
	volatile struct virtq_used_elem *e = &q->used->ring[q->last_used % q->size];
	u32 head = e->id;
	if (head >= q->size || !q->chain[head])
		fail("queue %u: used entry %u names head %u, which is not in flight", q->index, q->last_used, head);
	if (len)
		*len = e->len;
	u16 last = head;
	for (int i = 1; i < q->chain[head]; i++)
		last = q->desc[last].next;
	q->desc[last].next = q->free_head;
	q->free_head = head;
	q->free_count += q->chain[head];
	q->chain[head] = 0;
	q->last_used++;
	if (q->event_idx && !(q->avail->flags & VIRTQ_AVAIL_F_NO_INTERRUPT))
		*used_event(q) = q->last_used;
	return q->token[head];
}

/* Without EVENT_IDX the flag says it; with it the flag is ours alone (the device ignores it), and
   an event index that the used index has just passed asks for nothing for 65535 entries. */
void vq_interrupts(struct vq *q, int on)
{
	q->avail->flags = on ? 0 : VIRTQ_AVAIL_F_NO_INTERRUPT;
	if (q->event_idx)
		*used_event(q) = on ? q->last_used : q->last_used - 1;
	full_barrier();
}

void vq_wait(struct vq *q)
{
	struct vdev *d = q->dev;
	u32 seen = *d->irqs;
	/* The interrupt pin may stay high until acknowledged, and its next edge is what wakes us. */
	if (seen != d->acked) {
		vdev_write(d, VIRTIO_MMIO_INTERRUPT_ACK, vdev_read(d, VIRTIO_MMIO_INTERRUPT_STATUS));
		d->acked = seen;
	}
	vq_interrupts(q, 1);
	if (q->used->idx == q->last_used) {
		q->waits++;
		wait_while_equal(d->irqs, seen);
	}
	vq_interrupts(q, 0);
}
