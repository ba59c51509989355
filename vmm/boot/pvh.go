package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/peervisor/peervisor/memory"
)

// hvm_start_info, version 1 (Xen, public/arch-x86/hvm/start_info.h).
const (
	XEN_HVM_START_MAGIC_VALUE = 0x336ec578

	startInfoBytes   = 56
	startInfoVersion = 1
	modListBytes     = 32
	memMapEntryBytes = 24
)

// putStartInfo writes the start info, the module list and the memory map.
func putStartInfo(m *memory.Memory, initrd span, rsdp memory.Addr) error {
	le := binary.LittleEndian
	entries := memoryMap(m)
	if most := int(bootParamAddr-memMapAddr) / memMapEntryBytes; len(entries) > most {
		return fmt.Errorf("memory map of %d entries: at most %d are possible", len(entries), most)
	}
	var memMap []byte
	for _, e := range entries {
		memMap = le.AppendUint64(memMap, uint64(e.start))
		memMap = le.AppendUint64(memMap, uint64(e.end-e.start))
		memMap = le.AppendUint32(memMap, uint32(e.kind))
		memMap = le.AppendUint32(memMap, 0)
	}
	info := make([]byte, startInfoBytes)
	le.PutUint32(info[0:], XEN_HVM_START_MAGIC_VALUE)
	le.PutUint32(info[4:], startInfoVersion)
	le.PutUint64(info[24:], uint64(cmdlineAddr))
	le.PutUint64(info[32:], uint64(rsdp))
	le.PutUint64(info[40:], uint64(memMapAddr))
	le.PutUint32(info[48:], uint32(len(entries)))
	if initrd.end > initrd.start {
		le.PutUint32(info[12:], 1)
		le.PutUint64(info[16:], uint64(modListAddr))
		mod := make([]byte, modListBytes) // the module has no command line
		le.PutUint64(mod[0:], uint64(initrd.start))
		le.PutUint64(mod[8:], uint64(initrd.end-initrd.start))
		if err := m.WriteAt(mod, modListAddr); err != nil {
			return err
		}
	}
	if err := m.WriteAt(memMap, memMapAddr); err != nil {
		return err
	}
	return m.WriteAt(info, startInfoAddr)
}

// enterPVH is the state of Xen docs/misc/pvh.pandoc: 32-bit protected mode with
// flat segments, no paging.
func enterPVH(m *memory.Memory, rip uint64) (Entry, error) {
	e := Entry{
		Protocol: PVH,
		RIP:      rip, RBX: uint64(startInfoAddr), RFLAGS: rflagsFixed,
		CR0: CR0_PE | CR0_ET,
	}
	return e, e.setSegments(m, false)
}
