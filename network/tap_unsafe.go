package network

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// appendIovec adds a slice to a vector; an empty one is left out.
func appendIovec(iov []unix.Iovec, b []byte) []unix.Iovec {
	if len(b) == 0 {
		return iov
	}
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return append(iov, v)
}

// vectored makes one readv or writev. It is not retried: the descriptor does not block,
// so that it is not interrupted either.
func vectored(call, fd uintptr, iov []unix.Iovec) (int, error) {
	if len(iov) == 0 {
		return 0, nil
	}
	// SAFETY: the vector is a Go slice whose elements hold real pointers (Base) to the
	// caller's slices, which it lends for the call; both are alive until it returns, and
	// the kernel stays within the lengths that appendIovec took from the slices. The
	// conversion stands in the call's own argument list.
	n, _, errno := unix.Syscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
