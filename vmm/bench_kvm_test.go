package vmm

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkStart measures New, Start and the guest's first instructions, up to
// its power-off, and Close, apart.
func BenchmarkStart(b *testing.B) {
	var toReady, toEntry, toEnd, closing float64
	for b.Loop() {
		m := newTestMachine(b, testConfig(), flat(codeOff, 0))
		runToEnd(b, m)
		t := m.Stats().Times
		toReady += t.Ready.Sub(t.New).Seconds()
		toEntry += t.FirstEntry.Sub(t.New).Seconds()
		toEnd += t.Ended.Sub(t.FirstEntry).Seconds()
		before := time.Now()
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
		closing += time.Since(before).Seconds()
	}
	n := float64(b.N) / 1e3
	b.ReportMetric(toReady/n, "ms-ready")
	b.ReportMetric(toEntry/n, "ms-entry")
	b.ReportMetric(toEnd/n, "ms-guest")
	b.ReportMetric(closing/n, "ms-close")
}

// BenchmarkPauseResume is the time of a Pause and a Resume of a busy guest.
func BenchmarkPauseResume(b *testing.B) {
	m := newTestMachine(b, testConfig(), user(codeCount))
	bell := addBell(b, m)
	if err := m.Start(); err != nil {
		b.Fatal(err)
	}
	bell.wait(b)
	for b.Loop() {
		if err := m.Pause(context.Background()); err != nil {
			b.Fatal(err)
		}
		if err := m.Resume(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkKick is the time from a kick of a busy vCPU to its arrival at the gate.
func BenchmarkKick(b *testing.B) {
	m := newTestMachine(b, testConfig(), user(codeCount))
	bell := addBell(b, m)
	if err := m.Start(); err != nil {
		b.Fatal(err)
	}
	bell.wait(b)
	for b.Loop() {
		m.gate.set(phaseHold)
		m.kickAll()
		if err := m.gate.allHeld(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		m.gate.set(phaseRun)
		bell.again(b)
		b.StartTimer()
	}
}

// countdown tells when so many writes have come.
type countdown struct {
	left atomic.Int64
	done chan struct{} // capacity 1
}

func (c *countdown) Read(_ uint64, p []byte) { clear(p) }

func (c *countdown) Write(uint64, []byte) {
	if c.left.Add(-1) == 0 {
		c.done <- struct{}{}
	}
}

// BenchmarkMMIOExit is an exit to a handler and back, by a guest that does
// nothing else.
func BenchmarkMMIOExit(b *testing.B) {
	m := newTestMachine(b, testConfig(), user([]byte("\xbf\x00\x00\x10\xf0\x89\x07\xeb\xfc"))) // mov edi, 0xf0100000; 1: mov [rdi], eax; jmp 1b
	c := &countdown{done: make(chan struct{}, 1)}
	c.left.Store(1)
	if err := m.mmio.Add("countdown", testDevice, 0x1000, c); err != nil {
		b.Fatal(err)
	}
	if err := m.Start(); err != nil {
		b.Fatal(err)
	}
	<-c.done
	b.ResetTimer()
	c.left.Store(int64(b.N))
	<-c.done
}

// BenchmarkSetVector is what a driver's change of an MSI-X vector costs while the
// guest runs.
func BenchmarkSetVector(b *testing.B) {
	m := newTestMachine(b, testConfig(), user(codeCount))
	bell := addBell(b, m)
	if err := m.Start(); err != nil {
		b.Fatal(err)
	}
	bell.wait(b)
	x := &msix{router: m.router, vectors: make([]vector, 1)}
	b.Cleanup(x.close)
	var data uint32
	for b.Loop() {
		data++
		if err := x.SetVector(0, 0xFEE0_0000, 0x20+data%128); err != nil {
			b.Fatal(err)
		}
	}
}
