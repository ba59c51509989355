package net

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/peervisor/peervisor/virtio"
)

const (
	// maxBatch bounds the buffers that one completion names.
	maxBatch = 256
	// maxSlices bounds the slices of guest memory lent for one frame; IOV_MAX is
	// 1024, and a driver with buffers so torn gets a copy.
	maxSlices = 512
	// holdTime is how long a frame waits for a driver that has posted buffers, but
	// too few for it.
	holdTime = time.Second
)

type receiverConfig struct {
	merge   bool    // VIRTIO_NET_F_MRG_RXBUF
	mtu     int     // longest frame without segmentation, in bytes
	offload Offload // what frames may come with
}

// receiver fills the driver's receive buffers from a Conn.
//
//	        post                       Recv > 0
//	empty ────────► asking the Conn ───────────► completing ──► asking …
//	  ▲   takeBack     │  ▲
//	  └────────────────┘  └── Wait ◄── Recv = 0
type receiver struct {
	dev  *Device
	act  *activation
	cfg  receiverConfig
	kick chan struct{} // capacity 1: buffers were posted, or stop was called
	done chan struct{} // closed when run returned

	mu      sync.Mutex
	stopped bool
	posted  []*virtio.Request // oldest first
	// The first len(spans) posted buffers are laid out in vec, room bytes in all.
	vec   [][]byte
	spans []span
	room  int
	// held is a frame with its header that found too few buffers, nil if none.
	held      []byte
	heldSince time.Time

	batch []*virtio.Request // run's own: to be completed
	spill []byte            // takes what the posted buffers cannot
	chunk [][]byte          // scratch: vec and spill
}

// span is one posted buffer in vec.
type span struct{ slices, bytes int }

func newReceiver(d *Device, act *activation, cfg receiverConfig) *receiver {
	return &receiver{dev: d, act: act, cfg: cfg, kick: make(chan struct{}, 1), done: make(chan struct{}),
		spill: make([]byte, HeaderBytes+MaxFrameBytes)}
}

// post takes buffers from the driver. It does not wait for a frame.
func (r *receiver) post(reqs []*virtio.Request) {
	r.mu.Lock()
	r.posted = append(r.posted, reqs...)
	r.mu.Unlock()
	r.wake()
}

func (r *receiver) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// takeBack empties the receiver of buffers; a held frame stays for later ones.
func (r *receiver) takeBack() []*virtio.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.posted
	r.posted = nil
	r.forgetLocked()
	return out
}

// stop ends run and waits for it. Buffers that are still posted are forgotten:
// the channel takes them back by itself.
func (r *receiver) stop() {
	r.mu.Lock()
	r.stopped = true
	r.mu.Unlock()
	_ = r.act.conn.Close()
	r.wake()
	<-r.done
}

// What fill found at the end.
type fillEnd int

const (
	fillMore    fillEnd = iota // the batch is full
	fillEmpty                  // no frame
	fillStarved                // no buffers, or too few for the held frame
	fillStopped
)

// run receives until stop, or until the backend breaks.
func (r *receiver) run() {
	defer close(r.done)
	for {
		end, err := r.fill()
		if len(r.batch) > 0 {
			r.act.ch.Complete(r.batch)
			clear(r.batch)
			r.batch = r.batch[:0]
		}
		switch {
		case err != nil:
			r.fail(err)
			return
		case end == fillStopped:
			return
		case end == fillEmpty:
			if err := r.act.conn.Wait(); err != nil {
				r.fail(err)
				return
			}
		case end == fillStarved:
			r.starve()
		}
	}
}

// fail reports a broken backend, unless it was stop that closed the Conn.
func (r *receiver) fail(err error) {
	r.mu.Lock()
	stopped := r.stopped
	r.mu.Unlock()
	if !stopped && !errors.Is(err, net.ErrClosed) {
		r.act.ch.NeedsReset(err)
	}
}

// starve waits for buffers; for a held frame, not forever.
func (r *receiver) starve() {
	r.mu.Lock()
	wait := r.held != nil && len(r.posted) > 0
	r.mu.Unlock()
	if !wait {
		<-r.kick
		return
	}
	t := time.NewTimer(holdTime)
	defer t.Stop()
	select {
	case <-r.kick:
	case <-t.C:
	}
}

// fill moves frames into posted buffers until there is none of either, or the
// batch is full. Whatever is in batch is complete then.
func (r *receiver) fill() (fillEnd, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.batch) < maxBatch {
		if r.stopped {
			return fillStopped, nil
		}
		r.dropRuntsLocked()
		if r.held != nil && !r.placeHeldLocked() {
			return fillStarved, nil
		}
		if len(r.posted) == 0 {
			return fillStarved, nil
		}
		got, err := r.receiveLocked()
		if err != nil || !got {
			return fillEmpty, err
		}
	}
	return fillMore, nil
}

// dropRuntsLocked gives back buffers that cannot begin a frame.
func (r *receiver) dropRuntsLocked() {
	for len(r.posted) > 0 && r.posted[0].WritableLen() < HeaderBytes {
		r.forgetLocked()
		r.posted[0].SetUsed(0)
		r.batch = append(r.batch, r.posted[0])
		r.posted = pop(r.posted, 1)
		r.dev.stats.rxRunts.Add(1)
	}
}

