package blk

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// preadv2 and pwritev2 are the system calls without the allocations of
// unix.Preadv2. On 64 bit the offset is one argument and the high half is 0.
func preadv2(fd int, iov []unix.Iovec, off int64, flags int) (int, error) {
	// SAFETY: iov and the slices behind it stay reachable through the caller's
	// Vec for the call; the kernel keeps no pointer to them afterwards. A slice is
	// guest memory borrowed by a request or memory of this process.
	n, _, e := syscall.Syscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))),
		uintptr(len(iov)), uintptr(off), 0, uintptr(flags))
	runtime.KeepAlive(iov)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

func pwritev2(fd int, iov []unix.Iovec, off int64, flags int) (int, error) {
	// SAFETY: as in preadv2; the kernel only reads.
	n, _, e := syscall.Syscall6(unix.SYS_PWRITEV2, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))),
		uintptr(len(iov)), uintptr(off), 0, uintptr(flags))
	runtime.KeepAlive(iov)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// ioctlRange calls an ioctl that takes a pointer to { u64 start, u64 length },
// as BLKDISCARD and BLKZEROOUT do.
func ioctlRange(fd int, req uint, off, n int64) error {
	arg := [2]uint64{uint64(off), uint64(n)}
	// SAFETY: both requests read 16 bytes from the pointer, which arg has.
	_, _, e := syscall.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(unsafe.Pointer(&arg)))
	if e != 0 {
		return e
	}
	return nil
}

// ioctlSize calls BLKGETSIZE64.
func ioctlSize(fd int) (int64, error) {
	var size uint64
	// SAFETY: BLKGETSIZE64 writes a u64 to the pointer.
	_, _, e := syscall.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size)))
	if e != 0 {
		return 0, e
	}
	return int64(size), nil
}

// aligned says whether every slice left in v starts and ends at a multiple of
// align in this process's address space.
func (v *Vec) aligned(align int) bool {
	for _, b := range v.Bufs() {
		// SAFETY: the address is only looked at.
		if (uintptr(unsafe.Pointer(unsafe.SliceData(b)))|uintptr(len(b)))&uintptr(align-1) != 0 {
			return false
		}
	}
	return true
}
