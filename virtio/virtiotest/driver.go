package virtiotest

import (
	"encoding/binary"
	"testing"

	"github.com/peervisor/peervisor/memory"
	"github.com/peervisor/peervisor/virtio"
)

// Driver is a guest's driver of one device.
type Driver struct {
	tb  testing.TB
	Mem *memory.Memory
	T   Transport
	// Features is what Start negotiates: by default all that is offered.
	Features uint64
	Queues   []*Queue
	next     memory.Addr
}

// NewMemory is guest RAM for a test, closed at its end.
func NewMemory(tb testing.TB, sizeBytes uint64) *memory.Memory {
	tb.Helper()
	m, err := memory.New("virtiotest", memory.Layout(sizeBytes))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = m.Close() })
	return m
}

// NewDriver is a driver in fresh memory of 16 MiB; the transport half is closed at
// the end of the test.
func NewDriver(tb testing.TB, half virtio.Device, transport func(testing.TB, virtio.Device, *memory.Memory) Transport) *Driver {
	tb.Helper()
	d := &Driver{tb: tb, Mem: NewMemory(tb, 16<<20), next: 0x10000}
	d.T = transport(tb, half, d.Mem)
	tb.Cleanup(func() {
		if err := d.T.Close(); err != nil {
			tb.Error(err)
		}
	})
	d.Features = d.T.DeviceFeatures()
	return d
}

// Alloc takes n bytes of guest memory, aligned to a power of two.
func (d *Driver) Alloc(n, align uint64) memory.Addr {
	a := (d.next + memory.Addr(align-1)) &^ memory.Addr(align-1)
	d.next = a + memory.Addr(n)
	if uint64(d.next) > d.Mem.SizeBytes() {
		d.tb.Fatalf("guest memory is used up at %#x", d.next)
	}
	return a
}

// Negotiate goes as far as FEATURES_OK and returns whether it was accepted.
func (d *Driver) Negotiate() bool {
	d.T.SetStatus(0)
	WaitFor(d.tb, "reset", func() bool { return d.T.Status() == 0 })
	d.T.SetStatus(1)
	d.T.SetStatus(3)
	d.T.SetDriverFeatures(d.Features)
	d.T.SetStatus(11)
	return d.T.Status() == 11
}

// Start initializes the device with all queues at the given size (0: the largest), in the
// order of section 3.1.1.
func (d *Driver) Start(size int) {
	d.tb.Helper()
	if !d.Negotiate() {
		d.tb.Fatalf("features %#x refused: status %#x", d.Features, d.T.Status())
	}
	d.Queues = nil
	for i := 0; d.T.QueueMax(i) > 0; i++ {
		d.AddQueue(i, size)
		if !d.T.QueueEnabled(i) {
			d.tb.Fatalf("queue %d was not enabled: status %#x", i, d.T.Status())
		}
	}
	d.T.SetStatus(15)
	if s := d.T.Status(); s != 15 {
		d.tb.Fatalf("status is %#x after DRIVER_OK", s)
	}
}

// AddQueue allocates and enables one queue.
func (d *Driver) AddQueue(i, size int) *Queue {
	if size == 0 {
		size = d.T.QueueMax(i)
	}
	q := d.NewQueue(i, size)
	d.Queues = append(d.Queues, q)
	d.T.SetupQueue(i, uint32(size), q.Desc, q.Avail, q.UsedRing)
	d.T.EnableQueue(i)
	return q
}

// NewQueue allocates the rings of a queue.
func (d *Driver) NewQueue(i, size int) *Queue {
	n := uint64(size)
	q := &Queue{
		d: d, Index: i, Size: size, Desc: d.Alloc(16*n, 16), Avail: d.Alloc(6+2*n, 2), UsedRing: d.Alloc(6+8*n, 4),
		eventIdx: d.Features&(1<<virtio.VIRTIO_F_EVENT_IDX) != 0,
	}
	var err error
	if q.avail, err = d.Mem.Window(q.Avail, 6+2*n, 2); err != nil {
		d.tb.Fatal(err)
	}
	if q.used, err = d.Mem.Window(q.UsedRing, 6+8*n, 4); err != nil {
		d.tb.Fatal(err)
	}
	d.zero(q.Desc, 16*n)
	d.zero(q.Avail, 6+2*n)
	d.zero(q.UsedRing, 6+8*n)
	for h := size - 1; h >= 0; h-- {
		q.free = append(q.free, uint16(h))
	}
	return q
}

func (d *Driver) zero(a memory.Addr, n uint64) {
	if err := d.Mem.Zero(a, n); err != nil {
		d.tb.Fatal(err)
	}
}

// Put writes bytes to guest memory, Get reads them.
func (d *Driver) Put(a memory.Addr, p []byte) {
	if err := d.Mem.WriteAt(p, a); err != nil {
		d.tb.Fatal(err)
	}
}

// Get reads n bytes of guest memory.
func (d *Driver) Get(a memory.Addr, n int) []byte {
	p := make([]byte, n)
	if err := d.Mem.ReadAt(p, a); err != nil {
		d.tb.Fatal(err)
	}
	return p
}

// Buf is one buffer of a chain.
type Buf struct {
	Addr     memory.Addr
	Len      uint32
	Writable bool
}

// Desc is one descriptor as it lies in memory.
type Desc struct {
	Addr  uint64
	Len   uint32
	Flags uint16
	Next  uint16
}