// layoutLocked extends vec until it holds the largest frame.
func (r *receiver) layoutLocked() {
	limit := 1
	if r.cfg.merge {
		limit = len(r.posted)
	}
	for len(r.spans) < limit && r.room < HeaderBytes+MaxFrameBytes && len(r.vec) < maxSlices {
		q := r.posted[len(r.spans)]
		before := len(r.vec)
		r.vec = q.WriteVec(r.vec, 0, q.WritableLen())
		r.spans = append(r.spans, span{slices: len(r.vec) - before, bytes: q.WritableLen()})
		r.room += q.WritableLen()
	}
}

func (r *receiver) forgetLocked() {
	clear(r.vec)
	r.vec, r.spans, r.room = r.vec[:0], r.spans[:0], 0
}

// receiveLocked takes one frame from the Conn, if there is one.
func (r *receiver) receiveLocked() (bool, error) {
	r.layoutLocked()
	if len(r.vec) > maxSlices { // one buffer in very many pieces
		r.forgetLocked()
		r.chunk = append(r.chunk[:0], r.spill)
	} else {
		r.chunk = append(append(r.chunk[:0], r.vec...), r.spill[min(r.room, len(r.spill)):])
	}
	n, err := r.act.conn.Recv(r.chunk)
	switch {
	case err != nil || n == 0:
		return false, err
	case n > r.room:
		r.holdLocked(n)
	case !r.acceptLocked(n):
		r.dev.stats.rxDropped.Add(1)
	default:
		r.finishLocked(n)
	}
	return true, nil
}

// acceptLocked checks and completes the header of a frame of n bytes, header
// included, that lies at the start of chunk. false: drop it.
func (r *receiver) acceptLocked(n int) bool {
	if n < HeaderBytes+EthernetBytes || n > HeaderBytes+MaxFrameBytes || r.dev.down.Load() {
		return false
	}
	var h [HeaderBytes]byte
	gather(h[:], r.chunk)
	hdr := Header(h[:])
	if r.cfg.offload&RxChecksum == 0 {
		hdr[0] = 0 // section 5.1.6.4.1; Linux taps say DATA_VALID unasked
	}
	if hdr.GSOType() == VIRTIO_NET_HDR_GSO_NONE && n-HeaderBytes > r.cfg.mtu {
		return false
	}
	hdr.SetNumBuffers(uint16(r.buffersLocked(n)))
	scatter(r.chunk, h[:])
	return true
}

// buffersLocked counts the posted buffers that n bytes take.
func (r *receiver) buffersLocked(n int) int {
	k := 0
	for n > 0 && k < len(r.spans) {
		n -= r.spans[k].bytes
		k++
	}
	return max(k, 1)
}

// finishLocked moves the buffers that hold n bytes to the batch.
func (r *receiver) finishLocked(n int) {
	r.dev.stats.rxFrames.Add(1)
	r.dev.stats.rxBytes.Add(uint64(n - HeaderBytes))
	k, slices := 0, 0
	for n > 0 {
		s := r.spans[k]
		used := min(n, s.bytes)
		r.posted[k].Wrote(0, used)
		r.posted[k].SetUsed(used)
		n -= used
		slices += s.slices
		r.room -= s.bytes
		k++
	}
	r.batch = append(r.batch, r.posted[:k]...)
	r.posted = pop(r.posted, k)
	r.spans = pop(r.spans, k)
	r.vec = pop(r.vec, slices)
}

// pop removes the first k elements in place, so that the array is used again.
func pop[T any](s []T, k int) []T {
	n := copy(s, s[k:])
	clear(s[n:])
	return s[:n]
}

// holdLocked keeps a frame of n bytes that lies in chunk and did not fit.
func (r *receiver) holdLocked(n int) {
	if !r.cfg.merge && len(r.spans) > 0 || n > HeaderBytes+MaxFrameBytes || r.dev.down.Load() {
		r.dev.stats.rxDropped.Add(1)
		return
	}
	r.held = make([]byte, n)
	gather(r.held, r.chunk)
	r.heldSince = time.Now()
}

// placeHeldLocked copies the held frame into posted buffers, if they suffice. It
// reports whether there is no held frame any more.
func (r *receiver) placeHeldLocked() bool {
	if len(r.posted) == 0 {
		r.heldSince = time.Now() // a paused guest posts nothing: no reason to drop
		return false
	}
	r.forgetLocked()
	r.layoutLocked()
	if r.room < len(r.held) && r.cfg.merge && len(r.vec) < maxSlices {
		if time.Since(r.heldSince) < holdTime {
			return false
		}
	}
	if r.room < len(r.held) {
		r.dev.stats.rxDropped.Add(1)
		r.held = nil
		return true
	}
	r.chunk = append(r.chunk[:0], r.vec...)
	scatter(r.chunk, r.held)
	if n := len(r.held); r.acceptLocked(n) {
		r.finishLocked(n)
	} else {
		r.dev.stats.rxDropped.Add(1)
	}
	r.held = nil
	return true
}

// gather fills p from the start of vec.
func gather(p []byte, vec [][]byte) {
	for _, s := range vec {
		if len(p) == 0 {
			return
		}
		p = p[copy(p, s):]
	}
}

// scatter writes p over the start of vec.
func scatter(vec [][]byte, p []byte) {
	for _, s := range vec {
		if len(p) == 0 {
			return
		}
		p = p[copy(s, p):]
	}
}
