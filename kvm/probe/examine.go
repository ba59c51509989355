package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kvm"
)

// Finding is one thing that was looked at.
type Finding struct {
	// ID names the finding for programs; it does not change between releases.
	ID string `json:"id"`
	// OK says that it is as it should be. Needed says that without it no guest
	// runs on this machine's KVM.
	OK     bool `json:"ok"`
	Needed bool `json:"needed"`
	// What was found, what that Means, and what to do if it is not OK (may be
	// empty: nothing can be done). One sentence each.
	What     string `json:"what"`
	Meaning  string `json:"meaning"`
	WhatToDo string `json:"whatToDo,omitempty"`
}

// capability is one that is looked at by KVM_CHECK_EXTENSION.
type capability struct {
	id      string
	cap     kvm.Cap
	needed  bool
	name    string
	meaning string
	todo    string
}

const newerKernel = "use a newer host kernel"

var capabilities = []capability{
	{"user-memory", kvm.KVM_CAP_USER_MEMORY, true, "guest memory from user space", "guests get their RAM", newerKernel},
	{"irqchip", kvm.KVM_CAP_IRQCHIP, true, "interrupt controllers in the kernel", "guests get interrupts", newerKernel},
	{"pit", kvm.KVM_CAP_PIT2, true, "a timer in the kernel", "guests can calibrate their clocks", newerKernel},
	{"irq-routing", kvm.KVM_CAP_IRQ_ROUTING, true, "interrupt routing", "devices can send message-signalled interrupts", newerKernel},
	{"irqfd", kvm.KVM_CAP_IRQFD, true, "interrupts by eventfd", "devices interrupt guests cheaply", newerKernel},
	{"ioeventfd", kvm.KVM_CAP_IOEVENTFD, true, "notifications by eventfd", "guests notify devices without leaving the guest for user space", newerKernel},
	{"immediate-exit", kvm.KVM_CAP_IMMEDIATE_EXIT, true, "immediate exit", "vCPUs can be stopped without a race", newerKernel},
	{"clock", kvm.KVM_CAP_ADJUST_CLOCK, false, "an adjustable guest clock", "a pause or a move does not make the guest's time jump", newerKernel},
	{"tsc-deadline", kvm.KVM_CAP_TSC_DEADLINE_TIMER, false, "TSC deadline timers", "guests use the cheapest timer", "expect somewhat slower timers in guests"},
	{"dirty-log", kvm.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, false, "a dirty log that is cleared by hand", "guests move while they run with little disturbance", newerKernel},
	{"dirty-ring", kvm.KVM_CAP_DIRTY_LOG_RING, false, "dirty rings", "large guests that write little move faster", newerKernel},
	{"xsave2", kvm.KVM_CAP_XSAVE2, false, "large processor state", "guests with AMX registers can be saved", newerKernel},
	{"tsc-control", kvm.KVM_CAP_TSC_CONTROL, false, "TSC scaling", "guests keep their TSC frequency when they move to this machine from one with another", "move guests between machines of equal TSC frequency, or let them use kvm-clock"},
	{"nested", kvm.KVM_CAP_NESTED_STATE, false, "nested virtualization", "guests can run guests of their own", "load kvm_intel or kvm_amd with nested=1 if you need it"},
}

// Examine looks at everything. It never fails: what cannot be looked at is a
// finding too. The most important come first.
func Examine() []Finding {
	sys, err := kvm.Open()
	if err != nil {
		return []Finding{openFinding(err), userfaultfd()}
	}
	defer func() { _ = sys.Close() }()
	out := []Finding{
		{ID: "kvm-device", OK: true, Needed: true, What: kvm.DevicePath + " opens, API version 12" + kind(), Meaning: "this user may run guests"},
		linuxFinding(),
	}
	for _, c := range capabilities {
		out = append(out, c.look(sys))
	}
	return append(out,
		limit(sys, "max-vcpus", kvm.KVM_CAP_MAX_VCPUS, "vCPUs a guest at most"),
		limit(sys, "recommended-vcpus", kvm.KVM_CAP_NR_VCPUS, "vCPUs a guest recommended"),
		limit(sys, "memory-slots", kvm.KVM_CAP_NR_MEMSLOTS, "memory slots a guest"),
		userfaultfd())
}

