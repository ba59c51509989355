package kvm

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// Sizes of the kernel's structures, from linux/kvm.h and asm/kvm.h: they are
// part of the ioctl numbers.
func TestStructSizes(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"kvm_regs", unsafe.Sizeof(Regs{}), 144},
		{"kvm_sregs", unsafe.Sizeof(Sregs{}), 312},
		{"kvm_sregs2", unsafe.Sizeof(Sregs2{}), 320},
		{"kvm_segment", unsafe.Sizeof(Segment{}), 24},
		{"kvm_dtable", unsafe.Sizeof(Descriptor{}), 16},
		{"kvm_debugregs", unsafe.Sizeof(DebugRegs{}), 128},
		{"kvm_xcrs", unsafe.Sizeof(XCRs{}), 392},
		{"kvm_vcpu_events", unsafe.Sizeof(Events{}), 64},
		{"kvm_lapic_state", unsafe.Sizeof(LAPIC{}), 1024},
		{"kvm_fpu", unsafe.Sizeof(FPU{}), 416},
		{"kvm_irqchip", unsafe.Sizeof(IRQChip{}), 520},
		{"kvm_pit_state2", unsafe.Sizeof(PITState{}), 112},
		{"kvm_pit_config", unsafe.Sizeof(pitConfig{}), 64},
		{"kvm_clock_data", unsafe.Sizeof(ClockData{}), 48},
		{"kvm_translation", unsafe.Sizeof(Translation{}), 24},
		{"kvm_enable_cap", unsafe.Sizeof(enableCap{}), 104},
		{"kvm_userspace_memory_region", unsafe.Sizeof(memoryRegion{}), 32},
		{"kvm_dirty_log", unsafe.Sizeof(dirtyLog{}), 16},
		{"kvm_clear_dirty_log", unsafe.Sizeof(clearDirtyLog{}), 24},
		{"kvm_irqfd", unsafe.Sizeof(irqfd{}), 32},
		{"kvm_ioeventfd", unsafe.Sizeof(ioEventFD{}), 64},
		{"kvm_msi", unsafe.Sizeof(msi{}), 32},
	} {
		if c.got != c.want {
			t.Errorf("struct %s has %d bytes, the kernel's has %d", c.name, c.got, c.want)
		}
	}
}

// Numbers as strace prints them for other programs.
func TestIoctlNumbers(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"KVM_RUN", io(0x80), 0xae80},
		{"KVM_GET_REGS", ior(0x81, unsafe.Sizeof(Regs{})), 0x8090ae81},
		{"KVM_SET_USER_MEMORY_REGION", iow(0x46, unsafe.Sizeof(memoryRegion{})), 0x4020ae46},
		{"KVM_GET_SUPPORTED_CPUID", iowr(0x05, cpuidHeaderBytes), 0xc008ae05},
		{"KVM_IRQFD", iow(0x76, unsafe.Sizeof(irqfd{})), 0x4020ae76},
		{"KVM_IOEVENTFD", iow(0x79, unsafe.Sizeof(ioEventFD{})), 0x4040ae79},
		{"KVM_SET_GSI_ROUTING", iow(0x6a, routingHeaderBytes), 0x4008ae6a},
	} {
		if c.got != c.want {
			t.Errorf("%s is %#x, expected %#x", c.name, c.got, c.want)
		}
	}
}

func TestEncodeRoutes(t *testing.T) {
	b := encodeRoutes([]Route{
		{GSI: 5, Chip: KVM_IRQCHIP_IOAPIC, Pin: 5},
		{GSI: 24, MSI: true, Addr: 0x1_FEE0_1000, Data: 0x4041},
	})
	zero := func(n int) string { return strings.Repeat("00", n) }
	want := "02000000" + zero(4) +
		"05000000" + "01000000" + zero(8) + "02000000" + "05000000" + zero(24) +
		"18000000" + "02000000" + zero(8) + "0010e0fe" + "01000000" + "41400000" + zero(20)
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("routes are\n%s, expected\n%s", got, want)
	}
}

func TestEncodeIOEvent(t *testing.T) {
	e := IOEvent{Addr: 0x1000, LenBytes: 8, Match: true, Value: 1 << 40, FD: 3}
	k := e.encode(kvmIOEventFDFlagDeassign)
	if k.datamatch != 1<<40 || k.bytes != 8 || k.flags != kvmIOEventFDFlagDatamatch|kvmIOEventFDFlagDeassign || k.addr != 0x1000 || k.fd != 3 {
		t.Errorf("encoded as %+v", *k)
	}
	if k := (IOEvent{Port: true}).encode(0); k.flags != kvmIOEventFDFlagPIO {
		t.Errorf("port encoded as %+v", *k)
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenPath(filepath.Join(dir, "kvm")); !errors.Is(err, ErrNotPresent) || !errors.Is(err, syscall.ENOENT) {
		t.Errorf("missing device: %v", err)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := OpenPath(plain)
	if !errors.Is(err, syscall.ENOTTY) || strings.Contains(err.Error(), "\n") {
		t.Errorf("a plain file as device: %v", err)
	}
	if err := openError("/dev/kvm", syscall.EACCES); !errors.Is(err, ErrNotPermitted) || !strings.Contains(err.Error(), "group kvm") {
		t.Errorf("no permission: %v", err)
	}
}

func TestCallErrorHints(t *testing.T) {
	err := callError("KVM_CREATE_VM", syscall.EBUSY)
	if !errors.Is(err, syscall.EBUSY) || !strings.HasPrefix(err.Error(), "KVM_CREATE_VM: ") || !strings.Contains(err.Error(), "another hypervisor") {
		t.Errorf("got %v", err)
	}
}
