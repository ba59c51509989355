/*
 * virtio.h - the driver side of virtio over MMIO (virtio 1.2, 4.2) with split
 * rings (2.7), for one queue user at a time.
 */
#ifndef VIRTIO_H
#define VIRTIO_H

#include "bare.h"

enum { /* 4.2.2, register offsets */
	VIRTIO_MMIO_MAGIC_VALUE = 0x00, VIRTIO_MMIO_VERSION = 0x04, VIRTIO_MMIO_DEVICE_ID = 0x08,
	VIRTIO_MMIO_DEVICE_FEATURES = 0x10, VIRTIO_MMIO_DEVICE_FEATURES_SEL = 0x14,
	VIRTIO_MMIO_DRIVER_FEATURES = 0x20, VIRTIO_MMIO_DRIVER_FEATURES_SEL = 0x24,
	VIRTIO_MMIO_QUEUE_SEL = 0x30, VIRTIO_MMIO_QUEUE_NUM_MAX = 0x34, VIRTIO_MMIO_QUEUE_NUM = 0x38,
	VIRTIO_MMIO_QUEUE_READY = 0x44, VIRTIO_MMIO_QUEUE_NOTIFY = 0x50,
	VIRTIO_MMIO_INTERRUPT_STATUS = 0x60, VIRTIO_MMIO_INTERRUPT_ACK = 0x64, VIRTIO_MMIO_STATUS = 0x70,
	VIRTIO_MMIO_QUEUE_DESC_LOW = 0x80, VIRTIO_MMIO_QUEUE_AVAIL_LOW = 0x90, VIRTIO_MMIO_QUEUE_USED_LOW = 0xa0,
	VIRTIO_MMIO_CONFIG_GENERATION = 0xfc, VIRTIO_MMIO_CONFIG = 0x100,
};

enum { /* 2.1, device status */
	VIRTIO_CONFIG_S_ACKNOWLEDGE = 1, VIRTIO_CONFIG_S_DRIVER = 2, VIRTIO_CONFIG_S_DRIVER_OK = 4,
	VIRTIO_CONFIG_S_FEATURES_OK = 8, VIRTIO_CONFIG_S_NEEDS_RESET = 64, VIRTIO_CONFIG_S_FAILED = 128,
};

enum { VIRTIO_ID_NET = 1, VIRTIO_ID_BLOCK = 2, VIRTIO_ID_CONSOLE = 3, VIRTIO_ID_RNG = 4 };

#define VIRTIO_F_INDIRECT_DESC	(1ull << 28)
#define VIRTIO_F_EVENT_IDX	(1ull << 29)
#define VIRTIO_F_VERSION_1	(1ull << 32)

enum { VIRTQ_DESC_F_NEXT = 1, VIRTQ_DESC_F_WRITE = 2, VIRTQ_DESC_F_INDIRECT = 4 };
enum { VIRTQ_AVAIL_F_NO_INTERRUPT = 1, VIRTQ_USED_F_NO_NOTIFY = 1 };

#define VQ_MAX_SIZE	256	/* descriptors; we never ask for more */
#define VQ_MAX_SEGMENTS	32	/* of one request */
#define VDEV_MAX_QUEUES	16
#define VDEVS_MAX	24

struct virtq_desc { u64 addr; u32 len; u16 flags, next; };
struct virtq_avail { u16 flags, idx, ring[]; };		/* used_event after the ring */
struct virtq_used_elem { u32 id, len; };
struct virtq_used { u16 flags, idx; struct virtq_used_elem ring[]; };	/* avail_event after it */

struct segment { void *addr; u32 len; };

struct vdev;

struct vq {
	struct vdev *dev;
	u16 index, size;
	int event_idx, indirect;	/* negotiated; indirect may be switched off by the test */
	int use_indirect;
	volatile struct virtq_desc *desc;
	volatile struct virtq_avail *avail;
	volatile struct virtq_used *used;
	struct virtq_desc *tables;	/* VQ_MAX_SEGMENTS entries for each head */
	u16 avail_idx;			/* entries made available */
	u16 kicked_idx;			/* avail_idx at the last decision to notify or not */
	u16 last_used;
	u16 free_head, free_count;
	void *token[VQ_MAX_SIZE];
	u16 chain[VQ_MAX_SIZE];		/* descriptors that a head holds; 0: not in flight */
	u64 kicks, waits;
};

struct vdev {
	u64 base;
	u32 id, irq, version;
	u64 features;			/* negotiated */
	int queues;			/* set up */
	u32 acked;			/* interrupt count up to which the status was acknowledged */
	volatile u32 *irqs;		/* its counter */
	struct vq vq[VDEV_MAX_QUEUES];
};

extern struct vdev vdevs[VDEVS_MAX];
extern int vdevs_found;

void vdevs_find(void);				/* from virtio_mmio.device= words */
struct vdev *vdev_get(u32 id, int nth);		/* NULL: not there */
static inline u32 vdev_read(struct vdev *d, u32 reg) { return mmio_read32(d->base + reg); }
static inline void vdev_write(struct vdev *d, u32 reg, u32 v) { mmio_write32(d->base + reg, v); }
u64 vdev_offered(struct vdev *d);
void vdev_reset(struct vdev *d);		/* waits until status reads 0 */
void vdev_negotiate(struct vdev *d, u64 wanted);	/* wanted & offered, VERSION_1 always; fails if refused */
u16 vq_max(struct vdev *d, int index);
struct vq *vq_setup(struct vdev *d, int index, u16 size);	/* size is clipped to what both have */
void vdev_ready(struct vdev *d);		/* DRIVER_OK */
u64 vdev_config_u64(struct vdev *d, u32 off);
u16 vdev_config_u16(struct vdev *d, u32 off);

/* One request: out readable segments, then in writable ones. 0: no room. */
int vq_add(struct vq *q, const struct segment *seg, int out, int in, void *token);
void vq_kick(struct vq *q);			/* notifies if the device wants it */
void vq_notify(struct vq *q);			/* notifies regardless */
void *vq_poll(struct vq *q, u32 *len);		/* NULL: nothing is used */
void vq_interrupts(struct vq *q, int on);
void vq_wait(struct vq *q);			/* HLT until something may be used; interrupts are wanted meanwhile */

#endif
