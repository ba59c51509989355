package virtio_test

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"slices"
	"testing"

	"github.com/peervisor/peervisor/memory"
	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/virtiotest"
)

// The contract of docs/device-contract.md, for every transport, with the device
// half called directly and at the other end of a wire.

type rig struct {
	*virtiotest.Driver
	half *virtiotest.Device
	wire *virtiotest.Wire // nil: called directly
}

func contract(t *testing.T, f func(t *testing.T, start func(half *virtiotest.Device) rig)) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		t.Run("direct", func(t *testing.T) {
			f(t, func(half *virtiotest.Device) rig {
				t.Cleanup(func() {
					if err := half.Violations(); err != nil {
						t.Error(err)
					}
				})
				return rig{virtiotest.NewDriver(t, half, make), half, nil}
			})
		})
		t.Run("wire", func(t *testing.T) {
			f(t, func(half *virtiotest.Device) rig {
				t.Cleanup(func() {
					if err := half.Violations(); err != nil {
						t.Error(err)
					}
				})
				w := virtiotest.NewWire(t, half)
				return rig{virtiotest.NewDriver(t, w, make), half, w}
			})
		})
	})
}

func holding(queues int, size uint16) *virtiotest.Device {
	d := virtiotest.NewDevice(queues, size)
	d.Serve = virtiotest.Hold
	return d
}

// post adds n writable buffers of one page each and waits until the half has them.
func (r rig) post(t *testing.T, queue, n int) (heads []uint16, bufs []memory.Addr) {
	t.Helper()
	for range n {
		a := r.Alloc(4096, 4096)
		bufs = append(bufs, a)
		heads = append(heads, r.Queues[queue].Add(virtiotest.Buf{Addr: a, Len: 4096, Writable: true}))
	}
	before := r.half.HeldCount(queue)
	r.Queues[queue].Kick()
	virtiotest.WaitFor(t, "posted buffers", func() bool { return r.half.HeldCount(queue) == before+n })
	return heads, bufs
}

func (r rig) pause(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), virtiotest.Deadline)
	defer cancel()
	if err := r.T.Pause(ctx); err != nil {
		t.Fatal(err)
	}
}

func (r rig) needsReset() bool { return r.T.Status()&virtio.VIRTIO_CONFIG_S_NEEDS_RESET != 0 }

func TestContractEcho(t *testing.T) {
	contract(t, func(t *testing.T, start func(*virtiotest.Device) rig) {
		r := start(virtiotest.NewDevice(2, 32))
		r.Start(0)
		echo(t, r.Driver, r.Queues[0], 100, 8, false)
		echo(t, r.Driver, r.Queues[1], 100, 8, true)
	})
}

// A failed 1 MiB read costs one byte of extents, and touches one page.
func TestContractExtents(t *testing.T) {
	contract(t, func(t *testing.T, start func(*virtiotest.Device) rig) {
		const room = 1 << 20
		half := virtiotest.NewDevice(1, 8)
		half.Serve = func(_ *virtiotest.Device, r *virtio.Request) {
			r.WriteAt([]byte{7}, r.WritableLen()-1)
			r.Zero(100, 50)
			r.Complete(r.WritableLen())
		}
		r := start(half)
		r.Start(0)
		buf := r.Alloc(room, 4096)
		r.Put(buf, bytes.Repeat([]byte{0xAA}, room))
		dirty := make([]uint64, r.Mem.SizeBytes()/memory.PageBytes/64)
		if err := r.Mem.TakeDirty(0, dirty); err != nil {
			t.Fatal(err)
		}
		r.Queues[0].Add(virtiotest.Buf{Addr: buf, Len: 5000, Writable: true}, virtiotest.Buf{Addr: buf + 5000, Len: room - 5000, Writable: true})
		r.Queues[0].Kick()
		if u := r.Queues[0].Wait(1)[0]; u.Len != room {
			t.Errorf("used length %d", u.Len)
		}
		want := bytes.Repeat([]byte{0xAA}, room)
		clear(want[100:150])
		want[room-1] = 7
		if !bytes.Equal(r.Get(buf, room), want) {
			t.Error("other bytes than those of the extents changed")
		}
		if r.wire != nil && r.wire.ExtentBytes() != 1 {
			t.Errorf("%d bytes crossed the wire for a status byte", r.wire.ExtentBytes())
		}
	})
}

