package kvm

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// VCPU is one virtual processor. It belongs to one thread: that thread makes
// all calls, but for SetImmediateExit, which any goroutine may call until Close.
type VCPU struct {
	fd        descriptor
	run       []byte  // the kvm_run mapping
	immediate *uint32 // the word of it that has immediate_exit
}

// Close unmaps kvm_run and closes the descriptor.
func (c *VCPU) Close() error {
	if c.run == nil {
		return nil
	}
	err := unix.Munmap(c.run)
	c.run, c.immediate = nil, nil
	if e := c.fd.close(); e != nil {
		err = e
	}
	return err
}

// Offsets in struct kvm_run.
const (
	runExitReason = 8
	runUnion      = 32 // the structure of the exit

	immediateExitBit = 1 << 8 // byte 1 of the first word
)

// SetImmediateExit makes the next Run, or one that is about to enter the guest,
// return EINTR after it has completed the access of the last exit. It does not
// reach a Run that is in the guest: signal its thread after it.
func (c *VCPU) SetImmediateExit(on bool) {
	if on {
		atomic.OrUint32(c.immediate, immediateExitBit)
	} else {
		atomic.AndUint32(c.immediate, ^uint32(immediateExitBit))
	}
}

// ImmediateExit says whether SetImmediateExit(true) is in force.
func (c *VCPU) ImmediateExit() bool { return atomic.LoadUint32(c.immediate)&immediateExitBit != 0 }

// Run enters the guest until something needs user space. errno 0: the reason
// says what, and the view methods (IO, MMIO, …) have the details until the
// next Run. EINTR: a signal or SetImmediateExit. EAGAIN: nothing happened, go on.
// Anything else: the vCPU cannot run. It is not repeated here, and does not allocate.
func (c *VCPU) Run() (ExitReason, syscall.Errno) {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, c.fd.get(), io(0x80), 0)
	if errno != 0 {
		return KVM_EXIT_INTR, errno
	}
	return ExitReason(binary.LittleEndian.Uint32(c.run[runExitReason:])), 0
}

// PortAccess is the detail of KVM_EXIT_IO.
type PortAccess struct {
	Port uint16
	Out  bool
	// Size is the length of one access: 1, 2 or 4. Data holds Count of them, for
	// a string instruction more than one, and is part of kvm_run: an In access is
	// answered by filling it.
	Size, Count int
	Data        []byte
}

// IO is the detail of KVM_EXIT_IO.
func (c *VCPU) IO() PortAccess {
	u, le := c.run[runUnion:], binary.LittleEndian
	a := PortAccess{Out: u[0] == 1, Size: int(u[1]), Port: le.Uint16(u[2:]), Count: int(le.Uint32(u[4:]))}
	off := le.Uint64(u[8:])
	// The kernel wrote these; a check costs nothing beside an exit.
	if n := uint64(a.Size) * uint64(a.Count); off < uint64(len(c.run)) && n <= uint64(len(c.run))-off {
		a.Data = c.run[off : off+n : off+n]
	}
	return a
}

// MMIOAccess is the detail of KVM_EXIT_MMIO.
type MMIOAccess struct {
	Addr  uint64
	Write bool
	// Data is 1 to 8 bytes of kvm_run: a read is answered by filling it.
	Data []byte
}

// MMIO is the detail of KVM_EXIT_MMIO.
func (c *VCPU) MMIO() MMIOAccess {
	u, le := c.run[runUnion:], binary.LittleEndian
	n := min(le.Uint32(u[16:]), 8)
	return MMIOAccess{Addr: le.Uint64(u), Write: u[20] != 0, Data: u[8 : 8+n : 8+n]}
}

// InternalError is the detail of KVM_EXIT_INTERNAL_ERROR.
type InternalError struct {
	// Suberror is KVM_INTERNAL_ERROR_….
	Suberror uint32
	// Instruction has the bytes that could not be emulated, where KVM gave them.
	// Borrowed until the next Run.
	Instruction []byte
	// Data has the other words that KVM gave.
	Data []uint64
}

// InternalError is the detail of KVM_EXIT_INTERNAL_ERROR.
func (c *VCPU) InternalError() InternalError {
	u, le := c.run[runUnion:], binary.LittleEndian
	e := InternalError{Suberror: le.Uint32(u)}
	n := min(int(le.Uint32(u[4:])), 16)
	if e.Suberror == KVM_INTERNAL_ERROR_EMULATION && n >= 3 && le.Uint64(u[8:])&KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES != 0 {
		size := min(int(u[16]), 15) // insn_size, insn_bytes[15]
		e.Instruction = u[17 : 17+size : 17+size]
		return e
	}
	for i := range n {
		e.Data = append(e.Data, le.Uint64(u[8+8*i:]))
	}
	return e
}

// FailEntry is the detail of KVM_EXIT_FAIL_ENTRY: the processor's own code.
func (c *VCPU) FailEntry() (reason uint64, cpu uint32) {
	u, le := c.run[runUnion:], binary.LittleEndian
	return le.Uint64(u), le.Uint32(u[8:])
}

// SystemEvent is the type of KVM_EXIT_SYSTEM_EVENT: KVM_SYSTEM_EVENT_….
func (c *VCPU) SystemEvent() uint32 { return binary.LittleEndian.Uint32(c.run[runUnion:]) }

// MSRAccess is the detail of KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR.
func (c *VCPU) MSRAccess() (index uint32, data uint64) {
	u, le := c.run[runUnion:], binary.LittleEndian
	return le.Uint32(u[12:]), le.Uint64(u[16:])
}

// String is the reason's name as KVM has it, in lower case without its prefix.
func (r ExitReason) String() string {
	if int(r) < len(exitNames) && exitNames[r] != "" {
		return exitNames[r]
	}
	return fmt.Sprintf("exit-%d", uint32(r))
}

// SuberrorText says what a suberror of KVM_EXIT_INTERNAL_ERROR means.
func SuberrorText(suberror uint32) string {
	switch suberror {
	case KVM_INTERNAL_ERROR_EMULATION:
		return "KVM cannot emulate an instruction"
	case KVM_INTERNAL_ERROR_SIMUL_EX:
		return "simultaneous exceptions"
	case KVM_INTERNAL_ERROR_DELIVERY_EV:
		return "an exit while an event was delivered"
	case KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON:
		return "an exit of the processor that KVM does not know"
	}
	return "unknown suberror"
}
