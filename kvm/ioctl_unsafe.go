package kvm

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxInterrupted bounds how often a call that a signal interrupted is repeated.
// Go sends at most one preemption signal every 10 ms to a thread.
const maxInterrupted = 1000

// descriptor is an owned file descriptor, -1 once closed.
type descriptor struct{ v atomic.Int32 }

func (d *descriptor) get() uintptr { return uintptr(d.v.Load()) }

func (d *descriptor) close() error {
	fd := d.v.Swap(-1)
	if fd < 0 {
		return nil
	}
	return unix.Close(int(fd))
}

// do makes a call whose argument is a number.
func (d *descriptor) do(name string, op, arg uintptr) (int, error) {
	for range maxInterrupted {
		r, _, errno := syscall.Syscall(syscall.SYS_IOCTL, d.get(), op, arg)
		if errno == 0 {
			return int(r), nil
		}
		if errno != syscall.EINTR {
			return 0, callError(name, errno)
		}
	}
	return 0, callError(name, syscall.EINTR)
}

// ptr makes a call whose argument is the address of a structure of the size that
// op encodes, or of a header with the announced number of entries behind it.
func (d *descriptor) ptr(name string, op uintptr, p unsafe.Pointer) (int, error) {
	for range maxInterrupted {
		// SAFETY: the conversion stands in the argument list, so p stays alive and in
		// place until the call returns. The kernel keeps no reference. That p points to
		// enough memory is the caller's part.
		r, _, errno := syscall.Syscall(syscall.SYS_IOCTL, d.get(), op, uintptr(p))
		if errno == 0 {
			return int(r), nil
		}
		if errno != syscall.EINTR {
			return 0, callError(name, errno)
		}
	}
	return 0, callError(name, syscall.EINTR)
}

// read fills a T by an _IOR or _IOWR call of exactly T's size.
func read[T any](d *descriptor, name string, nr uintptr, v *T) error {
	// SAFETY: v is a whole T, and the size in the ioctl number is T's.
	_, err := d.ptr(name, ior(nr, unsafe.Sizeof(*v)), unsafe.Pointer(v))
	return err
}

// write hands a T to an _IOW call of exactly T's size.
func write[T any](d *descriptor, name string, nr uintptr, v *T) error {
	// SAFETY: as in read.
	_, err := d.ptr(name, iow(nr, unsafe.Sizeof(*v)), unsafe.Pointer(v))
	return err
}

// exchange passes a T both ways by an _IOWR call of exactly T's size.
func exchange[T any](d *descriptor, name string, nr uintptr, v *T) error {
	// SAFETY: as in read.
	_, err := d.ptr(name, iowr(nr, unsafe.Sizeof(*v)), unsafe.Pointer(v))
	return err
}

// buffer passes the bytes of b, which start with a header of the size in op and
// are long enough for the entries that the header announces.
func (d *descriptor) buffer(name string, op uintptr, b []byte) (int, error) {
	// SAFETY: b is not empty; callers size it after the count that they store in its header.
	return d.ptr(name, op, unsafe.Pointer(unsafe.SliceData(b)))
}

// word32 is the 32-bit word at the start of the kvm_run page: four bytes of
// which immediate_exit is the second.
func word32(page []byte) *uint32 {
	// SAFETY: page is a mapping, so aligned and longer than 4 bytes, and lives until
	// VCPU.Close, before which no Kick may be in flight.
	return (*uint32)(unsafe.Pointer(unsafe.SliceData(page)))
}

// callError names a failed call, with a hint where the reason is known.
func callError(name string, errno syscall.Errno) error {
	hint := ""
	switch {
	case name == "KVM_CREATE_VM" && errno == syscall.EBUSY:
		hint = ": another hypervisor (VirtualBox, VMware) holds the processor's virtualization: stop it"
	case name == "KVM_CREATE_VM" && errno == syscall.EOPNOTSUPP:
		hint = ": the processor's virtualization is switched off: enable it in the firmware"
	case errno == syscall.ENOMEM:
		hint = ": the host has no memory left, or a limit (ulimit -l, cgroup) is reached"
	case errno == syscall.EMFILE || errno == syscall.ENFILE:
		hint = ": raise the limit of open files (ulimit -n)"
	case name == "KVM_IRQFD" && errno == syscall.EBUSY:
		hint = ": the eventfd has an interrupt already"
	case name == "KVM_IOEVENTFD" && errno == syscall.EEXIST:
		hint = ": the address has an eventfd already"
	case name == "KVM_IOEVENTFD" && errno == syscall.ENOSPC:
		hint = ": the VM has as many eventfds on this bus as the kernel allows"
	}
	return fmt.Errorf("%s: %w%s", name, errno, hint)
}

// signalMSI is write for the one _IOW call whose result counts.
func signalMSI(d *descriptor, m *msi) (int, error) {
	// SAFETY: m is a whole struct kvm_msi.
	return d.ptr("KVM_SIGNAL_MSI", iow(0xa5, unsafe.Sizeof(*m)), unsafe.Pointer(m))
}
