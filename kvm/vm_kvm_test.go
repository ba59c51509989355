package kvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/internal/testenv"
)

func openSystem(t *testing.T) *System {
	t.Helper()
	testenv.NeedKVM(t)
	s, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

const (
	testRAMBytes = 64 << 10
	codeAt       = 0x1000
)

// tiny is a VM of one vCPU that starts in real mode at codeAt.
func tiny(t *testing.T, irqchip bool, code ...byte) (*VM, *VCPU, []byte) {
	t.Helper()
	s := openSystem(t)
	vm, err := s.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	ram, err := unix.Mmap(-1, 0, testRAMBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(ram) })
	t.Cleanup(func() { _ = vm.Close() })
	copy(ram[codeAt:], code)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(vm.SetTSSAddr(0xFFFB_D000))
	must(vm.SetIdentityMapAddr(0xFFFB_C000))
	if irqchip {
		must(vm.CreateIRQChip())
		must(vm.CreatePIT2(KVM_PIT_SPEAKER_DUMMY))
	}
	must(vm.SetMemoryRegion(0, KVM_MEM_LOG_DIRTY_PAGES, 0, testRAMBytes, uintptr(unsafe.Pointer(&ram[0]))))
	c, err := vm.CreateVCPU(0)
	must(err)
	t.Cleanup(func() { _ = c.Close() })
	cpuid, err := s.SupportedCPUID()
	must(err)
	must(c.SetCPUID(cpuid))
	var sr Sregs
	must(c.Sregs(&sr))
	sr.CS.Base, sr.CS.Selector = 0, 0
	must(c.SetSregs(&sr))
	must(c.SetRegs(&Regs{RIP: codeAt, RFLAGS: 2}))
	return vm, c, ram
}

func runUntil(t *testing.T, c *VCPU, want ExitReason) {
	t.Helper()
	for range 1000 {
		r, errno := c.Run()
		switch {
		case errno == syscall.EINTR || errno == syscall.EAGAIN:
		case errno != 0:
			t.Fatalf("KVM_RUN: %v", errno)
		case r != want:
			t.Fatalf("exit %v, expected %v; %+v", r, want, c.InternalError())
		default:
			return
		}
	}
	t.Fatal("KVM_RUN does not get anywhere")
}

func TestRunPortAndMMIO(t *testing.T) {
	vm, c, ram := tiny(t, false,
		0xB0, 'x', // mov al, 'x'
		0xE6, 0x80, // out 0x80, al
		0xE4, 0x81, // in al, 0x81
		0xA2, 0x00, 0x20, // mov [0x2000], al
		0xB9, 0x00, 0xF0, // mov cx, 0xF000
		0x8E, 0xD9, // mov ds, cx
		0xA2, 0x34, 0x00, // mov [0x34], al: 0xF0034 is not RAM
		0xF4, // hlt
	)
	runUntil(t, c, KVM_EXIT_IO)
	if a := c.IO(); !a.Out || a.Port != 0x80 || a.Size != 1 || a.Count != 1 || !bytes.Equal(a.Data, []byte{'x'}) {
		t.Errorf("out: %+v", a)
	}
	runUntil(t, c, KVM_EXIT_IO)
	a := c.IO()
	if a.Out || a.Port != 0x81 || len(a.Data) != 1 {
		t.Fatalf("in: %+v", a)
	}
	a.Data[0] = 0x5A
	runUntil(t, c, KVM_EXIT_MMIO)
	if m := c.MMIO(); !m.Write || m.Addr != 0xF0034 || !bytes.Equal(m.Data, []byte{0x5A}) {
		t.Errorf("mmio: %+v", m)
	}
	runUntil(t, c, KVM_EXIT_HLT)
	if ram[0x2000] != 0x5A {
		t.Errorf("guest wrote %#x", ram[0x2000])
	}
	var log [1]uint64
	if err := vm.DirtyLog(0, log[:]); err != nil {
		t.Fatal(err)
	}
	if log[0]&(1<<2) == 0 {
		t.Errorf("page 2 is not in the dirty log %#x", log[0])
	}
}

func TestImmediateExit(t *testing.T) {
	_, c, _ := tiny(t, false, 0xEB, 0xFE) // jmp $
	c.SetImmediateExit(true)
	if _, errno := c.Run(); errno != syscall.EINTR {
		t.Fatalf("Run with immediate_exit: %v", errno)
	}
	c.SetImmediateExit(false)
	if c.run[1] != 0 {
		t.Error("immediate_exit is still set")
	}
}

func TestIOEventFD(t *testing.T) {
	vm, c, _ := tiny(t, false,
		0xB9, 0x00, 0xF0, 0x8E, 0xD9, // mov ds, 0xF000
		0xB8, 0x07, 0x00, // mov ax, 7
		0xA3, 0x50, 0x00, // mov [0x50], ax: the value that matches
		0x40,             // inc ax
		0xA3, 0x50, 0x00, // mov [0x50], ax: another value
		0xF4,
	)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	e := IOEvent{Addr: 0xF0050, LenBytes: 2, Match: true, Value: 7, FD: fd}
	if err := vm.AssignIOEvent(e); err != nil {
		t.Fatal(err)
	}
	if err := vm.AssignIOEvent(e); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("the same again: %v", err)
	}
	runUntil(t, c, KVM_EXIT_MMIO)
	if m := c.MMIO(); m.Addr != 0xF0050 || m.Data[0] != 8 {
		t.Errorf("the write that does not match: %+v", m)
	}
	var count [8]byte
	if _, err := unix.Read(fd, count[:]); err != nil || binary.LittleEndian.Uint64(count[:]) != 1 {
		t.Errorf("eventfd: %v, %v", count, err)
	}
	runUntil(t, c, KVM_EXIT_HLT)
	if err := vm.DeassignIOEvent(e); err != nil {
		t.Error(err)
	}
}

