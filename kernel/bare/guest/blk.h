/* blk.h - the block driver that the block tests share. */
#ifndef BLK_H
#define BLK_H

#include "virtio.h"

#define SECTOR			512u

enum { VIRTIO_BLK_T_IN = 0, VIRTIO_BLK_T_OUT = 1, VIRTIO_BLK_T_FLUSH = 4 };	/* 5.2.6 */
enum { VIRTIO_BLK_S_OK = 0, VIRTIO_BLK_S_IOERR = 1, VIRTIO_BLK_S_UNSUPP = 2 };
#define VIRTIO_BLK_F_FLUSH	(1ull << 9)
#define VIRTIO_BLK_F_MQ		(1ull << 12)

struct blk_request {
	struct { u32 type, reserved; u64 sector; } header;
	u8 status;
	u8 *data;
	u32 len;
	u64 started;	/* TSC */
	u64 block;	/* the test's own */
	u32 generation;
	int slot;
};

/* A disk that is ready, with its queues. */
struct blk {
	struct vdev *dev;
	u64 sectors;
	int queues;
};

void blk_open(struct blk *b, int nth, u64 features, int queues, u16 size);
struct blk_request *blk_requests(int n, u32 room);	/* slots with a buffer of room bytes each */
/* pieces: into how many segments the data is cut. 0: the ring is full. */
int blk_submit(struct vq *q, struct blk_request *r, u32 type, u64 sector, u32 len, int pieces);
struct blk_request *blk_wait(struct vq *q, int with_interrupts);	/* one completion, any */
int blk_do(struct vq *q, struct blk_request *r, u32 type, u64 sector, u32 len);	/* alone; 1: status OK */

/*
 * The pattern of one sector: word 0 names the generation, word 1 the sector, the others follow from both.
 * Generation 0 is a sector of zeroes. Package bare (Go) has the same.
 */
void pattern_fill(u8 *p, u64 sector, u32 generation);
int pattern_is(const u8 *p, u64 sector, u32 generation);

#endif
