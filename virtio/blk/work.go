package blk

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/peervisor/peervisor/virtio"
)

// Bounds of the work on requests.
const (
	// A Submit gives completions to the channel once it has so many, so that the
	// driver can go on while the rest is done.
	maxDoneRequests = 32
	maxDoneBytes    = 256 << 10
	// Requests up to maxMergeEach bytes that lie one after the other share one
	// system call of at most maxMergeBytes. For larger ones the call is no cost.
	maxMergeEach  = 32 << 10
	maxMergeBytes = 256 << 10
	// A transfer that may have to wait is tried inline up to this size. If one
	// took longer than slowInline, the workers get what comes in the slowFactor-fold of
	// that time after it: a queue is held up for a fifth of the time at most.
	maxInlineBytes = 1 << 20
	slowInline     = time.Millisecond
	slowFactor     = 4
	// What is kept of ops for their next use.
	maxFreeOps   = 512
	maxFreeSlots = 1024
)

// op is one piece of work for the backend: a transfer for one or more requests
// of one queue, or the ranges of a discard or write-zeroes request.
type op struct {
	next *op
	typ  uint32
	off  int64
	n    int // bytes in all
	done int // bytes that were moved
	vec  Vec // the rest
	reqs []*virtio.Request
	ends []int // where the data of each request ends, from 0 to n
	segs []segment
}

// work is the part of a Device that waits for storage.
//
//	Submit ──inline──────────────────────────────► done ─► Channel.Complete
//	   │ would wait                                  ▲
//	   └────► head … tail ──► up to Workers loops ───┤
//	   │                             │ writethrough  │
//	   └─ flush ──────────► flushes ─┴──► sync ──────┘   (one at a time)
type work struct {
	dev *Device

	mu         sync.Mutex
	head, tail *op
	free       *op
	freeOps    int // <= maxFreeOps
	running    int // <= cfg.Workers
	// flushes wait for a Flush that starts after they came; spare is the array
	// of the round before.
	flushes, spare []*virtio.Request
	syncing        bool
	stopped        bool
	wg             sync.WaitGroup

	loopFunc, syncFunc func() // method values made once: a go statement with them allocates nothing

	slowUntil atomic.Int64 // by Device.now
}

func (w *work) init(d *Device) {
	w.dev, w.stopped = d, true
	w.loopFunc, w.syncFunc = w.loop, w.sync
}

func (w *work) start() {
	w.mu.Lock()
	w.stopped = false
	w.mu.Unlock()
}

// stop drops what has not begun and waits for the rest.
func (w *work) stop() {
	w.mu.Lock()
	w.stopped = true
	w.head, w.tail = nil, nil
	clear(w.flushes)
	w.flushes = w.flushes[:0]
	w.mu.Unlock()
	w.wg.Wait()
}

func (w *work) get(typ uint32) *op {
	w.mu.Lock()
	o := w.free
	if o != nil {
		w.free = o.next
		w.freeOps--
	}
	w.mu.Unlock()
	if o == nil {
		o = new(op)
	}
	o.next, o.typ = nil, typ
	return o
}

func (w *work) put(o *op) {
	o.vec.Reset()
	clear(o.reqs)
	o.reqs, o.ends, o.segs, o.n, o.done = o.reqs[:0], o.ends[:0], o.segs[:0], 0, 0
	if cap(o.vec.bufs) > maxFreeSlots {
		return
	}
	w.mu.Lock()
	if w.freeOps < maxFreeOps {
		o.next, w.free = w.free, o
		w.freeOps++
	}
	w.mu.Unlock()
}

// enqueue hands o to the workers.
func (w *work) enqueue(o *op) {
	w.dev.count.deferred.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	if w.tail == nil {
		w.head = o
	} else {
		w.tail.next = o
	}
	w.tail = o
	if w.running < w.dev.cfg.Workers {
		w.running++
		w.wg.Add(1)
		go w.loopFunc()
	}
}

// loop is a worker: it lives as long as there is work.
func (w *work) loop() {
	defer w.wg.Done()
	for {
		w.mu.Lock()
		o := w.head
		if o == nil || w.stopped {
			w.running--
			w.mu.Unlock()
			return
		}
		w.head = o.next
		if w.head == nil {
			w.tail = nil
		}
		w.mu.Unlock()
		o.next = nil
		w.dev.execute(o)
		w.put(o)
	}
}

// await puts r, whose work is done, on the list for the next flush.
func (w *work) await(r *virtio.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	w.flushes = append(w.flushes, r)
	if !w.syncing {
		w.syncing = true
		w.wg.Add(1)
		go w.syncFunc()
	}
}

