package virtio

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/memory"
)

// nullHalf completes every request at once: what is left is the transport half.
type nullHalf struct {
	queues  int
	channel Channel
	batched bool // one Complete for a batch
}

func (h *nullHalf) Info() Info {
	i := Info{ID: 2}
	for range h.queues {
		i.Queues = append(i.Queues, QueueInfo{MaxSize: 256})
	}
	return i
}
func (h *nullHalf) Activate(a Activation) error { h.channel = a.Channel; return nil }
func (h *nullHalf) WriteConfig(int, []byte)     {}
func (h *nullHalf) Submit(_ int, reqs []*Request) {
	if h.batched {
		for _, r := range reqs {
			r.SetUsed(1)
		}
		h.channel.Complete(reqs)
		return
	}
	for _, r := range reqs {
		r.Complete(1)
	}
}
func (h *nullHalf) Quiesce(int) {}
func (h *nullHalf) Reset()      {}

type nullNotifier struct{}

func (nullNotifier) QueueInterrupt(int) error { return nil }
func (nullNotifier) ConfigInterrupt() error   { return nil }
func (nullNotifier) ResetDone()               {}

// benchQueue is a driver that polls, as lean as the bare guest's: every chain
// is a readable header, a data buffer and a status byte, as blk has them.
type benchQueue struct {
	size        int
	avail, used memory.Window
	availIdx    uint16
	usedIdx     uint16
	fd          int
	kicks       int
	eventIdx    bool
}

const (
	benchDesc, benchAvail, benchUsed, benchData = 0x10000, 0x20000, 0x30000, 0x100000
	benchSize                                   = 256
)

func newBench(tb testing.TB, half Device, features uint64) (*Core, *benchQueue) {
	tb.Helper()
	mem, err := memory.New("bench", memory.Layout(8<<20))
	if err != nil {
		tb.Fatal(err)
	}
	c, err := NewCore(CoreConfig{Name: "bench", Device: half, Memory: mem, Notifier: nullNotifier{}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
		_ = mem.Close()
	})
	q := &benchQueue{size: benchSize, fd: c.DoorbellFD(0), eventIdx: features&(1<<VIRTIO_F_EVENT_IDX) != 0}
	q.avail, _ = mem.Window(benchAvail, availLen(benchSize), 2)
	q.used, _ = mem.Window(benchUsed, usedLen(benchSize), 4)
	q.avail.Store16(flagsOff, VIRTQ_AVAIL_F_NO_INTERRUPT)
	desc, _ := mem.Window(benchDesc, benchSize*descBytes, 16)
	for i := 0; i+2 < benchSize; i += 3 {
		put := func(n, addr, length, flags int) {
			desc.Put64((i+n)*descBytes, uint64(addr))
			desc.Put64((i+n)*descBytes+8, uint64(length)|uint64(flags)<<32|uint64(i+n+1)<<48)
		}
		put(0, benchData, 16, VIRTQ_DESC_F_NEXT)
		put(1, benchData+4096*(i/3+1), 4096, VIRTQ_DESC_F_NEXT|VIRTQ_DESC_F_WRITE)
		put(2, benchData+64, 1, VIRTQ_DESC_F_WRITE)
	}
	c.SetStatus(3)
	c.SetDriverFeatures(0, uint32(features))
	c.SetDriverFeatures(1, uint32(features>>32))
	c.SetStatus(11)
	c.SetQueueArea(0, AreaDesc, false, benchDesc)
	c.SetQueueArea(0, AreaDriver, false, benchAvail)
	c.SetQueueArea(0, AreaDevice, false, benchUsed)
	c.SetQueueSize(0, benchSize)
	c.EnableQueue(0)
	c.SetStatus(15)
	if s := c.Status(); s != 15 {
		tb.Fatalf("status is %#x", s)
	}
	return c, q
}

func (q *benchQueue) push(chain int) {
	b := q.avail.Bytes(availHeadBytes+availElemBytes*int(q.availIdx&(benchSize-1)), 2)
	binary.LittleEndian.PutUint16(b, uint16(3*chain))
	q.availIdx++
}

var benchOne = []byte{1, 0, 0, 0, 0, 0, 0, 0}

func (q *benchQueue) kick(from uint16) {
	q.avail.Store16(idxOff, q.availIdx)
	want := q.used.Load16(flagsOff) == 0
	if q.eventIdx {
		event := q.used.Load16(usedHeadBytes + usedElemBytes*benchSize)
		want = q.availIdx-event-1 < q.availIdx-from
	}
	if want {
		q.kicks++
		_, _ = unix.Write(q.fd, benchOne)
	}
}

