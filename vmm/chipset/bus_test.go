package chipset

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// bank is a handler that remembers the last access.
type bank struct {
	off  uint64
	data []byte
}

func (b *bank) Read(off uint64, p []byte) {
	b.off = off
	copy(p, b.data)
}

func (b *bank) Write(off uint64, p []byte) { b.off, b.data = off, bytes.Clone(p) }

func TestBusRouting(t *testing.T) {
	var bus Bus
	var low, high, last bank
	for _, r := range []struct {
		start, n uint64
		h        Handler
	}{{0x100, 8, &high}, {0x10, 8, &low}, {1<<64 - 16, 16, &last}} {
		if err := bus.Add("x", r.start, r.n, r.h); err != nil {
			t.Fatal(err)
		}
	}
	if !bus.Write(0x104, []byte{1, 2, 3, 4}) || high.off != 4 || !bytes.Equal(high.data, []byte{1, 2, 3, 4}) {
		t.Errorf("write: %+v", high)
	}
	p := make([]byte, 4)
	if !bus.Read(0x104, p) || !bytes.Equal(p, []byte{1, 2, 3, 4}) {
		t.Errorf("read: % x", p)
	}
	if !bus.Write(1<<64-1, []byte{9}) || last.off != 15 {
		t.Errorf("the last address: %+v", last)
	}
	// Unclaimed, and sticking out at either end: all ones, and nobody is called.
	low.off, high.off = 77, 77
	for _, a := range []uint64{0, 0xF, 0x16, 0x15, 0x18, 0xFF, 0x106, 0x108, 1 << 40} {
		n := 4
		p := make([]byte, n)
		if bus.Read(a, p) || !bytes.Equal(p, []byte{0xFF, 0xFF, 0xFF, 0xFF}) {
			t.Errorf("%#x answers % x", a, p)
		}
		if bus.Write(a, p) {
			t.Errorf("%#x takes a write", a)
		}
	}
	if low.off != 77 || high.off != 77 {
		t.Error("a handler was called for an access outside")
	}
	if bus.Read(0x10, nil) {
		t.Error("an access of no bytes was answered")
	}
}

func TestBusOverlap(t *testing.T) {
	var bus Bus
	var h bank
	if err := bus.Add("serial", 0x3F8, 8, &h); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]uint64{{0x3F8, 8}, {0x3F0, 9}, {0x3FF, 1}, {0x3FA, 2}, {0x300, 0x1000}} {
		err := bus.Add("other", r[0], r[1], &h)
		if err == nil || !strings.Contains(err.Error(), "other") || !strings.Contains(err.Error(), "serial") {
			t.Errorf("%#x+%#x: %v, want an error that names both", r[0], r[1], err)
		}
	}
	for _, r := range [][2]uint64{{0x3F0, 8}, {0x400, 8}} {
		if err := bus.Add("neighbour", r[0], r[1], &h); err != nil {
			t.Error(err)
		}
	}
	for _, r := range [][2]uint64{{5, 0}, {1<<64 - 1, 2}} {
		if err := bus.Add("bad", r[0], r[1], &h); err == nil || !strings.Contains(err.Error(), "empty or wraps") {
			t.Errorf("%#x+%#x: %v", r[0], r[1], err)
		}
	}
	if err := bus.Add("nothing", 0, 1, nil); err == nil {
		t.Error("a range without a handler was added")
	}
}

func TestBusRemove(t *testing.T) {
	var bus Bus
	var h bank
	if err := bus.Remove(0); err == nil {
		t.Error("removed what is not there")
	}
	for i := range uint64(3) {
		if err := bus.Add("x", i*16, 16, &h); err != nil {
			t.Fatal(err)
		}
	}
	if err := bus.Remove(17); err == nil {
		t.Error("removed a range by an address inside")
	}
	if err := bus.Remove(16); err != nil {
		t.Fatal(err)
	}
	if bus.Write(16, []byte{1}) || !bus.Write(15, []byte{1}) || !bus.Write(32, []byte{1}) {
		t.Error("removed the wrong range")
	}
	if err := bus.Add("x", 16, 16, &h); err != nil {
		t.Error(err)
	}
}

func TestBusIsBounded(t *testing.T) {
	var bus Bus
	var h bank
	for i := range uint64(MaxBusRanges) {
		if err := bus.Add("x", i, 1, &h); err != nil {
			t.Fatal(err)
		}
	}
	if err := bus.Add("x", MaxBusRanges, 1, &h); err == nil {
		t.Error("no bound")
	}
}

// nobody is a handler without state, to be called from several threads.
type nobody struct{}

func (nobody) Read(uint64, []byte)  {}
func (nobody) Write(uint64, []byte) {}

// Lookups go on while ranges come and go; a range that stays is always found.
func TestBusConcurrent(t *testing.T) {
	var bus Bus
	if err := bus.Add("stays", 0x1000, 16, nobody{}); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if !bus.Read(0x1008, make([]byte, 4)) {
					t.Error("the range that stays was not found")
					return
				}
			}
		})
	}
	for i := range uint64(500) {
		if err := bus.Add(fmt.Sprint(i), i, 1, nobody{}); err != nil {
			t.Fatal(err)
		}
		if err := bus.Remove(i); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
}

func BenchmarkBusRead(b *testing.B) {
	var bus Bus
	for i := range uint64(32) {
		if err := bus.Add("x", i*0x100, 0x80, nobody{}); err != nil {
			b.Fatal(err)
		}
	}
	p := make([]byte, 4)
	b.ReportAllocs()
	for b.Loop() {
		bus.Read(0x1710, p)
	}
}