// sync flushes as long as requests wait for it. A round serves those that were
// there before it started: the backend has all that they cover.
func (w *work) sync() {
	defer w.wg.Done()
	d := w.dev
	for {
		w.mu.Lock()
		batch := w.flushes
		if len(batch) == 0 || w.stopped {
			w.syncing = false
			w.mu.Unlock()
			return
		}
		w.flushes = w.spare[:0]
		w.mu.Unlock()

		status := byte(VIRTIO_BLK_S_OK)
		if d.failure.Load() != nil {
			status = VIRTIO_BLK_S_IOERR
		} else {
			d.count.syncs.Add(1)
			if err := d.cfg.Backend.Flush(); err != nil {
				d.fail(err)
				status = VIRTIO_BLK_S_IOERR
			}
		}
		for _, r := range batch {
			d.end(r, status, 0)
		}
		d.completeMixed(batch)
		clear(batch)

		w.mu.Lock()
		w.spare = batch[:0]
		w.mu.Unlock()
	}
}

// completeMixed completes requests of several queues, each run of one queue by one call.
func (d *Device) completeMixed(reqs []*virtio.Request) {
	for len(reqs) > 0 {
		n, q := 1, reqs[0].Queue
		for n < len(reqs) && reqs[n].Queue == q {
			n++
		}
		d.channel.Complete(reqs[:n])
		reqs = reqs[n:]
	}
}

// Submit implements virtio.Device.
func (d *Device) Submit(qi int, reqs []*virtio.Request) {
	q := &d.queues[qi]
	for _, r := range reqs {
		c, v := d.limits.decode(r)
		switch {
		case v == noRoom:
			d.count.errors.Add(1)
			d.channel.NeedsReset(fmt.Errorf("disk request %d of queue %d has no room for a status byte", r.Seq, qi))
			r.SetUsed(0)
			q.done = append(q.done, r)
		case v != proceed:
			d.endInline(q, r, byte(v), 0)
		default:
			d.begin(q, r, c)
		}
	}
	d.runOpen(q)
	d.publish(q)
}

// begin takes up a request whose header is in order.
func (d *Device) begin(q *queue, r *virtio.Request, c command) {
	if c.typ != VIRTIO_BLK_T_IN && c.typ != VIRTIO_BLK_T_GET_ID && d.failure.Load() != nil {
		d.endInline(q, r, VIRTIO_BLK_S_IOERR, 0)
		return
	}
	switch c.typ {
	case VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT:
		if c.n == 0 {
			d.endInline(q, r, VIRTIO_BLK_S_OK, 0)
			return
		}
		d.add(q, r, c)
	case VIRTIO_BLK_T_FLUSH:
		d.count.flushes.Add(1)
		if in := d.cfg.Backend.Info(); in.Volatile || in.ReadOnly {
			d.endInline(q, r, VIRTIO_BLK_S_OK, 0)
			return
		}
		d.await(r)
	case VIRTIO_BLK_T_GET_ID:
		d.count.getIDs.Add(1)
		var id [VIRTIO_BLK_ID_BYTES]byte
		copy(id[:], d.cfg.Serial)
		r.WriteAt(id[:], 0)
		d.endInline(q, r, VIRTIO_BLK_S_OK, len(id))
	default:
		o := d.get(c.typ)
		var v verdict
		if o.segs, v = d.limits.segments(o.segs, c, r); v != proceed {
			d.put(o)
			d.endInline(q, r, byte(v), 0)
			return
		}
		o.reqs = append(o.reqs, r)
		d.enqueue(o)
	}
}

// add makes r part of the transfer under construction, or the start of the next.
func (d *Device) add(q *queue, r *virtio.Request, c command) {
	o := q.open
	if o == nil || o.typ != c.typ || o.off+int64(o.n) != c.off ||
		c.n > maxMergeEach || o.n+c.n > maxMergeBytes {
		d.runOpen(q)
		o = d.get(c.typ)
		o.off = c.off
		q.open = o
	} else {
		d.count.merged.Add(1)
	}
	o.vec.appendData(r, c.typ, c.n)
	o.n += c.n
	o.reqs = append(o.reqs, r)
	o.ends = append(o.ends, o.n)
}

func (v *Vec) appendData(r *virtio.Request, typ uint32, n int) {
	if typ == VIRTIO_BLK_T_IN {
		v.bufs = r.WriteVec(v.bufs, 0, n)
	} else {
		v.bufs = r.ReadVec(v.bufs, headerBytes, n)
	}
	v.n += n
}

// runOpen carries out the transfer under construction, if it need not wait.
func (d *Device) runOpen(q *queue) {
	o := q.open
	if o == nil {
		return
	}
	q.open = nil
	err := d.tryInline(o)
	if err == ErrWouldBlock || err == ErrUnsure {
		d.enqueue(o)
		return
	}
	if err != nil {
		d.report(err)
	}
	d.settle(o, err)
	q.done = append(q.done, o.reqs...)
	q.size += o.n
	d.put(o)
	if len(q.done) >= maxDoneRequests || q.size >= maxDoneBytes {
		d.publish(q)
	}
}

