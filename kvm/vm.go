package kvm

import (
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// Structures of the kernel's VM calls, as gokvm has them.
type (
	// IRQChip is struct kvm_irqchip: a PIC or the IOAPIC, by ChipID.
	IRQChip = gokvm.IRQChip
	// PITState is struct kvm_pit_state2.
	PITState = gokvm.PITState2
	// ClockData is struct kvm_clock_data.
	ClockData = gokvm.ClockData
)

// VM is one virtual machine of the kernel. All its methods may be called from
// any goroutine.
type VM struct {
	fd       descriptor
	runBytes int
}

// Close closes the VM's descriptor. The kernel's VM goes with its last vCPU.
func (vm *VM) Close() error { return vm.fd.close() }

// FD is the VM's descriptor, for calls that this package has not. It stays vm's.
func (vm *VM) FD() int { return int(vm.fd.v.Load()) }

// CheckExtension is System.CheckExtension for this VM.
func (vm *VM) CheckExtension(c Cap) (int, error) {
	return vm.fd.do("KVM_CHECK_EXTENSION", io(0x03), uintptr(c))
}

type enableCap struct { // struct kvm_enable_cap
	cap  uint32
	_    uint32 // flags: none is defined
	args [4]uint64
	_    [64]byte
}

// EnableCap switches a capability on for this VM.
func (vm *VM) EnableCap(c Cap, args ...uint64) error {
	e := enableCap{cap: uint32(c)}
	copy(e.args[:], args)
	return write(&vm.fd, "KVM_ENABLE_CAP", 0xa3, &e)
}

type memoryRegion struct { // struct kvm_userspace_memory_region
	slot, flags                uint32
	guestPhys, bytes, hostVirt uint64
}

// SetMemoryRegion puts lenBytes of this process's memory at hostAddr into the
// guest at guestPhys. lenBytes 0 removes the slot. The mapping belongs to the
// caller, who keeps it until the slot is removed or the VM is gone.
func (vm *VM) SetMemoryRegion(slot, flags uint32, guestPhys, lenBytes uint64, hostAddr uintptr) error {
	r := memoryRegion{slot, flags, guestPhys, lenBytes, uint64(hostAddr)}
	if err := write(&vm.fd, "KVM_SET_USER_MEMORY_REGION", 0x46, &r); err != nil {
		return fmt.Errorf("memory slot %d, %#x+%#x: %w", slot, guestPhys, lenBytes, err)
	}
	return nil
}

// SetTSSAddr sets where Intel processors keep three pages for real mode.
func (vm *VM) SetTSSAddr(guestPhys uint32) error {
	_, err := vm.fd.do("KVM_SET_TSS_ADDR", io(0x47), uintptr(guestPhys))
	return err
}

// SetIdentityMapAddr sets where Intel processors keep a page table for real
// mode. It must come before the first vCPU.
func (vm *VM) SetIdentityMapAddr(guestPhys uint64) error {
	return write(&vm.fd, "KVM_SET_IDENTITY_MAP_ADDR", 0x48, &guestPhys)
}

// CreateIRQChip makes PICs, IOAPIC and, with each vCPU, a local APIC in the
// kernel. It must come before the first vCPU.
func (vm *VM) CreateIRQChip() error {
	_, err := vm.fd.do("KVM_CREATE_IRQCHIP", io(0x60), 0)
	return err
}

type pitConfig struct { // struct kvm_pit_config
	flags uint32
	_     [15]uint32
}

// CreatePIT2 makes an i8254 in the kernel. flags: KVM_PIT_SPEAKER_DUMMY.
func (vm *VM) CreatePIT2(flags uint32) error {
	c := pitConfig{flags: flags}
	return write(&vm.fd, "KVM_CREATE_PIT2", 0x77, &c)
}

// IRQChip fills c with the state of the controller c.ChipID (KVM_IRQCHIP_…).
func (vm *VM) IRQChip(c *IRQChip) error { return exchange(&vm.fd, "KVM_GET_IRQCHIP", 0x62, c) }

// SetIRQChip sets the state of the controller c.ChipID.
func (vm *VM) SetIRQChip(c *IRQChip) error {
	return read(&vm.fd, "KVM_SET_IRQCHIP", 0x63, c) // _IOR in linux/kvm.h
}

// PIT fills s with the state of the i8254.
func (vm *VM) PIT(s *PITState) error { return read(&vm.fd, "KVM_GET_PIT2", 0x9f, s) }

// SetPIT sets the state of the i8254.
func (vm *VM) SetPIT(s *PITState) error { return write(&vm.fd, "KVM_SET_PIT2", 0xa0, s) }

// SetPITReinject says whether timer ticks that the guest missed are made up for.
func (vm *VM) SetPITReinject(on bool) error {
	var c [32]byte // struct kvm_reinject_control
	if on {
		c[0] = 1
	}
	_, err := vm.fd.buffer("KVM_REINJECT_CONTROL", io(0x71), c[:])
	return err
}

// Clock fills c with the guest's kvmclock.
func (vm *VM) Clock(c *ClockData) error { return read(&vm.fd, "KVM_GET_CLOCK", 0x7c, c) }

// SetClock sets the guest's kvmclock to c.Clock nanoseconds; c.Flags must be
// among those that KVM_CAP_ADJUST_CLOCK allows to set.
func (vm *VM) SetClock(c *ClockData) error { return write(&vm.fd, "KVM_SET_CLOCK", 0x7b, c) }

// TSCKHz is the frequency that vCPUs made from now on start with; 0 as unknown.
func (vm *VM) TSCKHz() (int, error) { return vm.fd.do("KVM_GET_TSC_KHZ", io(0xa3), 0) }

// SetTSCKHz sets it (KVM_CAP_VM_TSC_CONTROL).
func (vm *VM) SetTSCKHz(kHz int) error {
	_, err := vm.fd.do("KVM_SET_TSC_KHZ", io(0xa2), uintptr(kHz))
	return err
}

// SetBootCPUID says which vCPU starts; by default 0. Before the first vCPU.
func (vm *VM) SetBootCPUID(id int) error {
	_, err := vm.fd.do("KVM_SET_BOOT_CPU_ID", io(0x78), uintptr(id))
	return err
}

// CreateVCPU makes the vCPU with the given APIC ID and maps its kvm_run.
func (vm *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := vm.fd.do("KVM_CREATE_VCPU", io(0x41), uintptr(id))
	if err != nil {
		return nil, fmt.Errorf("vCPU %d: %w", id, err)
	}
	unix.CloseOnExec(fd)
	run, err := unix.Mmap(fd, 0, vm.runBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("vCPU %d: map kvm_run of %d bytes: %w", id, vm.runBytes, err)
	}
	c := &VCPU{run: run, immediate: word32(run)}
	c.fd.v.Store(int32(fd))
	return c, nil
}
