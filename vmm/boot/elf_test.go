package boot

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
)

func TestELFRefused(t *testing.T) {
	le := binary.LittleEndian
	code := bytes.Repeat([]byte{0x90}, 100)
	load := testSegment{kind: PT_LOAD, addr: testBase, content: code}
	edited := func(edit func(b []byte)) []byte {
		b := testELF(testBase, load)
		edit(b)
		return b
	}
	const ph = elfHeaderBytes
	for _, c := range []struct {
		name   string
		kernel []byte
		want   string
	}{
		{"32 bit", edited(func(b []byte) { b[4] = 1 }), "class 1 and byte order 1: want 64 bit (2)"},
		{"big-endian", edited(func(b []byte) { b[5] = 2 }), "byte order 2"},
		{"arm64", edited(func(b []byte) { le.PutUint16(b[18:], 183) }), "for machine 183: want x86-64 (62)"},
		{"shared object", edited(func(b []byte) { le.PutUint16(b[16:], 3) }), "of type 3: want an executable (2)"},
		{"header size", edited(func(b []byte) { le.PutUint16(b[54:], 32) }), "program headers of 32 bytes: want 56"},
		{"no headers", edited(func(b []byte) { le.PutUint16(b[56:], 0) }), "with 0 program headers"},
		{"many headers", edited(func(b []byte) { le.PutUint16(b[56:], 0xFFFF) }), "with 65535 program headers: want 1 to 128"},
		{"headers beyond the file", edited(func(b []byte) { le.PutUint64(b[32:], 1<<63) }), "end beyond the file of 220 bytes"},
		{"content beyond the file", edited(func(b []byte) { le.PutUint64(b[ph+8:], 200) }), "ELF segment 0 at 0xc8, 100 bytes, ends beyond the file of 220 bytes"},
		{"huge offset", edited(func(b []byte) { le.PutUint64(b[ph+8:], 1<<64-1) }), "ends beyond the file"},
		{"huge file size", edited(func(b []byte) { le.PutUint64(b[ph+32:], 1<<64-1) }), "ends beyond the file"},
		{"more file than memory", edited(func(b []byte) { le.PutUint64(b[ph+40:], 99) }), "has 100 bytes in the file but 99 in memory"},
		{"wraps", edited(func(b []byte) { le.PutUint64(b[ph+24:], 1<<64-50) }), "wraps around the address space"},
		{"nothing to load", testELF(testBase, testSegment{kind: PT_NOTE, content: pvhNote(testBase)}), "without a segment to load"},
		{"only an empty segment", testELF(testBase, testSegment{kind: PT_LOAD, addr: testBase}), "without a segment to load"},
		{"beyond RAM", testELF(testBase, testSegment{kind: PT_LOAD, addr: 4<<20 - 50, content: code}), "needs more or other memory than the guest's 4194304 bytes"},
		{"bss beyond RAM", testELF(testBase, testSegment{kind: PT_LOAD, addr: testBase, content: code, size: 4 << 20}), "needs more or other memory"},
		{"on the tables", testELF(0x7000, testSegment{kind: PT_LOAD, addr: 0x7000, content: code}), "ELF segment 0 at 0x7000..0x7063 overlaps the loader's tables at 0x0..0xefff"},
		{"on the command line", testELF(0x1_0000, testSegment{kind: PT_LOAD, addr: 0x1_0000, content: code, size: 0x1_0001}), "overlaps the command line"},
		{"on the firmware", testELF(0x9_0000, testSegment{kind: PT_LOAD, addr: 0x9_0000, content: code, size: 0x7_0001}), "overlaps the firmware area"},
		{"overlap", testELF(testBase, load, testSegment{kind: PT_LOAD, addr: testBase + 99, content: code}), "ELF segments 0 and 1 overlap in memory at 0x100063"},
		{"entry outside", testELF(testBase+100, load), "no PVH note, and the entry point 0x100064 is in no loaded segment"},
		{"PVH entry outside", testELF(testBase, load, testSegment{kind: PT_NOTE, content: pvhNote(1)}), "PVH: the entry point 0x1 is in no loaded segment"},
		{"PVH entry above 4 GiB", testELF(testBase, load, testSegment{kind: PT_NOTE, content: pvhNote(testBase | 1<<32)}), "in no loaded segment below 4 GiB"},
		{"PVH note of 5 bytes", testELF(testBase, load, testSegment{kind: PT_NOTE, content: testNote("Xen", 18, make([]byte, 5))}), "the PVH entry note has 5 bytes: want 4 or 8"},
		{"note beyond its segment", testELF(testBase, load, testSegment{kind: PT_NOTE, content: pvhNote(testBase)[:20]}), "ends beyond its segment"},
		{"huge note segment", testELF(testBase, load, testSegment{kind: PT_NOTE, content: make([]byte, 1<<20+1)}), "at most 1048576 are possible"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Load(newMemory(t, 4<<20), source(c.kernel), 0xE_0000)
			wantError(t, err, c.want)
		})
	}
}

// Every prefix of a kernel is refused, and none crashes the loader.
func TestELFTruncated(t *testing.T) {
	m := newMemory(t, 4<<20)
	kernel := pvhKernel()
	for n := range kernel {
		if _, err := Load(m, source(kernel[:n]), 0xE_0000); err == nil {
			t.Fatalf("%d of %d bytes were loaded", n, len(kernel))
		}
	}
}

