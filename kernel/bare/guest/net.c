/*
 * net.c - virtio-net (virtio 1.2, 5.1) without offloads: op=echo sends every frame back with its addresses
 * swapped, op=send sends numbered frames, op=receive checks numbered frames.
 */
#include "virtio.h"

#define NET_HEADER	12	/* struct virtio_net_hdr with VERSION_1 */
#define NET_FRAME	1514
#define NET_BUF		2048
#define NET_MAX_DEPTH	128
#define ETHERTYPE	0x88b5	/* IEEE 802: local experimental */
#define VIRTIO_NET_F_MAC (1ull << 5)

static struct {
	struct vdev *dev;
	struct vq *rx, *tx;
	u8 *rx_bufs, *tx_bufs;
	u32 depth;
	u8 mac[6];
} net;

static void net_post(u8 *buf)
{
	struct segment s = {buf, NET_BUF};
	if (!vq_add(net.rx, &s, 0, 1, buf))
		fail("net: receive ring full");
}

static void net_open(void)
{
	net.dev = vdev_get(VIRTIO_ID_NET, 0);
	if (!net.dev)
		fail("net: no device");
	net.depth = MIN(arg_u64("depth", 64), NET_MAX_DEPTH);
	vdev_negotiate(net.dev, VIRTIO_NET_F_MAC | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC);
	net.rx = vq_setup(net.dev, 0, VQ_MAX_SIZE);
	net.tx = vq_setup(net.dev, 1, VQ_MAX_SIZE);
	for (int i = 0; i < 6; i++)
		net.mac[i] = net.dev->features & VIRTIO_NET_F_MAC ? mmio_read8(net.dev->base + VIRTIO_MMIO_CONFIG + i) : i * 2;
	vdev_ready(net.dev);
	net.rx_bufs = alloc(net.depth * NET_BUF, 4096);
	net.tx_bufs = alloc(net.depth * NET_BUF, 4096);
	for (u32 i = 0; i < net.depth; i++)
		net_post(net.rx_bufs + i * NET_BUF);
	vq_kick(net.rx);
}

static void net_send(u8 *buf, u32 len)
{
	struct segment s = {buf, len};
	memset(buf, 0, NET_HEADER);
	if (!vq_add(net.tx, &s, 1, 0, buf))
		fail("net: transmit ring full");
	vq_kick(net.tx);
}

/* Waits in the way that the command line asks for, at most until the deadline; 0: it is over. */
static int net_wait(struct vq *q, u64 deadline)
{
	if (rdtsc() > deadline)
		return 0;
	if (arg_is("wait", "irq"))
		vq_wait(q);
	else
		cpu_pause();
	return 1;
}

/* A numbered frame: destination, source, type, number, then bytes that follow from the number. */
static void number_frame(u8 *f, u32 len, u64 n)
{
	memset(f, 0xff, 6);
	memcpy(f + 6, net.mac, 6);
	f[12] = ETHERTYPE >> 8;
	f[13] = ETHERTYPE & 0xff;
	memcpy(f + 14, &n, 8);
	for (u32 i = 22; i < len; i++)
		f[i] = n + i;
}

static int frame_number(const u8 *f, u32 len, u64 *n)
{
	if (len < 60 || f[12] != ETHERTYPE >> 8 || f[13] != (ETHERTYPE & 0xff))
		return 0;
	memcpy(n, f + 14, 8);
	for (u32 i = 22; i < len; i++)
		if (f[i] != (u8)(*n + i))
			return -1;
	return 1;
}

int test_net(void)
{
	net_open();
	u64 want = arg_u64("frames", 1000), size = MIN(MAX(arg_u64("size", 60), 60), NET_FRAME);
	u64 done = 0, bytes = 0, bad = 0, others = 0, expected = 0;
	int echo = arg_is("op", "echo"), send = arg_is("op", "send"), receive = arg_is("op", "receive");
	if (echo + send + receive != 1)
		fail("net: op= is none of echo, send, receive");
	print("net ready\n");
	u64 t0 = rdtsc(), deadline = t0 + ns_to_tsc(arg_u64("seconds", 10) * NS_PER_S);
	u32 len;
	u8 *buf;
	while (send && done < want) {
		u8 *b = done < net.depth ? net.tx_bufs + done * NET_BUF : NULL;
		while (!b && !(b = vq_poll(net.tx, NULL)))
			if (!net_wait(net.tx, deadline))
				fail("net: transmit stalls after %lu frames", done);
		number_frame(b + NET_HEADER, size, done++);
		net_send(b, NET_HEADER + size);
		bytes += size;
	}
	while (!send && done < want) {
		if (!(buf = vq_poll(net.rx, &len))) {
			if (!net_wait(net.rx, deadline))
				break;
			continue;
		}
		if (len < NET_HEADER + 14)
			fail("net: a frame of %u bytes", len);
		u8 *f = buf + NET_HEADER;
		u64 n = 0;
		int is = frame_number(f, len - NET_HEADER, &n);
		if (is == 0)
			others++;
		if (is < 0 || (is > 0 && n < expected))
			bad++;		/* damaged, or out of order; gaps are the network's right */
		if (is > 0) {
			expected = n + 1;
			done++;
			bytes += len - NET_HEADER;
		}
		if (echo && is > 0) {
			u8 *t = net.tx_bufs + done % net.depth * NET_BUF;
			while (net.tx->free_count < net.tx->size - net.depth + 1)
				if (!vq_poll(net.tx, NULL) && !net_wait(net.tx, deadline))
					fail("net: transmit stalls");
			memcpy(t + NET_HEADER, f, len - NET_HEADER);
			memcpy(t + NET_HEADER, f + 6, 6);
			memcpy(t + NET_HEADER + 6, net.mac, 6);
			net_send(t, len);
		}
		net_post(buf);
		vq_kick(net.rx);
	}
	while (net.tx->free_count < net.tx->size)
		if (!vq_poll(net.tx, NULL) && !net_wait(net.tx, deadline))
			break;
	u64 ns = tsc_to_ns(rdtsc() - t0);
	int stuck = net.tx->size - net.tx->free_count;
	vdev_reset(net.dev);
	json_open("net");
	json_u64("frames", done);
	json_u64("bytes", bytes);
	json_u64("others", others);
	json_u64("bad", bad);
	json_u64("stuck", stuck);
	json_u64("ns", ns);
	int ok = done == want && !bad && !stuck;
	json_close(ok);
	return ok;
}
