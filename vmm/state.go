package vmm

import (
	"encoding/binary"
	"fmt"

	"github.com/peervisor/peervisor/kvm"
	"github.com/peervisor/peervisor/vmm/boot"
)

// Registers that firmware would have set up.
const (
	msrMiscEnable  = 0x1A0 // IA32_MISC_ENABLE
	msrMTRRDefType = 0x2FF // IA32_MTRR_DEF_TYPE

	miscFastString = 1 << 0
	mtrrEnable     = 1 << 11
	mtrrWriteBack  = 6

	// Local vector table of the local APIC, by offset.
	lapicLINT0 = 0x350
	lapicLINT1 = 0x360

	lapicModeMask   = 7 << 8
	lapicModeNMI    = 4 << 8
	lapicModeExtINT = 7 << 8
	lapicMasked     = 1 << 16
)

// initVCPU gives a fresh vCPU the state in which firmware hands it on: CPUID,
// the memory type of RAM, and the virtual wire by which the PIC reaches it. vCPUs
// other than 0 wait for SIPI.
func initVCPU(p *kvm.VCPU, id int, cpuid []kvm.CPUIDEntry) error {
	if err := p.SetCPUID(cpuid); err != nil {
		return err
	}
	// A software KVM may refuse one of them; guests get along without.
	for _, r := range []kvm.MSR{
		{Index: msrMiscEnable, Data: miscFastString},
		{Index: msrMTRRDefType, Data: mtrrEnable | mtrrWriteBack},
	} {
		if _, err := p.SetMSRs([]kvm.MSR{r}); err != nil {
			return err
		}
	}
	var l kvm.LAPIC
	if err := p.LAPIC(&l); err != nil {
		return err
	}
	if id == 0 {
		setLVT(&l, lapicLINT0, lapicModeExtINT)
	}
	setLVT(&l, lapicLINT1, lapicModeNMI)
	if err := p.SetLAPIC(&l); err != nil {
		return err
	}
	if id != 0 {
		return p.SetMPState(kvm.KVM_MP_STATE_INIT_RECEIVED)
	}
	return nil
}

func setLVT(l *kvm.LAPIC, off int, mode uint32) {
	v := binary.LittleEndian.Uint32(l.Regs[off:])
	v = v&^(lapicModeMask|lapicMasked) | mode
	binary.LittleEndian.PutUint32(l.Regs[off:], v)
}

// setEntry puts vCPU 0 into the state that the loader wants.
func setEntry(p *kvm.VCPU, e boot.Entry) error {
	var s kvm.Sregs
	if err := p.Sregs(&s); err != nil { // for the APIC base, which stays
		return err
	}
	s.CS, s.DS, s.ES, s.FS, s.GS, s.SS = segment(e.CS), segment(e.DS), segment(e.ES), segment(e.FS), segment(e.GS), segment(e.SS)
	s.TR, s.LDT = segment(e.TR), segment(e.LDT)
	s.GDT = kvm.Descriptor{Base: uint64(e.GDT.Base), Limit: e.GDT.Limit}
	s.IDT = kvm.Descriptor{Base: uint64(e.IDT.Base), Limit: e.IDT.Limit}
	s.CR0, s.CR3, s.CR4, s.EFER = e.CR0, e.CR3, e.CR4, e.EFER
	if err := p.SetSregs(&s); err != nil {
		return fmt.Errorf("entry state (%v): %w", e.Protocol, err)
	}
	if err := p.SetRegs(&kvm.Regs{RIP: e.RIP, RSP: e.RSP, RBX: e.RBX, RSI: e.RSI, RFLAGS: e.RFLAGS}); err != nil {
		return fmt.Errorf("entry state (%v): %w", e.Protocol, err)
	}
	return nil
}

func segment(s boot.Segment) kvm.Segment {
	bit := func(b bool) uint8 {
		if b {
			return 1
		}
		return 0
	}
	return kvm.Segment{
		Base: s.Base, Limit: s.Limit, Selector: s.Selector, Typ: s.Type, Present: bit(s.Present), DPL: s.DPL,
		DB: bit(s.DB), S: bit(!s.System), L: bit(s.Long), G: bit(s.Granular), Unusable: bit(!s.Present),
	}
}
