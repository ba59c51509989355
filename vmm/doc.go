// Package vmm is the machine: it knows which address, interrupt, thread and
// moment of life belongs to what. It puts guest RAM, vCPUs, the chipset and
// virtio transports together as docs/machine-v1.md fixes them, runs the guest,
// and says how it ended. It can be embedded: see the example of New.
//
// It is not a device model (virtio, vmm/chipset), not a loader (vmm/boot) and
// knows nothing of files, terminals, networks or command lines (guest).
//
// # Ownership
//
// A Machine owns its KVM descriptors, vCPU threads, guest RAM, chipset and
// transport halves. It borrows device halves: Close resets them and leaves them
// open. A guest's reboot ends the machine with ReasonReset; its owner makes a
// new Machine around the same halves.
//
// # Threads
//
// Each vCPU is one goroutine locked to its thread for life, the sole caller of
// the vCPU's descriptor. Exits are handled on it, in place. A vCPU is kicked out
// of the guest by kvm_run.immediate_exit and a signal to its thread; the signal
// is SIGURG, for which Go's runtime has a handler that does nothing here. Start
// raises GOMAXPROCS to CPUs + 4 where it is lower.
//
// # Lock order
//
// Machine.life (one life-cycle call at a time), then Machine.mu, gate.mu or
// vcpu.mu, which are never held together. A vector's lock, then router.mu; a
// barWindow's lock, then the bus's. Device halves and transports are called with
// life held at most.
package vmm
