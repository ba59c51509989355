package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/peervisor/peervisor/memory"
)

// Offsets in struct boot_params (Linux Documentation/x86/zero-page.rst and
// boot.rst), in their spelling.
const (
	acpi_rsdp_addr = 0x070
	e820_entries   = 0x1E8
	setup_sects    = 0x1F1 // the first byte of struct setup_header
	boot_flag      = 0x1FE
	setup_jump     = 0x201 // second byte of the jump: how long the header is
	header_magic   = 0x202
	boot_version   = 0x206
	type_of_loader = 0x210
	loadflags      = 0x211
	ramdisk_image  = 0x218
	ramdisk_size   = 0x21C
	cmd_line_ptr   = 0x228
	initrd_max     = 0x22C // initrd_addr_max
	xloadflags     = 0x236
	cmdline_size   = 0x238
	payload_offset = 0x248
	payload_length = 0x24C
	e820_table     = 0x2D0

	bootParamBytes   = 4096
	e820EntryBytes   = 20
	e820MaxEntries   = 128
	setupHeaderLimit = 0x290 // edd_mbr_sig_buffer follows

	bootFlag          = 0xAA55
	headerMagic       = "HdrS"
	loaderUndefined   = 0xFF
	loadedHigh        = 1 << 0
	xlfKernel64       = 1 << 0
	linuxBootProtocol = 0x020F
)

// What a kernel takes that comes without a setup header: the values that every
// x86-64 kernel's header has (COMMAND_LINE_SIZE is 2048 with the NUL).
const (
	defaultCmdlineMax   = 2047
	defaultInitrdMax    = 0x7FFF_FFFF
	pvhCmdlineMax       = int(cmdlineEnd-cmdlineAddr) - 1
	initrdBelow         = memory.HoleStart
	identityMappedBytes = 4 << 30
)

// putBootParams writes the zero page. header is the setup header of a bzImage,
// from setup_sects on; nil for a plain ELF.
func putBootParams(m *memory.Memory, header []byte, initrd span, rsdp memory.Addr) error {
	le := binary.LittleEndian
	p := make([]byte, bootParamBytes)
	if header == nil {
		le.PutUint16(p[boot_flag:], bootFlag)
		copy(p[header_magic:], headerMagic)
		le.PutUint16(p[boot_version:], linuxBootProtocol)
		le.PutUint32(p[initrd_max:], defaultInitrdMax)
		le.PutUint32(p[cmdline_size:], defaultCmdlineMax)
		p[loadflags] = loadedHigh
	} else {
		copy(p[setup_sects:setupHeaderLimit], header)
	}
	p[type_of_loader] = loaderUndefined
	le.PutUint64(p[acpi_rsdp_addr:], uint64(rsdp))
	le.PutUint32(p[cmd_line_ptr:], uint32(cmdlineAddr))
	le.PutUint32(p[ramdisk_image:], uint32(initrd.start))
	le.PutUint32(p[ramdisk_size:], uint32(initrd.end-initrd.start))
	entries := memoryMap(m)
	if len(entries) > e820MaxEntries {
		return fmt.Errorf("memory map of %d entries: at most %d are possible", len(entries), e820MaxEntries)
	}
	p[e820_entries] = byte(len(entries))
	for i, e := range entries {
		b := p[e820_table+i*e820EntryBytes:]
		le.PutUint64(b, uint64(e.start))
		le.PutUint64(b[8:], uint64(e.end-e.start))
		le.PutUint32(b[16:], uint32(e.kind))
	}
	return m.WriteAt(p, bootParamAddr)
}

// putPageTables maps the first 4 GiB to themselves, in pages of 2 MiB: one
// page-map level 4, one directory pointer table, four directories.
func putPageTables(m *memory.Memory) error {
	const (
		tables      = int(pageTableEnd-pageTableAddr) / memory.PageBytes // 6
		directories = identityMappedBytes >> 30
		entries     = memory.PageBytes / 8
		flags       = pagePresent | pageWritable
	)
	b := make([]byte, tables*memory.PageBytes)
	set := func(table, i int, v uint64) {
		binary.LittleEndian.PutUint64(b[table*memory.PageBytes+i*8:], v)
	}
	addr := func(table int) uint64 { return uint64(pageTableAddr) + uint64(table)*memory.PageBytes }
	set(0, 0, addr(1)|flags)
	for d := range directories {
		set(1, d, addr(2+d)|flags)
		for i := range entries {
			set(2+d, i, uint64(d)<<30|uint64(i)<<21|flags|pageLarge)
		}
	}
	return m.WriteAt(b, pageTableAddr)
}

// enterLinux64 is the state of boot.rst, "64-bit Boot Protocol".
func enterLinux64(m *memory.Memory, rip uint64) (Entry, error) {
	e := Entry{
		Protocol: Linux64,
		RIP:      rip, RSI: uint64(bootParamAddr), RFLAGS: rflagsFixed,
		CR0: CR0_PE | CR0_ET | CR0_PG, CR3: uint64(pageTableAddr), CR4: CR4_PAE, EFER: EFER_LME | EFER_LMA,
	}
	if err := putPageTables(m); err != nil {
		return e, err
	}
	return e, e.setSegments(m, true)
}
