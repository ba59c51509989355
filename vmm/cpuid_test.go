package vmm

import (
	"testing"

	"github.com/peervisor/peervisor/kvm"
)

func find(t *testing.T, entries []kvm.CPUIDEntry, function, index uint32) kvm.CPUIDEntry {
	t.Helper()
	var found []kvm.CPUIDEntry
	for _, e := range entries {
		if e.Function == function && e.Index == index {
			found = append(found, e)
		}
	}
	if len(found) != 1 {
		t.Fatalf("leaf %#x.%d is there %d times", function, index, len(found))
	}
	return found[0]
}

func TestCPUIDOfAnIntelHost(t *testing.T) {
	const sig = kvm.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
	host := []kvm.CPUIDEntry{
		{Function: 0, EAX: 0x1F, EBX: 0x756E_6547},
		{Function: 1, EBX: 0x0710_0800, EDX: cpuidEDXHTT | 1, ECX: 1},
		{Function: 4, Index: 0, Flags: sig, EAX: 0xFC00_4121},
		{Function: 4, Index: 3, Flags: sig, EAX: 0xFC3F_C163},
		{Function: 0xA, EAX: 0x0830_0805, EDX: 3},
		{Function: 0xB, Index: 0, Flags: sig, EAX: 1, EBX: 2},
		{Function: 0x1F, Index: 0, Flags: sig, EAX: 1, EBX: 2},
		{Function: cpuidKVM, EAX: cpuidKVMFeatures, EBX: 0x4B4D_564B},
		{Function: cpuidKVMFeatures, EAX: 0x0100_7EFB},
		{Function: 0x8000_0008, EAX: 0x3027},
	}
	got := guestCPUID(host, 2, 3, true)
	one := find(t, got, 1, 0)
	if one.EBX != 2<<24|4<<16|0x0800 || one.ECX != 1|cpuidECXHypervisor|cpuidECXX2APIC|cpuidECXTSCDeadline || one.EDX != cpuidEDXHTT|1 {
		t.Errorf("leaf 1: %#x", one)
	}
	if e := find(t, got, 4, 0); e.EAX>>26 != 3 || e.EAX>>14&0xFFF != 0 || e.EAX&0x3FFF != 0x0121 {
		t.Errorf("L1 cache: %#x", e.EAX)
	}
	if e := find(t, got, 4, 3); e.EAX>>26 != 3 || e.EAX>>14&0xFFF != 3 {
		t.Errorf("L3 cache: %#x", e.EAX)
	}
	if e := find(t, got, 0xA, 0); e.EAX != 0 || e.EDX != 0 {
		t.Errorf("performance counters: %#x", e)
	}
	for _, leaf := range []uint32{0xB, 0x1F} {
		smt, core, end := find(t, got, leaf, 0), find(t, got, leaf, 1), find(t, got, leaf, 2)
		if smt.EAX != 0 || smt.EBX != 1 || smt.ECX != 0x100 || core.EAX != 2 || core.EBX != 3 || core.ECX != 0x201 || end.EBX != 0 || end.ECX != 2 {
			t.Errorf("topology %#x: %#x %#x %#x", leaf, smt, core, end)
		}
		if smt.EDX != 2 || core.EDX != 2 || end.EDX != 2 {
			t.Errorf("APIC ID in %#x", leaf)
		}
	}
	if e := find(t, got, 0x8000_0008, 0); e.ECX != 0 {
		t.Errorf("AMD's core count on Intel: %#x", e.ECX)
	}
	if e := find(t, got, cpuidKVMFeatures, 0); e.EAX != 0x0100_7EFB {
		t.Errorf("KVM features %#x", e.EAX)
	}
}

func TestCPUIDOfAnAMDHost(t *testing.T) {
	host := []kvm.CPUIDEntry{
		{Function: 0, EAX: 0x10, EBX: cpuidEBXAMD},
		{Function: 1, EDX: cpuidEDXHTT},
		{Function: cpuidAMDVersion, ECX: 1<<22 | cpuidECXPerfCtr | cpuidECXCmpLegacy},
		{Function: cpuidAMDSizes, EAX: 0x3030, ECX: 0x7001},
		{Function: cpuidAMDCaches, Index: 0, EAX: 0x4121},
		{Function: cpuidAMDCaches, Index: 3, EAX: 0x4163},
		{Function: cpuidAMDTopology, EAX: 9, EBX: 0x0109, ECX: 0x100},
	}
	got := guestCPUID(host, 1, 2, false)
	if e := find(t, got, 1, 0); e.ECX&cpuidECXTSCDeadline != 0 || e.EDX&cpuidEDXHTT == 0 {
		t.Errorf("leaf 1: %#x", e)
	}
	if e := find(t, got, cpuidAMDVersion, 0); e.ECX != 1<<22|cpuidECXCmpLegacy {
		t.Errorf("version: %#x", e.ECX)
	}
	if e := find(t, got, cpuidAMDSizes, 0); e.ECX != 1<<12|1 || e.EAX != 0x3030 {
		t.Errorf("sizes: %#x", e)
	}
	if e := find(t, got, cpuidAMDCaches, 0); e.EAX != 0x121 {
		t.Errorf("L1: %#x", e.EAX)
	}
	if e := find(t, got, cpuidAMDCaches, 3); e.EAX != 0x4163 {
		t.Errorf("L3: %#x", e.EAX)
	}
	if e := find(t, got, cpuidAMDTopology, 0); e.EAX != 1 || e.EBX != 1 || e.ECX != 0 {
		t.Errorf("topology: %#x", e)
	}
	if e := find(t, got, cpuidKVM, 0); e.EAX != cpuidKVMFeatures || e.EBX != 0x4B4D_564B {
		t.Errorf("KVM's signature is missing: %#x", e)
	}
}

func TestCPUIDOfOneCPU(t *testing.T) {
	got := guestCPUID([]kvm.CPUIDEntry{{Function: 0, EAX: 0xB}, {Function: 1, EDX: cpuidEDXHTT}}, 0, 1, false)
	if e := find(t, got, 1, 0); e.EDX&cpuidEDXHTT != 0 || e.EBX>>16 != 1 {
		t.Errorf("leaf 1: %#x", e)
	}
	if e := find(t, got, 0xB, 1); e.EAX != 0 || e.EBX != 1 {
		t.Errorf("topology: %#x", e)
	}
}
