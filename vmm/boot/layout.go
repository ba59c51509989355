package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/peervisor/peervisor/memory"
)

// Where the loader puts things in the first MiB (docs/machine-v1.md).
const (
	gdtAddr       memory.Addr = 0x500
	startInfoAddr memory.Addr = 0x6000
	modListAddr   memory.Addr = 0x6040
	memMapAddr    memory.Addr = 0x6100
	bootParamAddr memory.Addr = 0x7000
	pageTableAddr memory.Addr = 0x9000
	pageTableEnd  memory.Addr = 0xF000
	cmdlineAddr   memory.Addr = 0x2_0000
	cmdlineEnd    memory.Addr = 0x3_0000
	lowRAMEnd     memory.Addr = 0x9_FC00
	firmwareStart memory.Addr = 0xE_0000
	highRAMStart  memory.Addr = 0x10_0000
)

// reserved are the ranges of the first MiB that no segment of a kernel may
// touch.
var reserved = [...]struct {
	start, end memory.Addr
	what       string
}{
	{0, pageTableEnd, "the loader's tables"},
	{cmdlineAddr, cmdlineEnd, "the command line"},
	{lowRAMEnd, highRAMStart, "the firmware area"},
}

// span is a range of guest-physical addresses.
type span struct{ start, end memory.Addr }

func (s span) overlaps(o span) bool { return s.start < o.end && o.start < s.end }

func (s span) String() string { return fmt.Sprintf("%#x..%#x", uint64(s.start), uint64(s.end)-1) }

// ramType is a kind of memory, the same numbers in E820 and in hvm_start_info.
type ramType uint32

const (
	ramUsable   ramType = 1 // E820_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RAM
	ramReserved ramType = 2
)

// mapEntry is one line of the memory map.
type mapEntry struct {
	span
	kind ramType
}

// lowRAM is the length of the RAM that starts at address 0. The machine has at
// least the first 2 MiB there.
func lowRAM(m *memory.Memory) (memory.Addr, error) {
	const atLeast = 2 << 20
	for _, s := range m.Slots() {
		if s.Start == 0 && s.LenBytes >= atLeast {
			return memory.Addr(s.LenBytes), nil
		}
	}
	return 0, fmt.Errorf("guest memory of %d bytes: a kernel needs at least %d at address 0", m.SizeBytes(), atLeast)
}

// memoryMap is what the guest is told of its memory.
func memoryMap(m *memory.Memory) []mapEntry {
	out := []mapEntry{
		{span{0, lowRAMEnd}, ramUsable},
		{span{lowRAMEnd, 0xA_0000}, ramReserved},
		{span{firmwareStart, highRAMStart}, ramReserved},
	}
	for _, s := range m.Slots() {
		r := span{max(s.Start, highRAMStart), s.Start + memory.Addr(s.LenBytes)}
		if r.start < r.end {
			out = append(out, mapEntry{r, ramUsable})
		}
	}
	return out
}

// putCmdline writes the command line with its NUL. maxBytes is the most that
// the kernel takes, without the NUL.
func putCmdline(m *memory.Memory, cmdline string, maxBytes int) error {
	maxBytes = min(maxBytes, int(cmdlineEnd-cmdlineAddr)-1)
	if len(cmdline) > maxBytes {
		return fmt.Errorf("kernel command line of %d bytes: this kernel takes at most %d", len(cmdline), maxBytes)
	}
	b := make([]byte, 0, len(cmdline)+1)
	for i := range len(cmdline) {
		if cmdline[i] == 0 {
			return fmt.Errorf("kernel command line: it has a NUL byte at offset %d", i)
		}
	}
	return m.WriteAt(append(append(b, cmdline...), 0), cmdlineAddr)
}

// Selectors of the descriptor table that both protocols start with. Linux wants
// its __BOOT_CS and __BOOT_DS to be these.
const (
	selectorCode = 0x10
	selectorData = 0x18
	selectorTSS  = 0x20
)

// Segment types (Intel SDM volume 3, 3.4.5.1 and 3.5).
const (
	typeCode = 0xB // execute, read, accessed
	typeData = 0x3 // read, write, accessed
	typeTSS  = 0xB // 32- or 64-bit TSS, busy
)

func flat(selector uint16, kind uint8, long bool) Segment {
	return Segment{
		Selector: selector, Limit: 0xFFFF_FFFF, Type: kind,
		Present: true, DB: !long, Long: long, Granular: true,
	}
}

// setSegments fills in flat segments and writes a descriptor table that has
// them, so that a kernel that reloads a selector finds the same.
func (e *Entry) setSegments(m *memory.Memory, long bool) error {
	e.CS = flat(selectorCode, typeCode, long)
	data := flat(selectorData, typeData, false)
	e.DS, e.ES, e.FS, e.GS, e.SS = data, data, data, data, data
	e.TR = Segment{Selector: selectorTSS, Limit: 0x67, Type: typeTSS, Present: true, System: true}

	table := make([]byte, 6*8) // two null descriptors, code, data, a TSS of two
	for i, s := range []Segment{e.CS, data, e.TR} {
		binary.LittleEndian.PutUint64(table[selectorCode+8*i:], s.descriptor())
	}
	e.GDT = Table{Base: gdtAddr, Limit: uint16(len(table) - 1)}
	return m.WriteAt(table, gdtAddr)
}

// descriptor encodes the segment, whose base is 0, as a GDT entry (Intel SDM
// volume 3, figure 3-8).
func (s Segment) descriptor() uint64 {
	bit := func(b bool, n uint) uint64 {
		if b {
			return 1 << n
		}
		return 0
	}
	limit := uint64(s.Limit)
	if s.Granular {
		limit >>= 12
	}
	return limit&0xFFFF | limit>>16<<48 |
		uint64(s.Type)<<40 | bit(!s.System, 44) | uint64(s.DPL)<<45 | bit(s.Present, 47) |
		bit(s.Long, 53) | bit(s.DB, 54) | bit(s.Granular, 55)
}

// Bits of the control registers and EFER (Intel SDM volume 3, 2.5 and 2.2.1),
// and of page table entries (4.5).
const (
	CR0_PE   = 1 << 0
	CR0_ET   = 1 << 4
	CR0_PG   = 1 << 31
	CR4_PAE  = 1 << 5
	EFER_LME = 1 << 8
	EFER_LMA = 1 << 10

	rflagsFixed = 1 << 1 // bit 1 is always 1

	pagePresent  = 1 << 0
	pageWritable = 1 << 1
	pageLarge    = 1 << 7
)