func TestRoutesAndIRQFD(t *testing.T) {
	vm, c, _ := tiny(t, true, 0xFB, 0xF4) // sti; hlt
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	// One whole entry is checked by the kernel: an MSI to APIC 0, vector 0x40.
	if err := vm.SetRoutes([]Route{{GSI: 4, Chip: KVM_IRQCHIP_IOAPIC, Pin: 4}, {GSI: 24, MSI: true, Addr: 0xFEE0_0000, Data: 0x40}}); err != nil {
		t.Fatal(err)
	}
	if err := vm.AssignIRQFD(fd, 24); err != nil {
		t.Fatal(err)
	}
	if err := vm.AssignIRQFD(fd, 24); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("the same again: %v", err)
	}
	var l LAPIC
	if err := c.LAPIC(&l); err != nil {
		t.Fatal(err)
	}
	l.Regs[0xF0], l.Regs[0xF1] = 0xFF, 1 // software enable, spurious vector 0xFF
	if err := c.SetLAPIC(&l); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	irr := func() bool {
		if err := c.LAPIC(&l); err != nil {
			t.Fatal(err)
		}
		return l.Regs[0x200+0x40/32*16]&1 != 0 // IRR bit 0x40
	}
	if !irr() {
		t.Error("the MSI did not arrive")
	}
	if d, err := vm.SignalMSI(0xFEE0_0000, 0x41); err != nil || !d {
		t.Errorf("SignalMSI: %v, %v", d, err)
	}
	if err := vm.SetIRQLine(4, true); err != nil {
		t.Error(err)
	}
	if err := vm.DeassignIRQFD(fd, 24); err != nil {
		t.Error(err)
	}
}

// Every piece of state that a saved machine needs can be read, and what was
// read can be written back.
func TestStateRoundTrip(t *testing.T) {
	vm, c, _ := tiny(t, true, 0xF4)
	s := openSystem(t)
	check := func(what string, get, set func() error) {
		t.Helper()
		if err := get(); err != nil {
			t.Errorf("%s: %v", what, err)
		} else if err := set(); err != nil {
			t.Errorf("%s back: %v", what, err)
		}
	}
	var regs Regs
	check("regs", func() error { return c.Regs(&regs) }, func() error { return c.SetRegs(&regs) })
	var sregs Sregs
	check("sregs", func() error { return c.Sregs(&sregs) }, func() error { return c.SetSregs(&sregs) })
	var sregs2 Sregs2
	check("sregs2", func() error { return c.Sregs2(&sregs2) }, func() error { return c.SetSregs2(&sregs2) })
	var fpu FPU
	check("fpu", func() error { return c.FPU(&fpu) }, func() error { return c.SetFPU(&fpu) })
	if fpu.FCW != 0x37F { // KVM leaves MXCSR out of this structure
		t.Errorf("FCW %#x after reset", fpu.FCW)
	}
	var lapic LAPIC
	check("lapic", func() error { return c.LAPIC(&lapic) }, func() error { return c.SetLAPIC(&lapic) })
	var events Events
	check("events", func() error { return c.Events(&events) }, func() error { return c.SetEvents(&events) })
	var dr DebugRegs
	check("debugregs", func() error { return c.DebugRegs(&dr) }, func() error { return c.SetDebugRegs(&dr) })
	var xcrs XCRs
	check("xcrs", func() error { return c.XCRs(&xcrs) }, func() error { return c.SetXCRs(&xcrs) })
	n, err := vm.XSaveBytes()
	if err != nil {
		t.Fatal(err)
	}
	xsave := make([]byte, n)
	check("xsave", func() error { return c.XSave(xsave) }, func() error { return c.SetXSave(xsave) })
	var mp uint32
	check("mp state", func() (err error) { mp, err = c.MPState(); return }, func() error { return c.SetMPState(mp) })
	for id := uint32(KVM_IRQCHIP_PIC_MASTER); id <= KVM_IRQCHIP_IOAPIC; id++ {
		chip := IRQChip{ChipID: id}
		check("irqchip", func() error { return vm.IRQChip(&chip) }, func() error { return vm.SetIRQChip(&chip) })
	}
	var pit PITState
	check("pit", func() error { return vm.PIT(&pit) }, func() error { return vm.SetPIT(&pit) })
	if err := vm.SetPITReinject(true); err != nil {
		t.Error(err)
	}
	var clock ClockData
	check("clock", func() error { return vm.Clock(&clock) }, func() error { clock.Flags = 0; return vm.SetClock(&clock) })
	indices, err := s.MSRIndexList()
	if err != nil || len(indices) == 0 {
		t.Fatalf("MSR list of %d: %v", len(indices), err)
	}
	readable := 0
	for _, i := range indices {
		m := []MSR{{Index: i}}
		if n, err := c.MSRs(m); err != nil {
			t.Errorf("MSR %#x: %v", i, err)
		} else if n == 1 {
			readable++
		}
	}
	t.Logf("%d of %d MSRs readable", readable, len(indices))
	if kHz, err := c.TSCKHz(); err != nil || kHz == 0 {
		t.Errorf("TSC of %d kHz: %v", kHz, err)
	}
	if cpuid, err := c.CPUID(); err != nil || len(cpuid) == 0 {
		t.Errorf("CPUID of %d entries: %v", len(cpuid), err)
	}
}

func TestCloseTwice(t *testing.T) {
	vm, c, _ := tiny(t, false, 0xF4)
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := vm.CreateIRQChip(); !errors.Is(err, syscall.EBADF) {
		t.Errorf("after Close: %v", err)
	}
}
