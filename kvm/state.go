package kvm

import (
	"encoding/binary"
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// Structures of a vCPU's state, as gokvm has them. Their names in linux/kvm.h:
type (
	Regs       = gokvm.Regs       // struct kvm_regs
	Sregs      = gokvm.Sregs      // struct kvm_sregs
	Sregs2     = gokvm.SRegs2     // struct kvm_sregs2
	Segment    = gokvm.Segment    // struct kvm_segment
	Descriptor = gokvm.Descriptor // struct kvm_dtable
	DebugRegs  = gokvm.DebugRegs  // struct kvm_debugregs
	XCRs       = gokvm.XCRS       // struct kvm_xcrs
	Events     = gokvm.VCPUEvents // struct kvm_vcpu_events
	LAPIC      = gokvm.LAPICState // struct kvm_lapic_state
)

// FPU is struct kvm_fpu.
type FPU struct {
	FPR        [8][16]byte
	FCW, FSW   uint16
	FTWX       uint8
	_          uint8
	LastOpcode uint16
	LastIP     uint64
	LastDP     uint64
	XMM        [16][16]byte
	MXCSR      uint32
	_          uint32
}

// MSR is one model-specific register: struct kvm_msr_entry.
type MSR struct {
	Index uint32
	Data  uint64
}

// The getters fill what they are given, the setters read it; both are single
// ioctls with the name that the error says.

// Regs reads the general registers.
func (c *VCPU) Regs(r *Regs) error { return read(&c.fd, "KVM_GET_REGS", 0x81, r) }

// SetRegs writes the general registers.
func (c *VCPU) SetRegs(r *Regs) error { return write(&c.fd, "KVM_SET_REGS", 0x82, r) }

// Sregs reads segment, table and control registers.
func (c *VCPU) Sregs(s *Sregs) error { return read(&c.fd, "KVM_GET_SREGS", 0x83, s) }

// SetSregs writes segment, table and control registers.
func (c *VCPU) SetSregs(s *Sregs) error { return write(&c.fd, "KVM_SET_SREGS", 0x84, s) }

// Sregs2 reads what Sregs does, with PDPTRs in place of the interrupt bitmap.
func (c *VCPU) Sregs2(s *Sregs2) error { return read(&c.fd, "KVM_GET_SREGS2", 0xcc, s) }

// SetSregs2 writes what Sregs2 reads.
func (c *VCPU) SetSregs2(s *Sregs2) error { return write(&c.fd, "KVM_SET_SREGS2", 0xcd, s) }

// FPU reads x87 and SSE state.
func (c *VCPU) FPU(f *FPU) error { return read(&c.fd, "KVM_GET_FPU", 0x8c, f) }

// SetFPU writes x87 and SSE state.
func (c *VCPU) SetFPU(f *FPU) error { return write(&c.fd, "KVM_SET_FPU", 0x8d, f) }

// LAPIC reads the local APIC's registers.
func (c *VCPU) LAPIC(l *LAPIC) error { return read(&c.fd, "KVM_GET_LAPIC", 0x8e, l) }

// SetLAPIC writes the local APIC's registers.
func (c *VCPU) SetLAPIC(l *LAPIC) error { return write(&c.fd, "KVM_SET_LAPIC", 0x8f, l) }

// MPState is KVM_MP_STATE_….
func (c *VCPU) MPState() (uint32, error) {
	var s uint32
	err := read(&c.fd, "KVM_GET_MP_STATE", 0x98, &s)
	return s, err
}

// SetMPState sets KVM_MP_STATE_….
func (c *VCPU) SetMPState(s uint32) error { return write(&c.fd, "KVM_SET_MP_STATE", 0x99, &s) }

// Events reads pending exceptions, interrupts, NMIs and the like.
func (c *VCPU) Events(e *Events) error { return read(&c.fd, "KVM_GET_VCPU_EVENTS", 0x9f, e) }

// SetEvents writes them; Flags says which parts count.
func (c *VCPU) SetEvents(e *Events) error { return write(&c.fd, "KVM_SET_VCPU_EVENTS", 0xa0, e) }

// DebugRegs reads DR0 to DR3, DR6 and DR7.
func (c *VCPU) DebugRegs(d *DebugRegs) error { return read(&c.fd, "KVM_GET_DEBUGREGS", 0xa1, d) }

// SetDebugRegs writes them.
func (c *VCPU) SetDebugRegs(d *DebugRegs) error { return write(&c.fd, "KVM_SET_DEBUGREGS", 0xa2, d) }

// XCRs reads the extended control registers.
func (c *VCPU) XCRs(x *XCRs) error { return read(&c.fd, "KVM_GET_XCRS", 0xa6, x) }

// SetXCRs writes them.
func (c *VCPU) SetXCRs(x *XCRs) error { return write(&c.fd, "KVM_SET_XCRS", 0xa7, x) }

// xsaveBytes is the size of struct kvm_xsave, all there was before KVM_CAP_XSAVE2.
const xsaveBytes = 4096

// maxXSaveBytes bounds what a kernel may ask for; AMX needs about 11 KiB.
const maxXSaveBytes = 1 << 20

// XSaveBytes is the size of a vCPU's XSAVE area in vm.
func (vm *VM) XSaveBytes() (int, error) {
	n, err := vm.CheckExtension(KVM_CAP_XSAVE2)
	if err != nil || n > maxXSaveBytes {
		return 0, fmt.Errorf("XSAVE area of %d bytes: %w", n, err)
	}
	return max(n, xsaveBytes), nil
}

// XSave reads the XSAVE area into b, whose length is VM.XSaveBytes.
func (c *VCPU) XSave(b []byte) error {
	if len(b) < xsaveBytes {
		return fmt.Errorf("KVM_GET_XSAVE2: buffer of %d bytes, at least %d needed", len(b), xsaveBytes)
	}
	name, nr := "KVM_GET_XSAVE2", uintptr(0xcf)
	if len(b) == xsaveBytes {
		name, nr = "KVM_GET_XSAVE", 0xa4 // also in kernels without XSAVE2
	}
	_, err := c.fd.buffer(name, ior(nr, xsaveBytes), b)
	return err
}

// SetXSave writes the XSAVE area from b, whose length is VM.XSaveBytes.
func (c *VCPU) SetXSave(b []byte) error {
	if len(b) < xsaveBytes {
		return fmt.Errorf("KVM_SET_XSAVE: buffer of %d bytes, at least %d needed", len(b), xsaveBytes)
	}
	_, err := c.fd.buffer("KVM_SET_XSAVE", iow(0xa5, xsaveBytes), b)
	return err
}

// CPUID lists what the guest sees.
func (c *VCPU) CPUID() ([]CPUIDEntry, error) { return getCPUID(&c.fd, "KVM_GET_CPUID2", 0x91) }

// SetCPUID sets what the guest sees.
func (c *VCPU) SetCPUID(entries []CPUIDEntry) error {
	if len(entries) > maxCPUIDEntries {
		return fmt.Errorf("KVM_SET_CPUID2: %d entries, at most %d", len(entries), maxCPUIDEntries)
	}
	_, err := c.fd.buffer("KVM_SET_CPUID2", iow(0x90, cpuidHeaderBytes), encodeCPUID(entries))
	return err
}

const (
	msrHeaderBytes = 8  // struct kvm_msrs: nmsrs, pad
	msrEntryBytes  = 16 // struct kvm_msr_entry: index, reserved, data
)

// MSRs reads the registers that msrs name, in order, and returns how many were
// read: the one after them was refused.
func (c *VCPU) MSRs(msrs []MSR) (int, error) {
	return c.msrs("KVM_GET_MSRS", iowr(0x88, msrHeaderBytes), msrs, true)
}

// SetMSRs writes registers in order and returns how many were written: the
// one after them was refused.
func (c *VCPU) SetMSRs(msrs []MSR) (int, error) {
	return c.msrs("KVM_SET_MSRS", iow(0x89, msrHeaderBytes), msrs, false)
}

func (c *VCPU) msrs(name string, op uintptr, msrs []MSR, get bool) (int, error) {
	le, done := binary.LittleEndian, 0
	for done < len(msrs) {
		part := msrs[done:min(len(msrs), done+maxMSRs)]
		b := make([]byte, msrHeaderBytes+msrEntryBytes*len(part))
		le.PutUint32(b, uint32(len(part)))
		for i, m := range part {
			le.PutUint32(b[msrHeaderBytes+msrEntryBytes*i:], m.Index)
			le.PutUint64(b[msrHeaderBytes+msrEntryBytes*i+8:], m.Data)
		}
		n, err := c.fd.buffer(name, op, b)
		if err != nil {
			return done, err
		}
		for i := 0; get && i < min(n, len(part)); i++ {
			part[i].Data = le.Uint64(b[msrHeaderBytes+msrEntryBytes*i+8:])
		}
		done += n
		if n < len(part) {
			break
		}
	}
	return done, nil
}

// TSCKHz is the vCPU's TSC frequency.
func (c *VCPU) TSCKHz() (int, error) { return c.fd.do("KVM_GET_TSC_KHZ", io(0xa3), 0) }

// SetTSCKHz sets the vCPU's TSC frequency (KVM_CAP_TSC_CONTROL, or a value
// close to the host's).
func (c *VCPU) SetTSCKHz(kHz int) error {
	_, err := c.fd.do("KVM_SET_TSC_KHZ", io(0xa2), uintptr(kHz))
	return err
}

// NotePaused tells the guest's kvmclock that the vCPU was stopped, so that its
// watchdogs forgive the gap. EINVAL: the guest uses no kvmclock.
func (c *VCPU) NotePaused() error {
	_, err := c.fd.do("KVM_KVMCLOCK_CTRL", io(0xad), 0)
	return err
}

// NMI queues a non-maskable interrupt.
func (c *VCPU) NMI() error {
	_, err := c.fd.do("KVM_NMI", io(0x9a), 0)
	return err
}

// SetSignalMask sets the thread's signal mask for the time inside Run: bit n-1
// is signal n.
func (c *VCPU) SetSignalMask(mask uint64) error {
	b := make([]byte, 12) // struct kvm_signal_mask: len, then the kernel's 8-byte sigset
	binary.LittleEndian.PutUint32(b, 8)
	binary.LittleEndian.PutUint64(b[4:], mask)
	_, err := c.fd.buffer("KVM_SET_SIGNAL_MASK", iow(0x8b, 4), b)
	return err
}

// EnableCap switches a capability on for this vCPU.
func (c *VCPU) EnableCap(capability Cap, args ...uint64) error {
	e := enableCap{cap: uint32(capability)}
	copy(e.args[:], args)
	return write(&c.fd, "KVM_ENABLE_CAP", 0xa3, &e)
}

// Translation is struct kvm_translation.
type Translation = gokvm.Translation

// Translate walks the guest's page tables for t.LinearAddress.
func (c *VCPU) Translate(t *Translation) error {
	return exchange(&c.fd, "KVM_TRANSLATE", 0x85, t)
}