// Every page that the device wrote is marked: what was touched, the used ring; and
// nothing that it only read.
func TestContractDirtyPages(t *testing.T) {
	contract(t, func(t *testing.T, start func(*virtiotest.Device) rig) {
		r := start(virtiotest.NewDevice(1, 8))
		r.Start(0)
		src, dst := r.Alloc(3*4096, 4096), r.Alloc(16*4096, 4096)
		r.Put(src, bytes.Repeat([]byte{5}, 3*4096))
		// Three pages' worth into buffers that start in mid-page, with room behind.
		r.Queues[0].Add(
			virtiotest.Buf{Addr: src, Len: 2 * 4096},
			virtiotest.Buf{Addr: dst + 4096 + 4000, Len: 96 + 4096, Writable: true}, // pages 1, 2
			virtiotest.Buf{Addr: dst + 5*4096, Len: 8 * 4096, Writable: true},       // page 5
		)
		r.Queues[0].Expose()
		dirty := make([]uint64, r.Mem.SizeBytes()/memory.PageBytes/64)
		if err := r.Mem.TakeDirty(0, dirty); err != nil {
			t.Fatal(err)
		}
		clear(dirty)
		r.T.Notify(0)
		r.Queues[0].Wait(1)
		if err := r.Mem.TakeDirty(0, dirty); err != nil {
			t.Fatal(err)
		}
		isDirty := func(a memory.Addr) bool { p := a / memory.PageBytes; return dirty[p/64]&(1<<(p%64)) != 0 }
		for page := range memory.Addr(16) {
			want := page == 1 || page == 2 || page == 5
			if isDirty(dst+page*4096) != want {
				t.Errorf("page %d of the buffers: dirty %v, want %v", page, !want, want)
			}
		}
		for page := range memory.Addr(3) {
			if isDirty(src + page*4096) {
				t.Errorf("page %d of the device-readable bytes is dirty", page)
			}
		}
		if !isDirty(r.Queues[0].UsedRing) {
			t.Error("the used ring is not dirty")
		}
	})
}

// Several requests end by one completion, in its order, with one interrupt.
func TestContractSeveralRequestsToOneCompletion(t *testing.T) {
	contract(t, func(t *testing.T, start func(*virtiotest.Device) rig) {
		r := start(holding(1, 16))
		r.Start(0)
		heads, bufs := r.post(t, 0, 3)
		reqs := r.half.Held(0)
		frame := bytes.Repeat([]byte{9}, 3*4096-100)
		for i, q := range reqs {
			part := frame[i*4096 : min((i+1)*4096, len(frame))]
			q.WriteAt(part, 0)
			q.SetUsed(len(part))
		}
		order := []*virtio.Request{reqs[2], reqs[0], reqs[1]}
		before := r.T.QueueInterrupts(0)
		r.half.Channel().Complete(order)
		virtiotest.WaitFor(t, "interrupt", func() bool { return r.T.QueueInterrupts(0) == before+1 })
		if n := r.Queues[0].UsedIdx(); n != 3 {
			t.Fatalf("used index is %d at the interrupt, not 3", n)
		}
		us := r.Queues[0].Wait(3)
		want := []virtiotest.Used{{ID: uint32(heads[2]), Len: 4096 - 100}, {ID: uint32(heads[0]), Len: 4096}, {ID: uint32(heads[1]), Len: 4096}}
		if !slices.Equal(us, want) {
			t.Errorf("used %v, want %v", us, want)
		}
		if !bytes.Equal(r.Get(bufs[1], 4096), frame[:4096]) {
			t.Error("bytes differ")
		}
	})
}

