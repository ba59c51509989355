package bare

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/vmm"
)

func requests(s vmm.Stats) uint64 {
	n := uint64(0)
	for _, d := range s.Devices {
		for _, q := range d.Queues {
			n += q.Requests
		}
	}
	return n
}

func inFlight(s vmm.Stats) int {
	n := 0
	for _, d := range s.Devices {
		for _, q := range d.Queues {
			n += int(q.InFlight)
		}
	}
	return n
}

func TestPauseAndResumeUnderLoad(t *testing.T) {
	for _, wait := range []string{"poll", "irq"} {
		t.Run(wait, func(t *testing.T) {
			g := start(t, spec{halves: []virtio.Device{disk(t, 32, 1)},
				cmdline: "bare.test=blk op=randrw verify=1 depth=16 flush_every=100 seconds=3 wait=" + wait})
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			pauses := 0
			for g.State() == vmm.StateRunning {
				before := requests(g.Stats())
				eventually(t, "progress", func() bool { return requests(g.Stats()) > before || g.State() != vmm.StateRunning })
				if err := g.Pause(ctx); err != nil {
					if g.State() != vmm.StateRunning {
						break // it has ended
					}
					t.Fatal(err)
				}
				at := g.Stats()
				if n := inFlight(at); n != 0 {
					t.Fatalf("%d requests are in flight while paused", n)
				}
				for range 100 {
					runtime.Gosched()
				}
				if now := requests(g.Stats()); now != requests(at) {
					t.Fatalf("%d requests were taken while paused", now-requests(at))
				}
				if err := g.Resume(); err != nil {
					t.Fatal(err)
				}
				pauses++
			}
			r := g.wait()
			if pauses < 3 {
				t.Errorf("only %d pauses in 3 s", pauses)
			}
			t.Logf("%d pauses, %s", pauses, r.Line)
		})
	}
}

func TestHundredStartsAndStopsLeaveNothing(t *testing.T) {
	path := guestELF(t)
	d, other := disk(t, 16, 2), disk(t, 16, 1)
	cycle := func(i int) {
		s := spec{cpus: 1 + i%2, halves: []virtio.Device{d, other}}
		s.cmdline = fmt.Sprintf("bare.test=blk op=randrw depth=8 seconds=60 ops=200 cpus=%d", s.cpus)
		if i%4 < 2 {
			run(t, s)
			return
		}
		// Closed at any moment, in the middle of I/O.
		s.cmdline += " ops=0"
		g := start(t, s)
		want := uint64(rand.IntN(100))
		eventually(t, "I/O", func() bool { return requests(g.Stats()) >= want })
		if i%4 == 3 {
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			if err := g.Pause(ctx); err != nil {
				t.Fatal(err)
			}
		}
		g.close()
	}
	for i := range 4 { // what is made once and kept
		cycle(i)
	}
	_ = path
	goroutines, fds, maps := runtime.NumGoroutine(), openFDs(t), mappings(t)
	resident := residentBytes(t)
	for i := range 100 {
		cycle(i)
	}
	eventually(t, "the end of all goroutines", func() bool { return runtime.NumGoroutine() <= goroutines })
	if now := openFDs(t); len(now) != len(fds) {
		slices.Sort(now)
		t.Errorf("%d descriptors, were %d: %q", len(now), len(fds), now)
	}
	if now := mappings(t); now != maps {
		t.Errorf("%d mappings of machines, were %d", now, maps)
	}
	// The guests' 100 x 128 MiB are gone; what the Go heap may have grown by is not the point.
	if now := residentBytes(t); now > resident+64<<20 {
		t.Errorf("%d MiB resident, were %d", now>>20, resident>>20)
	}
}

func residentBytes(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var total, resident int
	if _, err := fmt.Sscan(string(b), &total, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize()
}

func TestProcessorsStart(t *testing.T) {
	for _, n := range []int{2, 4, 8} {
		if r := run(t, spec{cpus: n, cmdline: fmt.Sprintf("bare.test=cpus cpus=%d", n)}); r.Ran != uint64(n) {
			t.Errorf("%d processors ran, want %d", r.Ran, n)
		}
	}
}

func TestMemoryOnBothSidesOfTheHole(t *testing.T) {
	run(t, spec{cmdline: "bare.test=dirty mib=64 passes=20 seconds=60"})
	run(t, spec{memMiB: 4096, cmdline: "bare.test=dirty mib=64 passes=20 seconds=60 high=1"})
}

func TestTimerInterrupts(t *testing.T) {
	for _, wait := range []string{"poll", "irq"} {
		r := run(t, spec{cmdline: "bare.test=timer ops=200 delay_ns=100000 wait=" + wait})
		t.Logf("%s: half within %v, 99 %% within %v", wait, time.Duration(r.P50NS), time.Duration(r.P99NS))
	}
}
