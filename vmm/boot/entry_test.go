package boot

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/peervisor/peervisor/memory"
)

// pvh.pandoc: ebx points to the start info; CR0.PE alone; flat 32-bit segments
// with a limit of 4 GiB; a TSS of 0x67; everything else clear.
func TestPVHEntryState(t *testing.T) {
	m := newMemory(t, 4<<20)
	e, err := Load(m, source(pvhKernel()), 0xE_0000)
	if err != nil {
		t.Fatal(err)
	}
	if e.RIP != testBase+16 || e.RBX != 0x6000 || e.RFLAGS != 2 || e.CR0 != 0x11 || e.CR3 != 0 || e.CR4 != 0 || e.EFER != 0 {
		t.Errorf("registers %+v", e)
	}
	if s := e.CS; s.Selector != 0x10 || s.Base != 0 || s.Limit != 0xFFFF_FFFF || s.Type != 0xB || !s.DB || s.Long || !s.Granular || !s.Present || s.System || s.DPL != 0 {
		t.Errorf("CS %+v", s)
	}
	for _, s := range []Segment{e.DS, e.ES, e.SS} {
		if s.Selector != 0x18 || s.Base != 0 || s.Limit != 0xFFFF_FFFF || s.Type != 3 || !s.DB || !s.Granular || !s.Present || s.System {
			t.Errorf("data segment %+v", s)
		}
	}
	if s := e.TR; s.Base != 0 || s.Limit != 0x67 || s.Type != 0xB || !s.System || !s.Present {
		t.Errorf("TR %+v", s)
	}
	want := []uint64{0, 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00008B0000000067, 0}
	checkGDT(t, m, e, want)
}

func checkGDT(t *testing.T, m *memory.Memory, e Entry, want []uint64) {
	t.Helper()
	if e.GDT != (Table{0x500, uint16(len(want)*8 - 1)}) {
		t.Errorf("GDT register %+v", e.GDT)
	}
	b := bytesAt(t, m, 0x500, len(want)*8)
	for i, w := range want {
		if got := binary.LittleEndian.Uint64(b[i*8:]); got != w {
			t.Errorf("GDT entry %d is %#x, want %#x", i, got, w)
		}
	}
}

// start_info.h, version 1.
func TestStartInfo(t *testing.T) {
	m := newMemory(t, 4<<30)
	initrd := []byte("070701 and more")
	e, err := Load(m, withInitrd(source(pvhKernel()), initrd), 0xE_1230)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	info := bytesAt(t, m, 0x6000, 56)
	if le.Uint32(info) != 0x336ec578 || le.Uint32(info[4:]) != 1 || le.Uint32(info[8:]) != 0 || le.Uint32(info[52:]) != 0 {
		t.Errorf("head of start info: % x", info)
	}
	if le.Uint32(info[12:]) != 1 || le.Uint64(info[16:]) != 0x6040 || le.Uint64(info[24:]) != 0x2_0000 || le.Uint64(info[32:]) != 0xE_1230 || le.Uint64(info[40:]) != 0x6100 {
		t.Errorf("pointers of start info: % x", info)
	}
	mod := bytesAt(t, m, 0x6040, 32)
	if le.Uint64(mod) != uint64(e.InitrdStart) || le.Uint64(mod[8:]) != uint64(len(initrd)) || le.Uint64(mod[16:]) != 0 || le.Uint64(mod[24:]) != 0 {
		t.Errorf("module list: % x", mod)
	}
	want := [][3]uint64{
		{0, 0x9FC00, 1}, {0x9FC00, 0x400, 2}, {0xE_0000, 0x2_0000, 2},
		{0x10_0000, 0xC000_0000 - 0x10_0000, 1}, {1 << 32, 1 << 30, 1},
	}
	if n := le.Uint32(info[48:]); n != uint32(len(want)) {
		t.Fatalf("memory map has %d entries, want %d", n, len(want))
	}
	entries := bytesAt(t, m, 0x6100, len(want)*24)
	for i, w := range want {
		b := entries[i*24:]
		if got := [3]uint64{le.Uint64(b), le.Uint64(b[8:]), uint64(le.Uint32(b[16:]))}; got != w {
			t.Errorf("memory map entry %d is %#x, want %#x", i, got, w)
		}
	}
}

// Without an initrd there is no module.
func TestStartInfoWithoutModule(t *testing.T) {
	m := newMemory(t, 4<<20)
	if _, err := Load(m, source(pvhKernel()), 0xE_0000); err != nil {
		t.Fatal(err)
	}
	if info := bytesAt(t, m, 0x6000, 24); !bytes.Equal(info[12:24], make([]byte, 12)) {
		t.Errorf("modules of start info: % x", info)
	}
}