func (d *Device) tryInline(o *op) error {
	if o.n > maxInlineBytes {
		return ErrWouldBlock
	}
	err := d.transfer(o, NoWait)
	if err != ErrUnsure {
		return err
	}
	start := d.now()
	if int64(start) < d.slowUntil.Load() {
		return err
	}
	err = d.transfer(o, Wait)
	if end := d.now(); end-start > slowInline {
		d.slowUntil.Store(int64(end + slowFactor*(end-start)))
	}
	return err
}

func (d *Device) transfer(o *op, mode Mode) error {
	call := d.cfg.Backend.ReadAt
	if o.typ == VIRTIO_BLK_T_OUT {
		call = d.cfg.Backend.WriteAt
	}
	n, err := call(&o.vec, o.off+int64(o.done), mode)
	o.done += n
	return err
}

// execute is the work on o that may wait, and its end.
func (d *Device) execute(o *op) {
	var err error
	switch {
	case o.typ != VIRTIO_BLK_T_IN && d.failure.Load() != nil:
		err = d.Err()
	case o.typ == VIRTIO_BLK_T_IN || o.typ == VIRTIO_BLK_T_OUT:
		if err = d.transfer(o, Wait); err != nil {
			d.report(err)
		}
	default:
		if err = d.ranges(o); err != nil {
			d.report(err)
		}
	}
	d.settle(o, err)
	if len(o.reqs) > 0 {
		d.channel.Complete(o.reqs)
	}
}

// ranges carries out the segments of a discard or write-zeroes request.
func (d *Device) ranges(o *op) error {
	for _, s := range o.segs {
		var err error
		if o.typ == VIRTIO_BLK_T_DISCARD {
			err = d.cfg.Backend.(Discarder).Discard(s.off, s.n)
		} else {
			err = d.cfg.Backend.(Zeroer).WriteZeroes(s.off, s.n, s.unmap)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// settle gives every request of o its status and leaves in o.reqs those that
// can be completed: in writethrough mode the writes wait for a flush first. Where
// a transfer for several requests failed, those that it has not reached are
// tried alone, so that a bad sector costs only its own request.
func (d *Device) settle(o *op, err error) {
	keep := o.reqs[:0]
	stable := o.typ != VIRTIO_BLK_T_IN && d.writethrough() && !d.cfg.Backend.Info().Volatile
	start := 0
	for i, r := range o.reqs {
		n := 0
		if len(o.ends) > 0 {
			n = o.ends[i] - start
		}
		e := err
		if e != nil && len(o.ends) > 1 {
			if e = nil; o.ends[i] > o.done {
				e = d.alone(o, r, start, n)
			}
		}
		start += n
		switch {
		case e != nil:
			d.end(r, VIRTIO_BLK_S_IOERR, 0)
		case stable:
			d.tally(o.typ, n)
			d.await(r)
			continue
		default:
			d.tally(o.typ, n)
			wrote := 0
			if o.typ == VIRTIO_BLK_T_IN {
				wrote = n
			}
			d.end(r, VIRTIO_BLK_S_OK, wrote)
		}
		keep = append(keep, r)
	}
	clear(o.reqs[len(keep):])
	o.reqs = keep
}

// alone does the part of o that belongs to r again.
func (d *Device) alone(o *op, r *virtio.Request, start, n int) error {
	var v Vec
	v.appendData(r, o.typ, n)
	call := d.cfg.Backend.ReadAt
	if o.typ == VIRTIO_BLK_T_OUT {
		if d.failure.Load() != nil {
			return d.Err()
		}
		call = d.cfg.Backend.WriteAt
	}
	_, err := call(&v, o.off+int64(start), Wait)
	if err != nil {
		d.report(err)
	}
	return err
}

func (d *Device) tally(typ uint32, n int) {
	c := &d.count
	switch typ {
	case VIRTIO_BLK_T_IN:
		c.reads.Add(1)
		c.readBytes.Add(uint64(n))
	case VIRTIO_BLK_T_OUT:
		c.writes.Add(1)
		c.writtenBytes.Add(uint64(n))
	case VIRTIO_BLK_T_DISCARD:
		c.discards.Add(1)
	case VIRTIO_BLK_T_WRITE_ZEROES:
		c.zeroes.Add(1)
	}
}

// end gives r its status.
func (d *Device) end(r *virtio.Request, status byte, wrote int) {
	if status != VIRTIO_BLK_S_OK {
		d.count.errors.Add(1)
	}
	finish(r, status, wrote)
}

func (d *Device) endInline(q *queue, r *virtio.Request, status byte, wrote int) {
	d.end(r, status, wrote)
	q.done = append(q.done, r)
}

// publish completes what is done.
func (d *Device) publish(q *queue) {
	if len(q.done) > 0 {
		d.channel.Complete(q.done)
		q.done, q.size = q.done[:0], 0
	}
}
