package vmm

import (
	"math/bits"

	"github.com/peervisor/peervisor/kvm"
)

// CPUID functions (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E) and
// KVM's own (Documentation/virt/kvm/x86/cpuid.rst).
const (
	cpuidVersion     = 0x1
	cpuidCaches      = 0x4
	cpuidPMU         = 0xA
	cpuidTopology    = 0xB
	cpuidTopologyV2  = 0x1F
	cpuidKVM         = 0x4000_0000
	cpuidKVMFeatures = 0x4000_0001
	cpuidAMDVersion  = 0x8000_0001
	cpuidAMDSizes    = 0x8000_0008
	cpuidAMDCaches   = 0x8000_001D
	cpuidAMDTopology = 0x8000_001E
	cpuidAMDPerfMon  = 0x8000_0022

	// Leaf 0: the first four letters of the vendor.
	cpuidEBXAMD   = 0x6874_7541 // "Auth"
	cpuidEBXHygon = 0x6F67_7948 // "Hygo"

	// Leaf 1.
	cpuidECXX2APIC      = 1 << 21
	cpuidECXTSCDeadline = 1 << 24
	cpuidECXHypervisor  = 1 << 31
	cpuidEDXHTT         = 1 << 28

	// Leaf 0x80000001 ECX.
	cpuidECXCmpLegacy = 1 << 1
	cpuidECXPerfCtr   = 1<<23 | 1<<24 | 1<<28 // core, northbridge and L3 counters

	topologySMT  = 1 // level types of leaf 0xB
	topologyCore = 2
)

// guestCPUID makes what vCPU id of cpus sees out of what KVM supports: one
// package of single-threaded cores with APIC IDs 0 to cpus-1, no performance
// counters, KVM's leaves with kvmclock.
func guestCPUID(supported []kvm.CPUIDEntry, id, cpus int, tscDeadline bool) []kvm.CPUIDEntry {
	out := make([]kvm.CPUIDEntry, 0, len(supported)+6)
	apicID, coreBits := uint32(id), uint32(bits.Len(uint(cpus-1)))
	var maxBasic uint32
	var amd, haveKVM bool
	for _, e := range supported {
		switch e.Function {
		case 0:
			maxBasic = e.EAX
			amd = e.EBX == cpuidEBXAMD || e.EBX == cpuidEBXHygon
		case cpuidVersion:
			tuneVersion(&e, apicID, coreBits, tscDeadline)
		case cpuidCaches:
			// EAX 31..26: core IDs in the package; 25..14: IDs that share the cache.
			e.EAX = e.EAX&^(0x3F<<26|0xFFF<<14) | min(uint32(1)<<coreBits-1, 0x3F)<<26
			if level := e.EAX >> 5 & 7; level >= 3 {
				e.EAX |= (1<<coreBits - 1) << 14
			}
		case cpuidTopology, cpuidTopologyV2:
			continue // written below
		case cpuidPMU, cpuidAMDPerfMon:
			e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0
		case cpuidKVM:
			haveKVM = true
			e.EAX = max(e.EAX, cpuidKVMFeatures)
		default:
			if amd {
				tuneAMD(&e, apicID, coreBits, cpus)
			}
		}
		out = append(out, e)
	}
	if maxBasic >= cpuidTopology {
		out = append(out, topology(cpuidTopology, apicID, coreBits, cpus)...)
	}
	if maxBasic >= cpuidTopologyV2 {
		out = append(out, topology(cpuidTopologyV2, apicID, coreBits, cpus)...)
	}
	if !haveKVM {
		out = append(out, kvm.CPUIDEntry{Function: cpuidKVM, EAX: cpuidKVMFeatures, EBX: 0x4B4D_564B, ECX: 0x564B_4D56, EDX: 0x4D}) // "KVMKVMKVM"
	}
	return out
}

func tuneVersion(e *kvm.CPUIDEntry, apicID, coreBits uint32, tscDeadline bool) {
	e.EBX = e.EBX&0xFFFF | apicID<<24 | min(uint32(1)<<coreBits, 0xFF)<<16
	e.ECX |= cpuidECXHypervisor | cpuidECXX2APIC
	if tscDeadline {
		e.ECX |= cpuidECXTSCDeadline
	}
	e.EDX &^= cpuidEDXHTT
	if coreBits > 0 {
		e.EDX |= cpuidEDXHTT // says that EBX 23..16 counts
	}
}

func tuneAMD(e *kvm.CPUIDEntry, apicID, coreBits uint32, cpus int) {
	switch e.Function {
	case cpuidAMDVersion:
		e.ECX &^= cpuidECXCmpLegacy | cpuidECXPerfCtr
		if cpus > 1 {
			e.ECX |= cpuidECXCmpLegacy
		}
	case cpuidAMDSizes:
		e.ECX = e.ECX&^0xF0FF | coreBits<<12 | uint32(cpus-1)&0xFF
	case cpuidAMDCaches:
		e.EAX &^= 0xFFF << 14
		if level := e.EAX >> 5 & 7; level >= 3 {
			e.EAX |= uint32(cpus-1) & 0xFFF << 14
		}
	case cpuidAMDTopology:
		e.EAX, e.EBX, e.ECX = apicID, apicID&0xFF, 0
	}
}

// topology is leaf 0xB or 0x1F: a level of threads, one of cores, and the end.
func topology(function, apicID, coreBits uint32, cpus int) []kvm.CPUIDEntry {
	const flags = kvm.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
	return []kvm.CPUIDEntry{
		{Function: function, Index: 0, Flags: flags, EAX: 0, EBX: 1, ECX: 0 | topologySMT<<8, EDX: apicID},
		{Function: function, Index: 1, Flags: flags, EAX: coreBits, EBX: uint32(cpus), ECX: 1 | topologyCore<<8, EDX: apicID},
		{Function: function, Index: 2, Flags: flags, ECX: 2, EDX: apicID},
	}
}