// boot.rst, 64-bit boot protocol: long mode, paging, __BOOT_CS 0x10 and __BOOT_DS
// 0x18, interrupts off, rsi holds the address of boot_params.
func TestLinux64EntryState(t *testing.T) {
	m := newMemory(t, 4<<20)
	e, err := Load(m, source(linuxKernel()), 0xE_0000)
	if err != nil {
		t.Fatal(err)
	}
	if e.RIP != testBase || e.RSI != 0x7000 || e.RFLAGS != 2 || e.CR0 != 0x8000_0011 || e.CR3 != 0x9000 || e.CR4 != 0x20 || e.EFER != 0x500 {
		t.Errorf("registers %+v", e)
	}
	if s := e.CS; s.Selector != 0x10 || !s.Long || s.DB || s.Type != 0xB {
		t.Errorf("CS %+v", s)
	}
	if s := e.DS; s.Selector != 0x18 || s.Long || s.Type != 3 {
		t.Errorf("DS %+v", s)
	}
	checkGDT(t, m, e, []uint64{0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00008B0000000067, 0})
}

// The page tables map the first 4 GiB to themselves.
func TestPageTables(t *testing.T) {
	m := newMemory(t, 4<<20)
	e, err := Load(m, source(linuxKernel()), 0xE_0000)
	if err != nil {
		t.Fatal(err)
	}
	entry := func(table uint64, i uint64) uint64 {
		return binary.LittleEndian.Uint64(bytesAt(t, m, memory.Addr(table&^0xFFF+i*8), 8))
	}
	for _, v := range []uint64{0, testBase, 0x3FFF_FFFF, 0x4000_0000, 0xE000_0123, 0xFFFF_FFFF} {
		pml4 := entry(e.CR3, v>>39&0x1FF)
		pdpt := entry(pml4, v>>30&0x1FF)
		pd := entry(pdpt, v>>21&0x1FF)
		if pml4&3 != 3 || pdpt&3 != 3 || pd&0x83 != 0x83 || pd&^0x1F_FFFF|v&0x1F_FFFF != v {
			t.Errorf("%#x is mapped by %#x, %#x, %#x", v, pml4, pdpt, pd)
		}
	}
	if entry(e.CR3, 1) != 0 || entry(0xA000, 4) != 0 {
		t.Error("more than 4 GiB are mapped")
	}
}

// zero-page.rst and boot.rst: what a boot loader fills in, with and without the
// kernel's own setup header.
func TestBootParams(t *testing.T) {
	le := binary.LittleEndian
	initrd := []byte("070701 and more")
	for _, c := range []struct {
		name   string
		kernel []byte
	}{{"ELF", linuxKernel()}, {"bzImage", testBzImage(t, "gzip", linuxKernel())}} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory(t, 16<<20)
			e, err := Load(m, withInitrd(source(c.kernel), initrd), 0xE_1230)
			if err != nil {
				t.Fatal(err)
			}
			p := bytesAt(t, m, 0x7000, 4096)
			if le.Uint16(p[0x1FE:]) != 0xAA55 || string(p[0x202:0x206]) != "HdrS" || p[0x210] != 0xFF || p[0x211]&1 != 1 || p[0x1EF] != 0 {
				t.Errorf("setup header % x", p[0x1F1:0x214])
			}
			if le.Uint64(p[0x070:]) != 0xE_1230 || le.Uint32(p[0x228:]) != 0x2_0000 {
				t.Errorf("RSDP at %#x, command line at %#x", le.Uint64(p[0x070:]), le.Uint32(p[0x228:]))
			}
			if le.Uint32(p[0x218:]) != uint32(e.InitrdStart) || le.Uint32(p[0x21C:]) != uint32(len(initrd)) || e.InitrdStart == 0 {
				t.Errorf("initrd at %#x, %d bytes", le.Uint32(p[0x218:]), le.Uint32(p[0x21C:]))
			}
			want := [][3]uint64{{0, 0x9FC00, 1}, {0x9FC00, 0x400, 2}, {0xE_0000, 0x2_0000, 2}, {0x10_0000, 15 << 20, 1}}
			if int(p[0x1E8]) != len(want) {
				t.Fatalf("E820 has %d entries, want %d", p[0x1E8], len(want))
			}
			for i, w := range want {
				b := p[0x2D0+20*i:]
				if got := [3]uint64{le.Uint64(b), le.Uint64(b[8:]), uint64(le.Uint32(b[16:]))}; got != w {
					t.Errorf("E820 entry %d is %#x, want %#x", i, got, w)
				}
			}
		})
	}
}

// The header that is copied ends where its jump says and never reaches what
// follows it in boot_params.
func TestSetupHeaderLength(t *testing.T) {
	for jump, want := range map[byte]int{0x6A: 0x26C - 0x1F1, 0xFF: 0x290 - 0x1F1} {
		bz := testBzImage(t, "gzip", linuxKernel())
		bz[setup_jump] = jump
		k, err := openKernel(bytes.NewReader(bz), int64(len(bz)))
		if err != nil {
			t.Fatal(err)
		}
		if len(k.bz.header) != want {
			t.Errorf("jump %#x: %d bytes, want %d", jump, len(k.bz.header), want)
		}
		k.close()
	}
}
