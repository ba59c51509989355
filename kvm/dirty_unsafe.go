package kvm

import (
	"fmt"
	"unsafe"
)

type dirtyLog struct { // struct kvm_dirty_log
	slot   uint32
	_      uint32
	bitmap unsafe.Pointer
}

// DirtyLog fills bitmap, one bit a page of the slot, with what the guest wrote
// since the last call. Without KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 it also clears
// and write-protects; with it ClearDirtyLog does.
func (vm *VM) DirtyLog(slot uint32, bitmap []uint64) error {
	// SAFETY: the structure holds the bitmap by a typed pointer, so it stays alive
	// and in place during the call. That it has a bit for each page is the caller's
	// part: only the caller knows the slot's length.
	l := dirtyLog{slot: slot, bitmap: unsafe.Pointer(unsafe.SliceData(bitmap))}
	return write(&vm.fd, "KVM_GET_DIRTY_LOG", 0x42, &l)
}

type clearDirtyLog struct { // struct kvm_clear_dirty_log
	slot, pages uint32
	first       uint64
	bitmap      unsafe.Pointer
}

// ClearDirtyLog clears, in the kernel's log of the slot, the pages whose bits
// are set, bit 0 being page first. first is a multiple of 64; pages is too, unless
// the range ends with the slot.
func (vm *VM) ClearDirtyLog(slot uint32, first uint64, pages uint32, bitmap []uint64) error {
	if uint64(len(bitmap))*64 < uint64(pages) {
		return fmt.Errorf("KVM_CLEAR_DIRTY_LOG: bitmap of %d words for %d pages", len(bitmap), pages)
	}
	// SAFETY: as in DirtyLog; the length was checked.
	l := clearDirtyLog{slot: slot, pages: pages, first: first, bitmap: unsafe.Pointer(unsafe.SliceData(bitmap))}
	return exchange(&vm.fd, "KVM_CLEAR_DIRTY_LOG", 0xc0, &l)
}