func TestContractFailureForm(t *testing.T) {
	contract(t, func(t *testing.T, start func(*virtiotest.Device) rig) {
		half := holding(3, 8)
		half.DeviceInfo.Queues[0].Failure = virtio.Failure{Form: virtio.FailStatus, Status: 1}
		half.DeviceInfo.Queues[0].Replay = virtio.ReplayReexecute
		half.DeviceInfo.Queues[1].Failure = virtio.Failure{Form: virtio.FailDrop}
		half.DeviceInfo.Queues[1].Replay = virtio.ReplayStream
		r := start(half)
		r.Start(0)
		fail := func(queue int) (memory.Addr, virtiotest.Used) {
			_, bufs := r.post(t, queue, 1)
			info := r.half.Info().Queues[queue]
			for _, q := range r.half.Held(queue) {
				q.Fail(info.Failure, errors.New("the peripheral is gone"))
			}
			if info.Failure.Form == virtio.FailNeedsReset {
				virtiotest.WaitFor(t, "DEVICE_NEEDS_RESET", r.needsReset)
				return bufs[0], virtiotest.Used{}
			}
			return bufs[0], r.Queues[queue].Wait(1)[0]
		}
		if a, u := fail(0); u.Len != 0 || r.Get(a+4095, 1)[0] != 1 {
			t.Errorf("status: used length %d, last byte %d", u.Len, r.Get(a+4095, 1)[0])
		}
		if _, u := fail(1); u.Len != 0 {
			t.Errorf("drop: used length %d", u.Len)
		}
		fail(2)
	})
}

// Quiesce gives posted buffers back; they are handed in again, in order and before
// newer ones, with the numbers that they had.
func TestContractQuiesceDrained(t *testing.T) {
	contract(t, func(t *testing.T, start func(*virtiotest.Device) rig) {
		r := start(holding(2, 16))
		r.Start(0)
		r.post(t, 0, 5)
		r.post(t, 1, 2)
		r.pause(t)
		if s := r.T.Stats().Queues[0]; s.InFlight != 5 || s.Returned != 5 || r.half.HeldCount(0) != 0 {
			t.Errorf("paused with %+v, half has %d", s, r.half.HeldCount(0))
		}
		if n := r.Queues[0].UsedIdx(); n != 0 {
			t.Errorf("the driver saw %d buffers used", n)
		}
		// The driver goes on; the half sees nothing of it yet.
		a := r.Alloc(4096, 4096)
		r.Queues[0].Add(virtiotest.Buf{Addr: a, Len: 4096, Writable: true})
		r.Queues[0].Expose()
		r.T.Notify(0)
		r.pause(t) // again: nothing happens
		if s := r.T.Stats().Queues[0]; s.Requests != 5 {
			t.Errorf("%d requests were taken during the pause", s.Requests)
		}
		if err := r.T.Resume(); err != nil {
			t.Fatal(err)
		}
		virtiotest.WaitFor(t, "requests handed in again", func() bool {
			return r.half.HeldCount(0) == 6 && r.half.HeldCount(1) == 2
		})
		reqs := r.half.Held(0)
		for i, q := range reqs {
			if q.Seq != uint64(i) {
				t.Errorf("request %d has sequence %d", i, q.Seq)
			}
		}
		for _, q := range reqs {
			q.Complete(0)
		}
		r.Queues[0].Wait(6)
	})
}

// Work under way is completed before the queue counts as drained.
func TestContractPauseWaitsForWork(t *testing.T) {
	contract(t, func(t *testing.T, start func(*virtiotest.Device) rig) {
		half := virtiotest.NewDevice(1, 8)
		working := make(chan *virtio.Request, 1)
		half.Serve = func(_ *virtiotest.Device, q *virtio.Request) { working <- q }
		r := start(half)
		r.Start(0)
		a := r.Alloc(4096, 4096)
		r.Queues[0].Add(virtiotest.Buf{Addr: a, Len: 4096, Writable: true})
		r.Queues[0].Kick()
		q := <-working

		ctx, cancel := context.WithCancelCause(t.Context())
		early := errors.New("too early")
		done := make(chan error)
		go func() { done <- r.T.Pause(ctx) }()
		cancel(early)
		if err := <-done; !errors.Is(err, early) {
			t.Fatalf("Pause with work under way returned %v", err)
		}
		// It runs on.
		r.Queues[0].Add(virtiotest.Buf{Addr: a, Len: 1, Writable: true})
		r.Queues[0].Kick()
		q2 := <-working

		go func() { done <- r.T.Pause(t.Context()) }()
		virtiotest.WaitFor(t, "Quiesce", func() bool { return half.QuiesceCount() > 0 })
		select {
		case err := <-done:
			t.Fatalf("Pause returned %v with work under way", err)
		default:
		}
		q.Complete(3)
		q2.Complete(1)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if n := r.Queues[0].UsedIdx(); n != 2 {
			t.Errorf("drained with %d of 2 used", n)
		}
	})
}