// await polls until at least one more is used, and returns how many are.
func (q *benchQueue) await(tb testing.TB) int {
	for i := 0; ; i++ {
		if n := q.used.Load16(idxOff) - q.usedIdx; n != 0 {
			q.usedIdx += n
			return int(n)
		}
		if i&0xFFFF == 0xFFFF {
			runtime.Gosched()
		}
	}
}

// run does n requests with depth of them in flight; pause is the driver's time
// between a completion and the next request.
func (q *benchQueue) run(tb testing.TB, n, depth int, pause time.Duration) {
	sent, done := 0, 0
	chain := 0
	for done < n {
		from := q.availIdx
		for sent < n && sent-done < depth {
			q.push(chain)
			chain = (chain + 1) % (benchSize / 3)
			sent++
		}
		if q.availIdx != from {
			q.kick(from)
		}
		done += q.await(tb)
		if pause > 0 {
			for t := time.Now(); time.Since(t) < pause; {
			}
		}
	}
}

const benchFeatures = transportFeatures

// BenchmarkQueue is the whole way of a request but for the guest's exit and the
// device's work: ring, worker, Submit, Complete, used ring.
func BenchmarkQueue(b *testing.B) {
	processors(b)
	for _, features := range []uint64{benchFeatures, benchFeatures &^ (1 << VIRTIO_F_EVENT_IDX)} {
		for _, depth := range []int{1, 32} {
			for _, batched := range []bool{false, true} {
				for _, pause := range []time.Duration{0, 10 * time.Microsecond, 100 * time.Microsecond} {
					if (pause > 0 && depth > 1) || (batched && depth == 1) {
						continue
					}
					name := fmt.Sprintf("eventidx=%v/depth=%d/batched=%v/pause=%v", features&(1<<VIRTIO_F_EVENT_IDX) != 0, depth, batched, pause)
					b.Run(name, func(b *testing.B) {
						c, q := newBench(b, &nullHalf{queues: 1, batched: batched}, features)
						q.run(b, 1000, depth, pause)
						q.kicks = 0
						b.ReportAllocs()
						b.ResetTimer()
						q.run(b, b.N, depth, pause)
						b.StopTimer()
						s := c.Stats().Queues[0]
						b.ReportMetric(float64(q.kicks)/float64(b.N), "kicks/op")
						b.ReportMetric(float64(s.Wakes)/float64(s.Requests), "wakes/op")
					})
				}
			}
		}
	}
}

// processors sets GOMAXPROCS as a machine does: a worker is woken by the
// netpoller, which wants a processor that is not spinning.
func processors(tb testing.TB) {
	old := runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 5))
	tb.Cleanup(func() { runtime.GOMAXPROCS(old) })
}

// TestNoAllocations: a request in steady state allocates nothing, from the
// available ring to the used ring, the worker's sleep and wake-up included.
func TestNoAllocations(t *testing.T) {
	processors(t)
	for _, depth := range []int{1, 32} {
		_, q := newBench(t, &nullHalf{queues: 1}, benchFeatures)
		q.run(t, 1000, depth, 0)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		q.run(t, 10000, depth, 0)
		q.run(t, 100, depth, 100*time.Microsecond)
		runtime.ReadMemStats(&after)
		// The test's own runtime may allocate now and then.
		if n := after.Mallocs - before.Mallocs; n > 100 {
			t.Errorf("depth %d: %d allocations in 10100 requests", depth, n)
		}
	}
}

// TestNoAllocationsInQueue is the same by testing.AllocsPerRun, which wants one
// processor and so no worker.
func TestNoAllocationsInQueue(t *testing.T) {
	c, q := newBench(t, &nullHalf{queues: 1}, benchFeatures)
	act := c.current()
	if err := c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	live := act.queues[0]
	once := func() {
		for i := range 32 {
			q.push(i)
		}
		q.avail.Store16(idxOff, q.availIdx)
		reqs, err := live.pop(act)
		if err != nil || len(reqs) != 32 {
			t.Fatalf("popped %d: %v", len(reqs), err)
		}
		act.Complete(reqs[:16])
		for _, r := range reqs[16:] {
			r.Complete(1)
		}
	}
	once()
	if n := testing.AllocsPerRun(100, once); n != 0 {
		t.Errorf("%v allocations in 32 requests", n)
	}
}
