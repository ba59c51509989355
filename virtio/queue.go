package virtio

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/peervisor/peervisor/memory"
)

// Sizes of the parts of a split virtqueue in bytes (virtio 1.2, section 2.7).
const (
	descBytes      = 16 // struct virtq_desc
	availHeadBytes = 4  // flags, idx
	availElemBytes = 2
	usedHeadBytes  = 4 // flags, idx
	usedElemBytes  = 8
	eventBytes     = 2 // used_event behind the available ring, avail_event behind the used ring

	flagsOff = 0
	idxOff   = 2
)

// Bounds on what a driver can make the transport half keep or do at once.
const (
	// maxBatch bounds the requests of one Submit.
	maxBatch = 64
	// maxSegsOut bounds the buffers of all requests that a queue has in flight:
	// with more, the rest waits in the ring until some are completed. One more chain of
	// up to the queue size may come on top. At 32 bytes a buffer that is 2 MiB.
	maxSegsOut = 64 << 10
	// keepSegs is how many buffers' room a pooled request keeps for its next use.
	keepSegs = 64
)

// Why a queue is broken. The driver is shown DEVICE_NEEDS_RESET.
var (
	errAvailJump     = errors.New("available index is more than the queue size ahead (2.7.6)")
	errHeadRange     = errors.New("available ring names a descriptor beyond the table (2.7.6)")
	errHeadTwice     = errors.New("available ring names a chain that is still in flight (2.7.13)")
	errNextRange     = errors.New("descriptor points beyond its table (2.7.5)")
	errChainLong     = errors.New("descriptor chain loops or is longer than the queue size (2.7.5.3.1)")
	errChainBytes    = errors.New("descriptor chain has 2^32 bytes or more (2.7.5)")
	errReadAfter     = errors.New("device-readable descriptor after a device-writable one (2.7.4.2)")
	errIndirectOff   = errors.New("indirect descriptor, which was not negotiated (2.7.5.3.1)")
	errIndirectNest  = errors.New("indirect descriptor inside an indirect table (2.7.5.3.1)")
	errIndirectNext  = errors.New("indirect descriptor that has a next one (2.7.5.3.1)")
	errIndirectTable = errors.New("indirect table is not 1 to 65536 whole descriptors (2.7.5.3)")
	errNotOut        = errors.New("device half ended a request that it does not have")
)

// A slot's request is in one of three places:
//
//	slotFree ──pop──► slotOut ──Return──► slotBack
//	    ▲                │ ▲                 │
//	    └───Complete─────┘ └────resubmit─────┘
const (
	slotFree uint32 = iota // the head is not in flight
	slotOut                // the device half has the request
	slotBack               // given back, waits here
)

// slot is the pooled request of one descriptor-chain head. There is one for
// each entry of the descriptor table, so a head that comes twice shows.
type slot struct {
	// state says who owns the other fields: the worker while slotFree, whoever
	// ends the request (under queue.mu) while slotOut, the worker while slotBack.
	state atomic.Uint32
	req   Request
	segs  [][]byte      // readable, then writable
	at    []memory.Addr // guest address of each writable one
}

// queue is one live split virtqueue: made when the driver enables it, dropped
// at reset. The worker alone takes from it; anyone may complete.
type queue struct {
	index int
	size  uint16 // a power of two, 1..32768
	mask  uint16 // size - 1
	mem   *memory.Memory

	desc, avail, used memory.Window
	eventIdx          bool // VIRTIO_F_EVENT_IDX was negotiated
	indirect          bool // VIRTIO_F_INDIRECT_DESC was negotiated

	slots []slot // len == size

	// The worker's own.
	next    uint16 // index of the next available entry to take; next - avail.idx >= -size
	nextSeq uint64
	batch   []*Request

	segsOut atomic.Int64 // buffers of all requests in flight
	starved atomic.Bool  // the worker left entries in the ring because of maxSegsOut

	returned atomic.Bool // back is not empty

	// mu guards what follows; it is a leaf lock and is held for the time of a
	// few stores. It orders the used ring.
	mu        sync.Mutex
	dead      bool   // fenced by a reset: nothing may touch the rings any more
	usedIdx   uint16 // index of the next used entry
	signalled uint16 // usedIdx at the last look at used_event
	out       int    // requests that the half has, 0..size
	back      []*Request
	drained   chan struct{} // closed when out gets 0; nil: nobody waits

	count *queueCounters
}

// queueCounters outlive the queue: they are kept by the Core.
type queueCounters struct {
	wakes, pollHits, requests, completed atomic.Uint64
	readBytes, writtenBytes, interrupts  atomic.Uint64
}