// After a reset nothing from before reaches the guest, and the status reads 0 only
// then.
func TestContractResetFencesLateCompletions(t *testing.T) {
	contract(t, func(t *testing.T, start func(*virtiotest.Device) rig) {
		half := holding(1, 16)
		r := start(half)
		r.Start(0)
		r.post(t, 0, 4)
		old := half.Held(0)
		channel := half.Channel()
		half.Serve = nil
		r.T.SetStatus(0)
		virtiotest.WaitFor(t, "status 0", func() bool { return r.T.Status() == 0 })
		if _, resets, _ := half.Count(); resets == 0 {
			t.Error("status 0 before the half was reset")
		}
		q := r.Queues[0]
		for _, req := range old[:2] {
			req.SetUsed(1)
		}
		channel.Complete(old[:2])
		channel.Return(old[2:])
		channel.NeedsReset(errors.New("late"))
		channel.ConfigChanged([]byte{8, 8, 8, 8, 8, 8, 8, 8})
		if q.UsedIdx() != 0 || r.T.Status() != 0 {
			t.Errorf("late completion reached the driver: used index %d, status %#x", q.UsedIdx(), r.T.Status())
		}
		r.Start(0)
		echo(t, r.Driver, r.Queues[0], 20, 4, false)
		if s := r.T.Stats().Queues[0]; s.InFlight != 0 {
			t.Errorf("%d requests in flight", s.InFlight)
		}
	})
}

// A reset waits for operations under way; mmio waits in the write, pci behind it.
func TestContractResetWaitsForHalf(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		half := holding(1, 8)
		release, inReset := newSignal(), newSignal()
		d := virtiotest.NewDriver(t, half, make)
		d.Start(0)
		half.OnReset = func() { close(inReset); <-release }
		written := newSignal()
		go func() { defer close(written); d.T.SetStatus(0) }()
		<-inReset
		if s := d.T.Status(); s == 0 {
			t.Error("status is 0 while the half resets")
		}
		// Whatever the driver writes meanwhile is ignored.
		d.T.SetDriverFeatures(0)
		d.T.EnableQueue(0)
		d.T.WriteConfig(0, []byte{1})
		half.OnReset = nil
		close(release)
		<-written
		virtiotest.WaitFor(t, "status 0", func() bool { return d.T.Status() == 0 })
		d.Start(0)
	})
}

func newSignal() chan struct{} { return make(chan struct{}) }

// A reset in the middle of I/O, from the driver and from the machine.
func TestContractResetInTheMiddleOfIO(t *testing.T) {
	contract(t, func(t *testing.T, start func(*virtiotest.Device) rig) {
		half := virtiotest.NewDevice(1, 64)
		n := 0
		half.Serve = func(d *virtiotest.Device, q *virtio.Request) {
			if n++; n%3 == 0 {
				virtiotest.Hold(d, q)
			} else {
				virtiotest.Echo(d, q)
			}
		}
		r := start(half)
		buf := r.Alloc(4096, 4096)
		for round := range 20 {
			r.Start(16)
			for range 16 {
				r.Queues[0].Add(virtiotest.Buf{Addr: buf, Len: 512, Writable: true})
			}
			r.Queues[0].Kick()
			if round%2 == 0 {
				runtime.Gosched()
				r.T.SetStatus(0)
			} else if err := r.T.Reset(); err != nil {
				t.Fatal(err)
			}
			virtiotest.WaitFor(t, "status 0", func() bool { return r.T.Status() == 0 })
			if p, ok := r.T.(*virtiotest.PCI); ok && round%2 == 1 {
				p.Firmware()
			}
		}
	})
}

