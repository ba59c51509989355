package virtio

import (
	"fmt"
	"slices"

	"github.com/peervisor/peervisor/memory"
)

// publish ends requests of this queue: their bytes are there, so their pages are
// marked dirty, then their used entries are written, then one store of the used
// index shows all of them to the driver. It reports whether the driver wants to
// be notified, and whether the worker waits for room.
//
// A slot is free again before the store: from then on the driver may make the
// same head available, and the worker take it.
func (q *queue) publish(reqs []*Request) (notify, wake bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dead {
		return false, false, nil
	}
	idx, segs, written := q.usedIdx, 0, uint64(0)
	for i, r := range reqs {
		s, err := q.slotOf(r)
		if err != nil {
			q.leaveLocked(i)
			return false, false, err
		}
		segs += len(s.segs)
		written += uint64(r.used)
		s.markTouched(q)
		q.used.Put64(usedHeadBytes+usedElemBytes*int(idx&q.mask), r.Token|uint64(r.used)<<32)
		idx++
		q.release(s, r)
	}
	q.usedIdx = idx
	q.used.Store16(idxOff, idx)
	q.count.completed.Add(uint64(len(reqs)))
	q.count.writtenBytes.Add(written)
	q.leaveLocked(len(reqs))
	wake = q.segsOut.Add(-int64(segs)) < maxSegsOut && q.starved.Load() && q.starved.CompareAndSwap(true, false)
	return q.wantsNotifyLocked(), wake, nil
}

// slotOf returns the slot of a request that the half has, or an error for one
// that it has ended already.
func (q *queue) slotOf(r *Request) (*slot, error) {
	if r.Token < uint64(q.size) {
		s := &q.slots[r.Token]
		if &s.req == r && s.state.Load() == slotOut {
			return s, nil
		}
	}
	return nil, fmt.Errorf("request %d: %w", r.Seq, errNotOut)
}

// release makes the slot the worker's. The last thing it does is the store of state.
func (q *queue) release(s *slot, r *Request) {
	r.readable, r.writable, r.Data = nil, nil, nil
	if cap(s.segs) > keepSegs {
		s.segs, s.at = nil, nil
	}
	s.state.Store(slotFree)
}

// markTouched marks the pages that hold the touched range of the device-writable bytes.
func (s *slot) markTouched(q *queue) {
	off, n := s.req.Touched()
	for i, seg := range s.req.writable {
		if n <= 0 {
			return
		}
		if off >= len(seg) {
			off -= len(seg)
			continue
		}
		k := min(n, len(seg)-off)
		q.mem.MarkDirty(s.at[i]+memory.Addr(off), uint64(k))
		n -= k
		off = 0
	}
}

// leaveLocked counts n requests as no longer with the half.
func (q *queue) leaveLocked(n int) {
	if q.out -= n; q.out == 0 && q.drained != nil {
		close(q.drained)
		q.drained = nil
	}
}

// wantsNotifyLocked looks, after a store of the used index, whether the driver
// wants a used buffer notification (2.7.7). The store has a full barrier.
func (q *queue) wantsNotifyLocked() bool {
	if !q.eventIdx {
		return q.avail.Load16(flagsOff)&VIRTQ_AVAIL_F_NO_INTERRUPT == 0
	}
	before, now := q.signalled, q.usedIdx
	q.signalled = now
	event := q.avail.Load16(availHeadBytes + availElemBytes*int(q.size))
	// used_event lies in [before, now): an entry with that index was just used.
	return now-event-1 < now-before
}

// giveBack takes requests that the half returns unused. What it wrote to their
// room is no completion, but it is in the guest's memory.
func (q *queue) giveBack(reqs []*Request) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dead {
		return nil
	}
	for i, r := range reqs {
		s, err := q.slotOf(r)
		if err != nil {
			q.leaveLocked(i)
			return err
		}
		s.markTouched(q)
		s.state.Store(slotBack)
		q.back = append(q.back, r)
	}
	q.returned.Store(len(q.back) > 0)
	q.leaveLocked(len(reqs))
	return nil
}

// takeBack moves up to a batch of returned requests, the oldest first, into the
// worker's batch, as fresh requests of the same sequence numbers.
func (q *queue) takeBack(ch Channel) []*Request {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.back) == 0 {
		return nil
	}
	slices.SortFunc(q.back, func(a, b *Request) int { return int(int64(a.Seq - b.Seq)) })
	n := min(len(q.back), cap(q.batch))
	batch := append(q.batch[:0], q.back[:n]...)
	q.back = slices.Delete(q.back, 0, n)
	q.returned.Store(len(q.back) > 0)
	for _, r := range batch {
		r.Init(ch, q.index, r.Seq, r.Token, r.readable, r.writable)
		q.slots[r.Token].state.Store(slotOut)
	}
	q.out += n
	return batch
}

// fence makes every later completion a no-op: the rings are the driver's again.
func (q *queue) fence() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dead = true
	q.leaveLocked(q.out)
}

// drain returns a channel that is closed once the half has no request of
// the queue, and how many it has now.
func (q *queue) drain() (<-chan struct{}, int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.drained == nil {
		q.drained = make(chan struct{})
	}
	ch := q.drained
	out := q.out
	q.leaveLocked(0)
	return ch, out
}

// load returns how many requests the half has, and how many it gave back.
func (q *queue) load() (out, back int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.out, len(q.back)
}