// Bytes is the descriptor's encoding.
func (x Desc) Bytes() []byte {
	b := binary.LittleEndian.AppendUint64(nil, x.Addr)
	b = binary.LittleEndian.AppendUint32(b, x.Len)
	b = binary.LittleEndian.AppendUint16(b, x.Flags)
	return binary.LittleEndian.AppendUint16(b, x.Next)
}

// Used is an entry of the used ring.
type Used struct{ ID, Len uint32 }

// Queue is the driver's side of a split virtqueue.
type Queue struct {
	d                     *Driver
	Index, Size           int
	Desc, Avail, UsedRing memory.Addr
	avail, used           memory.Window
	eventIdx              bool

	free     []uint16
	chains   map[uint16][]uint16
	availIdx uint16
	kicked   uint16
	lastUsed uint16
}

// SetDesc writes descriptor i.
func (q *Queue) SetDesc(i int, x Desc) { q.d.Put(q.Desc+memory.Addr(16*i), x.Bytes()) }

// Push puts head into the available ring; Expose shows the driver's index.
func (q *Queue) Push(head uint16) {
	q.avail.Store16(4+2*(int(q.availIdx)%q.Size), head)
	q.availIdx++
}

// Expose stores the available index.
func (q *Queue) Expose() { q.avail.Store16(2, q.availIdx) }

// SetAvailIdx stores any available index.
func (q *Queue) SetAvailIdx(v uint16) { q.availIdx = v; q.Expose() }

// SetAvailFlags stores the flags of the available ring.
func (q *Queue) SetAvailFlags(v uint16) { q.avail.Store16(0, v) }

// SetUsedEvent stores used_event.
func (q *Queue) SetUsedEvent(v uint16) { q.avail.Store16(4+2*q.Size, v) }

// UsedFlags, UsedIdx and AvailEvent are what the device wrote.
func (q *Queue) UsedFlags() uint16  { return q.used.Load16(0) }
func (q *Queue) UsedIdx() uint16    { return q.used.Load16(2) }
func (q *Queue) AvailEvent() uint16 { return q.used.Load16(4 + 8*q.Size) }

// Add makes a chain of direct descriptors and pushes it. It returns the head.
func (q *Queue) Add(bufs ...Buf) uint16 {
	if len(bufs) > len(q.free) {
		q.d.tb.Fatalf("queue %d has %d free descriptors, %d are needed", q.Index, len(q.free), len(bufs))
	}
	ids := append([]uint16(nil), q.free[len(q.free)-len(bufs):]...)
	q.free = q.free[:len(q.free)-len(bufs)]
	for i, b := range bufs {
		x := Desc{Addr: uint64(b.Addr), Len: b.Len}
		if b.Writable {
			x.Flags |= virtio.VIRTQ_DESC_F_WRITE
		}
		if i+1 < len(bufs) {
			x.Flags |= virtio.VIRTQ_DESC_F_NEXT
			x.Next = ids[i+1]
		}
		q.SetDesc(int(ids[i]), x)
	}
	if q.chains == nil {
		q.chains = map[uint16][]uint16{}
	}
	q.chains[ids[0]] = ids
	q.Push(ids[0])
	return ids[0]
}

// AddIndirect makes a chain in an indirect table and pushes it.
func (q *Queue) AddIndirect(bufs ...Buf) uint16 {
	table := q.d.Alloc(uint64(16*len(bufs)), 16)
	for i, b := range bufs {
		x := Desc{Addr: uint64(b.Addr), Len: b.Len}
		if b.Writable {
			x.Flags |= virtio.VIRTQ_DESC_F_WRITE
		}
		if i+1 < len(bufs) {
			x.Flags |= virtio.VIRTQ_DESC_F_NEXT
			x.Next = uint16(i + 1)
		}
		q.d.Put(table+memory.Addr(16*i), x.Bytes())
	}
	h := q.Add(Buf{Addr: table, Len: uint32(16 * len(bufs))})
	q.SetDesc(int(h), Desc{Addr: uint64(table), Len: uint32(16 * len(bufs)), Flags: virtio.VIRTQ_DESC_F_INDIRECT})
	return h
}

// Kick exposes what was added and notifies the device if it wants that. It reports
// whether it did.
func (q *Queue) Kick() bool {
	old := q.kicked
	q.kicked = q.availIdx
	q.Expose()
	wanted := q.UsedFlags()&virtio.VIRTQ_USED_F_NO_NOTIFY == 0
	if q.eventIdx {
		wanted = q.availIdx-q.AvailEvent()-1 < q.availIdx-old
	}
	if wanted {
		q.d.T.Notify(q.Index)
	}
	return wanted
}

// Poll takes the next used entry, if there is one, and frees its chain.
func (q *Queue) Poll() (Used, bool) {
	if q.used.Load16(2) == q.lastUsed {
		return Used{}, false
	}
	b := q.used.Bytes(4+8*(int(q.lastUsed)%q.Size), 8)
	u := Used{ID: binary.LittleEndian.Uint32(b), Len: binary.LittleEndian.Uint32(b[4:])}
	q.lastUsed++
	q.free = append(q.free, q.chains[uint16(u.ID)]...)
	delete(q.chains, uint16(u.ID))
	return u, true
}

// Wait takes n used entries.
func (q *Queue) Wait(n int) []Used {
	q.d.tb.Helper()
	var us []Used
	WaitFor(q.d.tb, "used buffers", func() bool {
		for len(us) < n {
			u, ok := q.Poll()
			if !ok {
				return false
			}
			us = append(us, u)
		}
		return true
	})
	return us
}
