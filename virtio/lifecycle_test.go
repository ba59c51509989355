package virtio_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/virtiotest"
)

func openFDs(t *testing.T) int {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("counting file descriptors needs /proc: %v", err)
	}
	return len(es)
}

// Close leaves no goroutine and no descriptor, whatever the device was doing; and a
// second one does nothing.
func TestCloseLeavesNothing(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		mem := virtiotest.NewMemory(t, 1<<20)
		fds, routines := openFDs(t), runtime.NumGoroutine()
		for i := range 50 {
			half := holding(3, 8)
			tr := make(t, half, mem)
			tr.SetStatus(1)
			tr.SetStatus(3)
			tr.SetDriverFeatures(tr.DeviceFeatures())
			tr.SetStatus(11)
			for q := range 3 {
				base := 0x10000 + 0x1000*q
				tr.SetupQueue(q, 8, addr(base), addr(base+0x400), addr(base+0x800))
				tr.EnableQueue(q)
			}
			tr.SetStatus(15)
			tr.Notify(i % 3)
			if i%5 == 0 {
				if err := tr.Pause(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if err := tr.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if _, resets, _ := half.Count(); resets == 0 {
				t.Fatal("Close did not reset the half")
			}
			if err := half.Violations(); err != nil {
				t.Fatal(err)
			}
			// After Close nothing moves.
			tr.SetStatus(15)
			tr.Notify(0)
			if err := tr.Pause(t.Context()); !errors.Is(err, virtio.ErrClosed) {
				t.Errorf("Pause of a closed device: %v", err)
			}
			if err := tr.Resume(); !errors.Is(err, virtio.ErrClosed) {
				t.Errorf("Resume of a closed device: %v", err)
			}
			_ = tr.Stats()
		}
		virtiotest.WaitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= routines })
		if n := openFDs(t); n > fds {
			t.Errorf("%d descriptors are open, %d were before", n, fds)
		}
	})
}

// Pause and resume under load lose nothing and reorder nothing.
func TestPauseUnderLoad(t *testing.T) {
	contract(t, func(t *testing.T, start func(*virtiotest.Device) rig) {
		r := start(virtiotest.NewDevice(1, 64))
		r.Start(0)
		ctx, cancel := context.WithTimeout(t.Context(), virtiotest.Deadline)
		defer cancel()
		var wg sync.WaitGroup
		stop := make(chan struct{})
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := r.T.Pause(ctx); err != nil {
					t.Error(err)
				}
				if s := r.T.Stats().Queues[0]; s.InFlight != s.Returned {
					t.Errorf("paused with %d in flight, %d returned", s.InFlight, s.Returned)
				}
				if err := r.T.Resume(); err != nil {
					t.Error(err)
				}
				runtime.Gosched()
			}
		})
		echo(t, r.Driver, r.Queues[0], 300, 8, false)
		close(stop)
		wg.Wait()
	})
}

// Whatever vCPUs and the owner do at once: no race, no deadlock, and the half
// sees its contract kept.
func TestEverythingAtOnce(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		half := virtiotest.NewDevice(2, 16)
		d := virtiotest.NewDriver(t, half, make)
		buf := d.Alloc(4096, 4096)
		var wg sync.WaitGroup
		end := time.Now().Add(300 * time.Millisecond)
		run := func(f func(i int)) {
			wg.Go(func() {
				for i := 0; time.Now().Before(end); i++ {
					f(i)
				}
			})
		}
		base := d.Alloc(0x2000, 4096)
		run(func(i int) { // a vCPU that initializes the device, and uses it
			d.T.SetStatus(0)
			virtiotest.WaitFor(t, "status 0", func() bool { return d.T.Status() == 0 })
			d.T.SetStatus(3)
			d.T.SetDriverFeatures(d.Features)
			d.T.SetStatus(11)
			_ = d.Mem.Zero(base, 0x2000)
			for q := range 2 {
				a := base + addr(0x1000*q)
				_ = d.Mem.WriteAt(virtiotest.Desc{Addr: uint64(buf), Len: 8, Flags: write}.Bytes(), a)
				d.T.SetupQueue(q, 16, a, a+0x400, a+0x800)
				d.T.EnableQueue(q)
			}
			d.T.SetStatus(15)
			for q := range 2 {
				_ = d.Mem.WriteAt([]byte{0, 0, 1, 0}, base+addr(0x1000*q+0x400))
				d.T.Notify(q)
			}
		})
		run(func(i int) { d.T.Notify(i % 3) })
		run(func(i int) { d.T.WriteConfig(uint64(i%10), []byte{byte(i)}) })
		run(func(int) { _ = d.T.Stats(); _ = d.T.Generation() })
		run(func(int) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			if d.T.Pause(ctx) == nil {
				_ = d.T.Resume()
			}
		})
		run(func(int) { _ = d.T.Reset() })
		wg.Wait()
		if err := half.Violations(); err != nil {
			t.Error(err)
		}
	})
}