func openFinding(err error) Finding {
	f := Finding{ID: "kvm-device", Needed: true, What: err.Error(), Meaning: "no guest runs on this machine's own processor"}
	switch {
	case errors.Is(err, kvm.ErrNotPresent):
		f.What = "there is no " + kvm.DevicePath
		f.WhatToDo = "enable virtualization in the firmware, or nested virtualization in the hypervisor around this machine, and load kvm_intel or kvm_amd; or use the lab, which emulates a host"
	case errors.Is(err, kvm.ErrNotPermitted):
		f.What = "this user may not open " + kvm.DevicePath
		f.WhatToDo = "add the user to group kvm (usermod -aG kvm USER, then log in again), or pass the device into this container"
	}
	return f
}

// kind is the name of the KVM implementation that is loaded, for people.
func kind() string {
	found, err := filepath.Glob("/sys/module/kvm_*")
	if err != nil || len(found) == 0 {
		return ""
	}
	for i, f := range found {
		found[i] = filepath.Base(f)
	}
	return " (" + strings.Join(found, ", ") + ")"
}

func linuxFinding() Finding {
	f := Finding{ID: "linux", Needed: true}
	ok, why, err := CanRunLinux()
	switch {
	case err != nil:
		f.What, f.Meaning = err.Error(), "it is not known whether an ordinary kernel runs here"
	case ok:
		f.OK, f.What, f.Meaning = true, "KVM runs what a kernel does in ring 0, and system calls", "ordinary Linux kernels run as guests here"
	default:
		f.What, f.Meaning = why, "an ordinary Linux kernel cannot boot on this KVM, under any VMM: it is a software KVM without hardware virtualization under it"
		f.WhatToDo = "use the lab, which emulates a host with a complete KVM; or a machine with VMX or SVM"
	}
	return f
}

func (c capability) look(sys *kvm.System) Finding {
	f := Finding{ID: c.id, Needed: c.needed}
	n, err := sys.CheckExtension(c.cap)
	switch {
	case err != nil:
		f.What, f.Meaning, f.WhatToDo = err.Error(), "not known: "+c.meaning, c.todo
	case n > 0:
		f.OK, f.What, f.Meaning = true, "KVM has "+c.name, c.meaning
	default:
		f.What, f.Meaning, f.WhatToDo = "KVM lacks "+c.name, "missing: "+c.meaning, c.todo
	}
	return f
}

func limit(sys *kvm.System, id string, c kvm.Cap, what string) Finding {
	n, err := sys.CheckExtension(c)
	if err != nil {
		return Finding{ID: id, What: err.Error(), Meaning: "not known: " + what}
	}
	return Finding{ID: id, OK: n > 0, What: fmt.Sprintf("%d %s", n, what), Meaning: "larger guests are refused"}
}

// userfaultfd looks for a descriptor that sees faults of the kernel too, as
// KVM's are.
func userfaultfd() Finding {
	f := Finding{ID: "userfaultfd", Meaning: "guests can be moved by post-copy and restored lazily"}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno == 0 {
		_ = unix.Close(int(fd))
		f.OK, f.What = true, "userfaultfd is permitted"
		return f
	}
	if dev, err := os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0); err == nil {
		_ = dev.Close()
		f.OK, f.What = true, "/dev/userfaultfd opens"
		return f
	}
	f.What = fmt.Sprintf("userfaultfd: %v", errno)
	f.Meaning = "missing: " + f.Meaning
	f.WhatToDo = "give this user access to /dev/userfaultfd, or set sysctl vm.unprivileged_userfaultfd=1"
	return f
}
