package chipset

import (
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
)

// MaxBusRanges bounds the ranges of one Bus: far more than 31 slots with six
// BARs each can add.
const MaxBusRanges = 1024

// Bus maps addresses to handlers. A machine has one for ports and one for
// memory-mapped I/O. The zero value is an empty bus.
//
// Read and Write take no lock: they search an immutable table, which Add and
// Remove replace. An access that began before Remove returned may still be in
// the removed handler afterwards.
type Bus struct {
	mu    sync.Mutex // serializes Add and Remove
	table atomic.Pointer[[]busRange]
}

type busRange struct {
	name        string
	start, last uint64 // inclusive, so that a range may end at 2^64
	h           Handler
}

// Add puts h in charge of [start, start+lenBytes). A range that overlaps an
// earlier one is refused with an error that names both.
func (b *Bus) Add(name string, start, lenBytes uint64, h Handler) error {
	if h == nil {
		return fmt.Errorf("add %s to bus: no handler", name)
	}
	last := start + lenBytes - 1
	if lenBytes == 0 || last < start {
		return fmt.Errorf("add %s to bus: range %#x+%#x is empty or wraps around", name, start, lenBytes)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.ranges()
	if len(old) >= MaxBusRanges {
		return fmt.Errorf("add %s to bus: it already has %d ranges", name, MaxBusRanges)
	}
	// The first range that ends at or after start: the only one that can be the
	// first to overlap.
	i := sort.Search(len(old), func(i int) bool { return old[i].last >= start })
	if i < len(old) && old[i].start <= last {
		o := old[i]
		return fmt.Errorf("add %s to bus: %#x..%#x overlaps %s at %#x..%#x", name, start, last, o.name, o.start, o.last)
	}
	table := slices.Insert(slices.Clone(old), i, busRange{name, start, last, h})
	b.table.Store(&table)
	return nil
}

// Remove takes away the range that starts at start.
func (b *Bus) Remove(start uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.ranges()
	i := slices.IndexFunc(old, func(r busRange) bool { return r.start == start })
	if i < 0 {
		return fmt.Errorf("remove from bus: no range starts at %#x", start)
	}
	table := slices.Delete(slices.Clone(old), i, i+1)
	b.table.Store(&table)
	return nil
}

func (b *Bus) ranges() []busRange {
	if t := b.table.Load(); t != nil {
		return *t
	}
	return nil
}

// find returns the range that holds all of [addr, addr+n).
func (b *Bus) find(addr uint64, n int) (busRange, bool) {
	rs := b.ranges()
	lo, hi := 0, len(rs)
	for lo < hi { // the first range that ends at or after addr
		if mid := int(uint(lo+hi) >> 1); rs[mid].last < addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if n <= 0 || lo == len(rs) || rs[lo].start > addr || rs[lo].last-addr < uint64(n-1) {
		return busRange{}, false
	}
	return rs[lo], true
}

// Read fills p from addr. Where nobody answers, or the access sticks out of a
// range, it fills p with 0xFF, as a bus that nobody drives does, and returns false.
func (b *Bus) Read(addr uint64, p []byte) bool {
	r, ok := b.find(addr, len(p))
	if !ok {
		fillFF(p)
		return false
	}
	r.h.Read(addr-r.start, p)
	return true
}

// Write sends p to addr. It returns false, and does nothing, where nobody
// answers or the access sticks out of a range.
func (b *Bus) Write(addr uint64, p []byte) bool {
	r, ok := b.find(addr, len(p))
	if !ok {
		return false
	}
	r.h.Write(addr-r.start, p)
	return true
}

func fillFF(p []byte) {
	for i := range p {
		p[i] = 0xFF
	}
}
