package memory

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

func hostAddr(b []byte) uintptr {
	// SAFETY: b is a mapping that m owns until Close; the address is handed to
	// KVM, which pins nothing of Go's heap.
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))
}

// Load16 reads the little-endian 16-bit word at off, which must be even, with
// acquire order: bytes that the guest wrote before it are seen afterwards.
func (w *Window) Load16(off int) uint16 {
	p := unsafe.Pointer(&w.b[off : off+2][0])
	shift := uintptr(p) & 2
	// SAFETY: mappings are whole pages and off is even, so the 4-byte word that
	// holds the 16-bit one lies in the mapping even where the window ends before it.
	word := atomic.LoadUint32((*uint32)(unsafe.Add(p, -int(shift))))
	return uint16(word >> (8 * shift))
}

// Store16 writes v at off (even) as one atomic store with release order and a
// full barrier after it, then marks the page dirty.
func (w *Window) Store16(off int, v uint16) {
	store16(&w.b[off : off+2][0], v)
	w.r.mark(w.off+uint64(off), 2)
}

// Store32 writes v at off (a multiple of 4) atomically, with a full barrier,
// then marks the page dirty.
func (w *Window) Store32(off int, v uint32) {
	p := &w.b[off : off+4][0]
	// SAFETY: in the mapping by the slice expression; 4-byte aligned by contract.
	atomic.StoreUint32((*uint32)(unsafe.Pointer(p)), v)
	w.r.mark(w.off+uint64(off), 4)
}

// Put64 writes v at off without ordering and marks the page dirty: for entries
// that a later Store publishes.
func (w *Window) Put64(off int, v uint64) {
	binary.LittleEndian.PutUint64(w.b[off:off+8], v)
	w.r.mark(w.off+uint64(off), 8)
}