func TestNotes(t *testing.T) {
	entry4 := binary.LittleEndian.AppendUint32(nil, testBase+4)
	for _, c := range []struct {
		name  string
		notes []byte
		want  elfFile
	}{
		{"8 bytes", pvhNote(testBase + 8), elfFile{pvh: true, pvhRIP: testBase + 8}},
		{"4 bytes", testNote("Xen", 18, entry4), elfFile{pvh: true, pvhRIP: testBase + 4}},
		{"other Xen note", testNote("Xen", 1, entry4), elfFile{}},
		{"other owner", testNote("GNU", 18, entry4), elfFile{}},
		{"Linux", testNote("Linux", 0x100, []byte{1, 2, 3}), elfFile{linux: true}},
		{"several", bytes.Join([][]byte{testNote("GNU", 3, make([]byte, 20)), testNote("Linux", 0x101, nil), pvhNote(testBase)}, nil), elfFile{linux: true, pvh: true, pvhRIP: testBase}},
		{"last not padded", pvhNote(0)[:12+4+8], elfFile{pvh: true}},
		{"a rest too short for a note", append(pvhNote(7), 1, 2, 3), elfFile{pvh: true, pvhRIP: 7}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var f elfFile
			if err := f.parseNotes(c.notes); err != nil {
				t.Fatal(err)
			}
			if f.linux != c.want.linux || f.pvh != c.want.pvh || f.pvhRIP != c.want.pvhRIP {
				t.Errorf("got %+v, want %+v", f, c.want)
			}
		})
	}
}

// A note inside a loaded segment, as Linux has it, is found in a file and in a stream.
func TestNoteInsideSegment(t *testing.T) {
	content := append(bytes.Repeat([]byte{0x90}, 4096), pvhNote(testBase+32)...)
	kernel := testELF(testBase,
		testSegment{kind: PT_LOAD, addr: testBase, content: content},
		testSegment{kind: PT_NOTE, content: nil})
	le := binary.LittleEndian
	ph := kernel[elfHeaderBytes+elfSegmentBytes:]
	le.PutUint64(ph[8:], le.Uint64(kernel[elfHeaderBytes+8:])+4096)
	le.PutUint64(ph[32:], uint64(len(content)-4096))
	for _, k := range [][]byte{kernel, testBzImage(t, "gzip", kernel)} {
		e, err := Load(newMemory(t, 4<<20), source(k), 0xE_0000)
		if err != nil || e.RIP != testBase+32 {
			t.Errorf("entry %#x, %v", e.RIP, err)
		}
	}
}

// Segments in a stream come in the order of the file, whatever the order of the table.
func TestStreamOrder(t *testing.T) {
	a, b := bytes.Repeat([]byte{1}, 70_000), bytes.Repeat([]byte{2}, 70_000)
	kernel := testELF(testBase,
		testSegment{kind: PT_LOAD, addr: testBase, content: a},
		testSegment{kind: PT_LOAD, addr: testBase + 0x2_0000, content: b},
		testSegment{kind: PT_NOTE, content: pvhNote(testBase)})
	first := make([]byte, elfSegmentBytes)
	table := kernel[elfHeaderBytes:]
	copy(first, table)
	copy(table, table[elfSegmentBytes:2*elfSegmentBytes])
	copy(table[elfSegmentBytes:], first)
	m := newMemory(t, 4<<20)
	if _, err := Load(m, source(testBzImage(t, "lz4", kernel)), 0xE_0000); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytesAt(t, m, testBase, len(a)), a) || !bytes.Equal(bytesAt(t, m, testBase+0x2_0000, len(b)), b) {
		t.Error("the segments' bytes are mixed up")
	}
}

func TestUnpackELF(t *testing.T) {
	kernel := pvhKernel()
	r, format, err := Unpack(bytes.NewReader(kernel), int64(len(kernel)))
	if err != nil || format != "elf" {
		t.Fatalf("format %q, %v", format, err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, kernel) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func FuzzELF(f *testing.F) {
	f.Add(pvhKernel())
	f.Add(linuxKernel())
	f.Add(testELF(testBase, testSegment{kind: PT_LOAD, addr: 0x9000, content: []byte{1}, size: 1 << 40}))
	f.Add([]byte(elfMagic))
	m := newMemory(f, 4<<20)
	f.Fuzz(func(t *testing.T, kernel []byte) {
		e, err := Load(m, withInitrd(source(kernel), []byte("070701")), 0xE_0000)
		if err == nil && (e.RIP >= 4<<20 || e.KernelEnd > 4<<20) {
			t.Errorf("entry %#x, end %#x are not in RAM", e.RIP, e.KernelEnd)
		}
	})
}

func FuzzNotes(f *testing.F) {
	f.Add(pvhNote(testBase))
	f.Add(testNote("Linux", 0x100, []byte{1, 2, 3}))
	f.Add(append(testNote("GNU", 3, make([]byte, 20)), pvhNote(1)...))
	f.Add(bytes.Repeat([]byte{0xFF}, 24))
	f.Fuzz(func(t *testing.T, notes []byte) {
		var e elfFile
		_ = e.parseNotes(notes)
	})
}
