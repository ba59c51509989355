// Package memory owns the guest's RAM: the memfd, its mappings in this process,
// and the dirty bitmap of writes that the VMM itself makes.
//
// It is not a device model and knows nothing of KVM: package vmm hands the
// Slots to the kernel. All other packages borrow slices of guest memory for the
// time of one request and never unmap, keep or share them.
//
// # The one rule of writing
//
// KVM's dirty log sees the guest's writes, not the VMM's. So every VMM write to
// guest memory goes through this package and marks its page in the bitmap:
// after the bytes are there, and before anything tells the guest of them (the
// used index, an interrupt). WriteAt, Zero and the Store methods do both.
// Where the kernel fills guest memory for us (preadv, recvmsg) the caller
// borrows it with Writable and calls MarkDirty when the call returned.
//
// # Concurrency
//
// All methods may be called from any goroutine until Close. The guest writes
// the same bytes at any time: copy in once, check the copy, use the copy.
package memory

import (
	"errors"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Addr is a guest-physical address in bytes.
type Addr uint64

// PageBytes is the granule of the dirty bitmap and of region alignment.
const PageBytes = 4096

// HoleStart and HoleEnd bound the range below 4 GiB that never holds RAM: PCI
// windows, ECAM, virtio-mmio, IOAPIC and local APIC live there (docs/machine-v1.md).
const (
	HoleStart Addr = 0xC000_0000
	HoleEnd   Addr = 0x1_0000_0000
)

// ErrOutOfRange is wrapped by every access that touches an address without RAM
// behind it, wraps around, or crosses from one region to another.
var ErrOutOfRange = errors.New("guest-physical range is not RAM")

// Region is one contiguous range of guest RAM.
type Region struct {
	// Start is the guest-physical address of the first byte, page aligned.
	Start Addr
	// LenBytes is the length, a positive multiple of PageBytes.
	LenBytes uint64
}

// Slot is a Region with its backing, as KVM_SET_USER_MEMORY_REGION wants it.
type Slot struct {
	Region
	// HostAddr is the address of the region's mapping in this process.
	HostAddr uintptr
	// OffsetBytes is where the region starts in the memfd.
	OffsetBytes int64
}

type region struct {
	Region
	host   []byte // the mapping; len == LenBytes
	offset int64
	dirty  []uint64 // one bit a page, atomic
}

// Memory is the RAM of one guest. Create it with New; its owner calls Close
// once nothing borrows from it any more.
type Memory struct {
	fd      int
	regions []region // sorted by Start, not overlapping
	total   uint64
	closed  atomic.Bool
	fill    sync.Mutex // the memfd's file position, see CopyFile
}

// Layout splits sizeBytes of RAM around the hole below 4 GiB.
func Layout(sizeBytes uint64) []Region {
	if sizeBytes <= uint64(HoleStart) {
		return []Region{{0, sizeBytes}}
	}
	return []Region{{0, uint64(HoleStart)}, {HoleEnd, sizeBytes - uint64(HoleStart)}}
}

// New makes a memfd of the regions' total size and maps each region shared.
// No page is touched: host memory is taken as the guest uses it. The name shows
// up in /proc/PID/maps.
func New(name string, regions []Region) (*Memory, error) {
	rs := append([]Region(nil), regions...)
	sort.Slice(rs, func(i, j int) bool { return rs[i].Start < rs[j].Start })
	if err := checkRegions(rs); err != nil {
		return nil, err
	}
	var total uint64
	for _, r := range rs {
		total += r.LenBytes
	}
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create memfd of %d bytes for guest RAM: %w", total, err)
	}
	m := &Memory{fd: fd, total: total}
	if err := unix.Ftruncate(fd, int64(total)); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("size memfd to %d bytes of guest RAM: %w", total, err)
	}
	var off int64
	for _, r := range rs {
		host, err := unix.Mmap(fd, off, int(r.LenBytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
		if err != nil {
			_ = m.Close()
			return nil, fmt.Errorf("map %d bytes of guest RAM at %#x: %w", r.LenBytes, r.Start, err)
		}
		pages := r.LenBytes / PageBytes
		m.regions = append(m.regions, region{Region: r, host: host, offset: off, dirty: make([]uint64, (pages+63)/64)})
		off += int64(r.LenBytes)
	}
	return m, nil
}

func checkRegions(rs []Region) error {
	if len(rs) == 0 {
		return errors.New("guest RAM needs at least one region")
	}
	var total uint64
	for i, r := range rs {
		end := uint64(r.Start) + r.LenBytes
		switch {
		case r.LenBytes == 0 || r.LenBytes%PageBytes != 0 || uint64(r.Start)%PageBytes != 0:
			return fmt.Errorf("RAM region %#x+%#x is not made of whole %d-byte pages", r.Start, r.LenBytes, PageBytes)
		case end < uint64(r.Start) || end > 1<<52:
			return fmt.Errorf("RAM region %#x+%#x ends beyond 2^52", r.Start, r.LenBytes)
		case i > 0 && uint64(rs[i-1].Start)+rs[i-1].LenBytes > uint64(r.Start):
			return fmt.Errorf("RAM regions %#x and %#x overlap", rs[i-1].Start, r.Start)
		}
		total += r.LenBytes
	}
	if total > 1<<46 {
		return fmt.Errorf("%d bytes of guest RAM exceed the host's address space", total)
	}
	return nil
}

// Close unmaps the RAM and closes the memfd. The caller guarantees that no
// vCPU runs and nobody holds a borrowed slice. A second Close does nothing.
func (m *Memory) Close() error {
	if !m.closed.CompareAndSwap(false, true) {
		return nil
	}
	var errs []error
	for i := range m.regions {
		errs = append(errs, unix.Munmap(m.regions[i].host))
		m.regions[i].host = nil
	}
	errs = append(errs, unix.Close(m.fd))
	return errors.Join(errs...)
}

// SizeBytes is the total RAM of the guest.
func (m *Memory) SizeBytes() uint64 { return m.total }

// FD is the memfd, owned by m. Reading it by descriptor goes around
// userfaultfd; see Ensure.
func (m *Memory) FD() int { return m.fd }

// Slots lists the regions with their backing, lowest address first.
func (m *Memory) Slots() []Slot {
	out := make([]Slot, len(m.regions))
	for i := range m.regions {
		r := &m.regions[i]
		out[i] = Slot{Region: r.Region, HostAddr: hostAddr(r.host), OffsetBytes: r.offset}
	}
	return out
}

// find returns the region that holds all of [a, a+n) and the offset in it.
func (m *Memory) find(a Addr, n uint64) (*region, uint64, error) {
	for i := range m.regions {
		r := &m.regions[i]
		if a < r.Start {
			break
		}
		off := uint64(a - r.Start)
		if off < r.LenBytes || (n == 0 && off == r.LenBytes) {
			if n > r.LenBytes-off {
				break
			}
			return r, off, nil
		}
	}
	return nil, 0, fmt.Errorf("%#x+%#x: %w", uint64(a), n, ErrOutOfRange)
}

// Ensure waits until the range is present in this process: with post-copy or a
// lazy restore it may still be on its way. No goroutine touches guest memory
// that may be missing before Ensure returned nil (a goroutine that faults stops
// the garbage collector, which stops the handler). Today all memory is present
// from the start, so Ensure only checks the range.
func (m *Memory) Ensure(a Addr, n uint64) error {
	_, _, err := m.find(a, n)
	return err
}

// Readable borrows the guest's bytes [a, a+n) for reading. The guest may change
// them at any time.
func (m *Memory) Readable(a Addr, n uint64) ([]byte, error) {
	r, off, err := m.find(a, n)
	if err != nil {
		return nil, err
	}
	return r.host[off : off+n : off+n], nil
}

// Writable borrows the guest's bytes [a, a+n) for a write by the kernel or a
// copy. The borrower calls MarkDirty for what was (or may have been) written,
// before the guest is told.
func (m *Memory) Writable(a Addr, n uint64) ([]byte, error) { return m.Readable(a, n) }

// ReadAt fills p from guest memory at a.
func (m *Memory) ReadAt(p []byte, a Addr) error {
	r, off, err := m.find(a, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(p, r.host[off:])
	return nil
}

// WriteAt copies p to guest memory at a and marks it dirty.
func (m *Memory) WriteAt(p []byte, a Addr) error {
	r, off, err := m.find(a, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(r.host[off:], p)
	r.mark(off, uint64(len(p)))
	return nil
}

// Zero clears [a, a+n) and marks it dirty.
func (m *Memory) Zero(a Addr, n uint64) error {
	r, off, err := m.find(a, n)
	if err != nil {
		return err
	}
	clear(r.host[off : off+n])
	r.mark(off, n)
	return nil
}

// MarkDirty marks the pages of [a, a+n). A range that is not RAM is ignored:
// whoever borrowed it was refused.
func (m *Memory) MarkDirty(a Addr, n uint64) {
	if r, off, err := m.find(a, n); err == nil {
		r.mark(off, n)
	}
}

func (r *region) mark(off, n uint64) {
	if n == 0 {
		return
	}
	for p, last := off/PageBytes, (off+n-1)/PageBytes; p <= last; p++ {
		w, bit := &r.dirty[p/64], uint64(1)<<(p%64)
		// The load first: a page that is hot stays shared between cores.
		if atomic.LoadUint64(w)&bit == 0 {
			atomic.OrUint64(w, bit)
		}
	}
}

// TakeDirty moves the VMM's dirty bits of slot i into dst, OR-ing, and clears
// them. dst has one bit for each page of the slot, as KVM_GET_DIRTY_LOG has.
func (m *Memory) TakeDirty(i int, dst []uint64) error {
	if i < 0 || i >= len(m.regions) || len(dst) < len(m.regions[i].dirty) {
		return fmt.Errorf("dirty bitmap of RAM slot %d into %d words: no such slot or too small", i, len(dst))
	}
	for w := range m.regions[i].dirty {
		dst[w] |= atomic.SwapUint64(&m.regions[i].dirty[w], 0)
	}
	return nil
}

// Window resolves a range once, for rings that are accessed all the time. It is
// valid until Close.
type Window struct {
	b   []byte
	r   *region
	off uint64
}

// Window borrows [a, a+n) as a Window. a must be a multiple of align (a power
// of two).
func (m *Memory) Window(a Addr, n, align uint64) (Window, error) {
	if uint64(a)&(align-1) != 0 {
		return Window{}, fmt.Errorf("%#x is not aligned to %d", uint64(a), align)
	}
	r, off, err := m.find(a, n)
	if err != nil {
		return Window{}, err
	}
	return Window{b: r.host[off : off+n : off+n], r: r, off: off}, nil
}

// Len is the window's length in bytes.
func (w *Window) Len() int { return len(w.b) }

// Bytes borrows [off, off+n) of the window for reading.
func (w *Window) Bytes(off, n int) []byte { return w.b[off : off+n : off+n] }
