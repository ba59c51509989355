package net

import "github.com/peervisor/peervisor/virtio"

// transmitter is the scratch space of the transmit queue, whose calls are
// never concurrent.
type transmitter struct {
	hdr   [HeaderBytes]byte
	frame [][]byte
}

// send passes the frames on, oldest first, and completes all of them at once.
func (t *transmitter) send(d *Device, act *activation, reqs []*virtio.Request) {
	var frames, bytes uint64
	for _, r := range reqs {
		if n := t.sendOne(d, act, r); n > 0 {
			frames++
			bytes += uint64(n)
		}
		r.SetUsed(0)
	}
	clear(t.frame[:cap(t.frame)])
	d.stats.txFrames.Add(frames)
	d.stats.txBytes.Add(bytes)
	act.ch.Complete(reqs)
}

// sendOne returns the length of the frame if it was taken.
func (t *transmitter) sendOne(d *Device, act *activation, r *virtio.Request) int {
	n := r.ReadableLen() - HeaderBytes
	if n < EthernetBytes || n > MaxFrameBytes {
		d.stats.txInvalid.Add(1)
		return 0
	}
	// Copied once, checked, used: the driver can change its own at any time.
	h := Header(t.hdr[:])
	r.ReadAt(h, 0)
	if err := sanitizeSent(h, n, act.offload); err != nil {
		d.stats.txInvalid.Add(1)
		return 0
	}
	if d.down.Load() {
		d.stats.txDropped.Add(1)
		return 0
	}
	t.frame = r.ReadVec(t.frame[:0], HeaderBytes, n)
	if err := act.conn.Send(h, t.frame); err != nil {
		d.stats.txDropped.Add(1)
		return 0
	}
	return n
}