// Features, sizes and the length of the configuration are frozen at DRIVER_OK.
func TestContractFrozenAtDriverOK(t *testing.T) {
	contract(t, func(t *testing.T, start func(*virtiotest.Device) rig) {
		r := start(virtiotest.NewDevice(2, 64))
		r.Features &^= 1 << 1
		r.Negotiate()
		r.AddQueue(0, 16) // queue 1 stays disabled
		r.T.SetStatus(15)
		a := r.half.Activated[0]
		if want := uint64(1 | 1<<28 | 1<<29 | 1<<32); a.Features != want {
			t.Errorf("activated with features %#x, want %#x", a.Features, want)
		}
		if !slices.Equal(a.QueueSizes, []uint16{16, 0}) {
			t.Errorf("activated with queue sizes %v", a.QueueSizes)
		}
		r.T.SetDriverFeatures(0)
		r.T.SetupQueue(0, 32, 0, 0, 0)
		echo(t, r.Driver, r.Queues[0], 40, 3, true)
		r.T.EnableQueue(1)
		if r.T.QueueEnabled(1) || !r.needsReset() {
			t.Error("a queue was enabled after DRIVER_OK")
		}
	})
}

// An event queue: buffers are posted, and completed much later, from anywhere.
func TestContractEventQueue(t *testing.T) {
	contract(t, func(t *testing.T, start func(*virtiotest.Device) rig) {
		r := start(holding(1, 16))
		r.Start(0)
		for i := range 10 {
			_, bufs := r.post(t, 0, 1)
			q := r.half.Held(0)[0]
			go func() {
				q.WriteAt([]byte{byte(i)}, 0)
				q.Complete(1)
			}()
			r.Queues[0].Wait(1)
			if got := r.Get(bufs[0], 1)[0]; got != byte(i) {
				t.Errorf("event %d reads %d", i, got)
			}
		}
	})
}

func TestContractConfigPush(t *testing.T) {
	contract(t, func(t *testing.T, start func(*virtiotest.Device) rig) {
		r := start(virtiotest.NewDevice(1, 8))
		r.Start(0)
		read := func() []byte { p := make([]byte, 8); r.T.ReadConfig(0, p); return p }
		gen := r.T.Generation()
		if got := read(); !bytes.Equal(got, []byte{1, 2, 3, 4, 5, 6, 7, 8}) || r.T.Generation() != gen {
			t.Fatalf("configuration %v, generation %d then %d", got, gen, r.T.Generation())
		}
		pushed := []byte{8, 7, 6, 5, 4, 3, 2, 1}
		r.half.Channel().ConfigChanged(pushed)
		virtiotest.WaitFor(t, "configuration interrupt", func() bool { return r.T.ConfigInterrupts() == 1 })
		if got := read(); !bytes.Equal(got, pushed) || r.T.Generation() == gen {
			t.Errorf("configuration %v, generation %d as before", got, gen)
		}
		// A driver's write is passed on, and shows, until the reset.
		r.T.WriteConfig(2, []byte{0xAA, 0xBB})
		virtiotest.WaitFor(t, "configuration write", func() bool { _, _, n := r.half.Count(); return n == 1 })
		if w := r.half.Writes[0]; w.Off != 2 || !bytes.Equal(w.Data, []byte{0xAA, 0xBB}) {
			t.Errorf("the half got %+v", w)
		}
		if got := read(); got[2] != 0xAA {
			t.Errorf("configuration %v after the write", got)
		}
		r.T.SetStatus(0)
		virtiotest.WaitFor(t, "status 0", func() bool { return r.T.Status() == 0 })
		if got := read(); !bytes.Equal(got, pushed) {
			t.Errorf("configuration %v after the reset", got)
		}
		r.Start(0)
		r.half.Channel().ConfigChanged([]byte{1})
		virtiotest.WaitFor(t, "DEVICE_NEEDS_RESET for a push of another length", r.needsReset)
	})
}

func TestContractActivateFails(t *testing.T) {
	contract(t, func(t *testing.T, start func(*virtiotest.Device) rig) {
		half := virtiotest.NewDevice(1, 8)
		half.FailActivate = errors.New("no peripheral")
		r := start(half)
		r.Negotiate()
		r.AddQueue(0, 0)
		r.T.SetStatus(15)
		if s := r.T.Status(); s != 15|virtio.VIRTIO_CONFIG_S_NEEDS_RESET {
			t.Errorf("status %#x", s)
		}
		r.pause(t)
		if err := r.T.Resume(); err != nil {
			t.Error(err)
		}
		half.FailActivate = nil
		r.Start(0)
		echo(t, r.Driver, r.Queues[0], 10, 1, false)
	})
}
