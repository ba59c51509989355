package probe

import "unsafe"

func hostAddr(b []byte) uintptr {
	// SAFETY: b is a mapping that the caller keeps until the VM is gone; Go's
	// garbage collector knows nothing of it.
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))
}