// availLen and usedLen are the lengths of the rings in bytes, event field included.
func availLen(size uint16) uint64 {
	return availHeadBytes + availElemBytes*uint64(size) + eventBytes
}
func usedLen(size uint16) uint64 { return usedHeadBytes + usedElemBytes*uint64(size) + eventBytes }

// newQueue checks a queue's setup and borrows its rings. The driver's memory is
// not touched yet.
func newQueue(mem *memory.Memory, index int, s QueueSetup, features uint64, count *queueCounters) (*queue, error) {
	if s.Size == 0 || s.Size > s.MaxSize || s.Size&(s.Size-1) != 0 {
		return nil, fmt.Errorf("size %d is not a power of two up to %d (2.7)", s.Size, s.MaxSize)
	}
	q := &queue{
		index: index, size: s.Size, mask: s.Size - 1, mem: mem, count: count,
		eventIdx: features&(1<<VIRTIO_F_EVENT_IDX) != 0,
		indirect: features&(1<<VIRTIO_F_INDIRECT_DESC) != 0,
	}
	var err error
	if q.desc, err = mem.Window(s.Desc, descBytes*uint64(s.Size), 16); err != nil {
		return nil, fmt.Errorf("descriptor area: %w", err)
	}
	if q.avail, err = mem.Window(s.Driver, availLen(s.Size), 2); err != nil {
		return nil, fmt.Errorf("driver area: %w", err)
	}
	if q.used, err = mem.Window(s.Device, usedLen(s.Size), 4); err != nil {
		return nil, fmt.Errorf("device area: %w", err)
	}
	q.slots = make([]slot, s.Size)
	q.batch = make([]*Request, 0, min(maxBatch, int(s.Size)))
	return q, nil
}

// waiting reports whether the driver has made entries available that were not
// taken. The load has acquire order.
//
// With too many buffers in flight nothing counts as waiting until some complete.
func (q *queue) waiting() bool { return q.avail.Load16(idxOff) != q.next && !q.starved.Load() }

// pop takes up to a batch of chains off the available ring and readies their
// requests. The slice is the queue's and valid until the next pop. An error
// means that the queue is broken; what was taken then is never handed over.
func (q *queue) pop(ch Channel) ([]*Request, error) {
	n := q.avail.Load16(idxOff) - q.next
	if n == 0 {
		return nil, nil
	}
	if n > q.size {
		return nil, errAvailJump
	}
	batch, readBytes := q.batch[:0], 0
	for ; n > 0 && len(batch) < cap(batch); n-- {
		if q.segsOut.Load() >= maxSegsOut && !q.mayGoOn() {
			break
		}
		head := q.avail.Load16(availHeadBytes + availElemBytes*int(q.next&q.mask))
		if head >= q.size {
			return nil, fmt.Errorf("entry %d names %d: %w", q.next, head, errHeadRange)
		}
		s := &q.slots[head]
		if s.state.Load() != slotFree {
			return nil, fmt.Errorf("entry %d names %d: %w", q.next, head, errHeadTwice)
		}
		readable, err := q.fetch(s, head)
		if err != nil {
			return nil, fmt.Errorf("chain at descriptor %d: %w", head, err)
		}
		s.req.Init(ch, q.index, q.nextSeq, uint64(head), s.segs[:readable:readable], s.segs[readable:])
		// Now, and not with the batch: the same head may come again in it.
		s.state.Store(slotOut)
		readBytes += s.req.readLen
		q.segsOut.Add(int64(len(s.segs)))
		batch = append(batch, &s.req)
		q.next++
		q.nextSeq++
	}
	if len(batch) == 0 {
		return nil, nil
	}
	q.count.requests.Add(uint64(len(batch)))
	q.count.readBytes.Add(uint64(readBytes))
	q.mu.Lock()
	q.out += len(batch)
	q.mu.Unlock()
	return batch, nil
}

// mayGoOn is called with too many buffers in flight. Either it tells those who
// complete to ring the bell, or there is room again.
func (q *queue) mayGoOn() bool {
	q.starved.Store(true)
	if q.segsOut.Load() >= maxSegsOut {
		return false
	}
	q.starved.Store(false)
	return true
}

// suppress advises the driver that notifications are not needed. With EVENT_IDX
// the stale avail_event does that: it is passed once and not met again for 2^16
// entries.
func (q *queue) suppress() {
	if !q.eventIdx {
		q.used.Store16(flagsOff, VIRTQ_USED_F_NO_NOTIFY)
	}
}

// arm asks the driver for a notification of the next available entry. The
// caller looks at waiting() once more afterwards: the store has a full barrier behind
// it, so either the driver sees the request or we see the entry.
func (q *queue) arm() {
	if q.eventIdx {
		q.used.Store16(usedHeadBytes+usedElemBytes*int(q.size), q.next)
	} else {
		q.used.Store16(flagsOff, 0)
	}
}
