// Package kvm is /dev/kvm in Go types: ioctl numbers, kernel structures, and one
// method for each call. It knows no machine: which address, interrupt or moment
// is right is package vmm's business.
//
// Names and layouts follow linux/kvm.h and Documentation/virt/kvm/api.rst.
// Structures come from github.com/bobuhiro11/gokvm/kvm where they match the
// kernel's. The calls are made here, for three reasons: a pointer must become
// a uintptr in the argument list of the system call itself, or a moved stack
// leaves the kernel with a stale address; several calls return EINTR when Go's
// scheduler signals the thread, and must be repeated; and routing entries, irqfd,
// ioeventfd, MSIs, XSAVE, ENABLE_CAP and CLEAR_DIRTY_LOG are not in that package
// or not in the kernel's size.
//
// # Ownership
//
// System, VM and VCPU each own one file descriptor until Close, which may be
// called twice. The caller guarantees that no call is in flight on an object while
// it is closed, and that a VCPU is used by one thread at a time; VCPU.Kick
// excepted. Calls after Close fail with EBADF. The kernel keeps a VM alive until
// its last vCPU is closed.
//
// # Errors
//
// An error names the ioctl, as in "KVM_CREATE_VM: device or resource busy: …",
// wraps the errno, and says what to do where that is known.
package kvm
