package boot

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/peervisor/peervisor/memory"
)

// ELF64 constants (ELF-64 Object File Format 1.5), and the notes looked for.
const (
	elfHeaderBytes  = 64
	elfSegmentBytes = 56 // Elf64_Phdr
	elfMagic        = "\x7fELF"

	ELFCLASS64  = 2
	ELFDATA2LSB = 1
	ET_EXEC     = 2
	EM_X86_64   = 62
	PT_LOAD     = 1
	PT_NOTE     = 4

	// XEN_ELFNOTE_PHYS32_ENTRY has the physical address of the PVH entry point, in
	// 4 or 8 bytes (Xen, public/elfnote.h).
	XEN_ELFNOTE_PHYS32_ENTRY = 18
)

// Bounds on what a kernel file may ask for.
const (
	maxSegments  = 128
	maxNoteBytes = 1 << 20
)

// segment is a checked program header.
type segment struct {
	index      int
	kind       uint32
	offset     uint64
	addr       memory.Addr // physical
	file, size uint64      // bytes in the file, bytes in memory
}

func (s *segment) span() span { return span{s.addr, s.addr + memory.Addr(s.size)} }

// image reads a kernel. Offsets that are asked for never decrease below the end
// of the last read, save for the head of the file: so it can be a stream.
type image interface {
	readAt(p []byte, off uint64) error
	// copyTo fills n bytes of guest memory at a, and marks them dirty.
	copyTo(m *memory.Memory, a memory.Addr, off, n uint64) error
	// sizeBytes is how long the image is, or for a stream is said to be.
	sizeBytes() uint64
}

// fileImage is an image in a file.
type fileImage struct {
	r    io.ReaderAt
	size int64
}

func (f fileImage) sizeBytes() uint64 { return uint64(f.size) }

func (f fileImage) readAt(p []byte, off uint64) error {
	n, err := f.r.ReadAt(p, int64(off))
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %#x: %w", len(p), off, err)
}

func (f fileImage) copyTo(m *memory.Memory, a memory.Addr, off, n uint64) error {
	if file, ok := f.r.(*os.File); ok {
		return m.CopyFile(a, file, int64(off), n)
	}
	return readInto(f, m, a, off, n)
}

// readInto reads a part of an image straight into the guest's pages.
func readInto(img image, m *memory.Memory, a memory.Addr, off, n uint64) error {
	dst, err := m.Writable(a, n)
	if err != nil {
		return err
	}
	defer m.MarkDirty(a, n) // a failed read may have written some
	return img.readAt(dst, off)
}

// elfFile is a parsed ELF kernel.
type elfFile struct {
	entry  uint64
	loads  []segment // in the order of the file's table
	notes  []segment
	linux  bool   // it has a note of Linux
	pvh    bool   // it has a PVH entry note
	pvhRIP uint64 // where that points
}

// parseELF reads and checks the headers: everything that can be known without
// the guest's memory.
func parseELF(img image) (*elfFile, error) {
	var h [elfHeaderBytes]byte
	if img.sizeBytes() < elfHeaderBytes {
		return nil, fmt.Errorf("an ELF file of %d bytes: it ends inside its header of %d", img.sizeBytes(), elfHeaderBytes)
	}
	if err := img.readAt(h[:], 0); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	switch {
	case string(h[:4]) != elfMagic:
		return nil, fmt.Errorf("not an ELF file (starts with %q)", h[:4])
	case h[4] != ELFCLASS64 || h[5] != ELFDATA2LSB:
		return nil, fmt.Errorf("an ELF file of class %d and byte order %d: want 64 bit (2) and little-endian (1)", h[4], h[5])
	case le.Uint16(h[18:]) != EM_X86_64:
		return nil, fmt.Errorf("an ELF file for machine %d: want x86-64 (%d)", le.Uint16(h[18:]), EM_X86_64)
	case le.Uint16(h[16:]) != ET_EXEC:
		return nil, fmt.Errorf("an ELF file of type %d: want an executable (%d), as kernels are", le.Uint16(h[16:]), ET_EXEC)
	case le.Uint16(h[54:]) != elfSegmentBytes:
		return nil, fmt.Errorf("an ELF file with program headers of %d bytes: want %d", le.Uint16(h[54:]), elfSegmentBytes)
	}
	f := &elfFile{entry: le.Uint64(h[24:])}
	tableOff, count := le.Uint64(h[32:]), uint64(le.Uint16(h[56:]))
	if count == 0 || count > maxSegments {
		return nil, fmt.Errorf("an ELF file with %d program headers: want 1 to %d", count, maxSegments)
	}
	table := make([]byte, count*elfSegmentBytes)
	if !within(tableOff, uint64(len(table)), img.sizeBytes()) {
		return nil, fmt.Errorf("ELF program headers at %#x, %d bytes, end beyond the file of %d bytes", tableOff, len(table), img.sizeBytes())
	}
	if err := img.readAt(table, tableOff); err != nil {
		return nil, err
	}
	for i := range int(count) {
		if err := f.addSegment(i, table[i*elfSegmentBytes:], img.sizeBytes()); err != nil {
			return nil, err
		}
	}
	if len(f.loads) == 0 {
		return nil, fmt.Errorf("an ELF file without a segment to load")
	}
	return f, nil
}

// within says whether [off, off+n) lies in [0, size).
func within(off, n, size uint64) bool { return off <= size && n <= size-off }

func (f *elfFile) addSegment(i int, ph []byte, fileBytes uint64) error {
	le := binary.LittleEndian
	s := segment{
		index: i, kind: le.Uint32(ph), offset: le.Uint64(ph[8:]), addr: memory.Addr(le.Uint64(ph[24:])),
		file: le.Uint64(ph[32:]), size: le.Uint64(ph[40:]),
	}
	switch {
	case s.kind != PT_LOAD && s.kind != PT_NOTE:
		return nil
	case s.kind == PT_LOAD && s.size == 0 && s.file == 0:
		return nil
	case !within(s.offset, s.file, fileBytes):
		return fmt.Errorf("ELF segment %d at %#x, %d bytes, ends beyond the file of %d bytes", i, s.offset, s.file, fileBytes)
	case s.kind == PT_NOTE && s.file > maxNoteBytes:
		return fmt.Errorf("ELF note segment %d of %d bytes: at most %d are possible", i, s.file, maxNoteBytes)
	case s.kind == PT_NOTE:
		f.notes = append(f.notes, s)
		return nil
	case s.file > s.size:
		return fmt.Errorf("ELF segment %d has %d bytes in the file but %d in memory", i, s.file, s.size)
	case uint64(s.addr)+s.size < s.size:
		return fmt.Errorf("ELF segment %d at %#x, %d bytes, wraps around the address space", i, uint64(s.addr), s.size)
	}
	f.loads = append(f.loads, s)
	return nil
}

// place checks that every segment has RAM that is free.
func (f *elfFile) place(m *memory.Memory) error {
	byAddr := slices.SortedFunc(slices.Values(f.loads), func(a, b segment) int { return cmp.Compare(a.addr, b.addr) })
	for i, s := range byAddr {
		if err := m.Ensure(s.addr, s.size); err != nil {
			return fmt.Errorf("ELF segment %d at %v needs more or other memory than the guest's %d bytes: %w", s.index, s.span(), m.SizeBytes(), err)
		}
		for _, r := range reserved {
			if s.span().overlaps(span{r.start, r.end}) {
				return fmt.Errorf("ELF segment %d at %v overlaps %s at %v", s.index, s.span(), r.what, span{r.start, r.end})
			}
		}
		if i > 0 && byAddr[i-1].span().overlaps(s.span()) {
			return fmt.Errorf("ELF segments %d and %d overlap in memory at %#x", byAddr[i-1].index, s.index, uint64(s.addr))
		}
	}
	return nil
}

// load copies the segments into m, from the file straight into the guest's
// pages, and reads the notes on the way. bss is left alone: fresh memory is zero.
func (f *elfFile) load(img image, m *memory.Memory) error {
	parts := slices.SortedFunc(slices.Values(f.loads), func(a, b segment) int { return cmp.Compare(a.offset, b.offset) })
	for i := range parts {
		s := &parts[i]
		if err := img.copyTo(m, s.addr, s.offset, s.file); err != nil {
			return fmt.Errorf("ELF segment %d: %w", s.index, err)
		}
	}
	for i := range f.notes {
		b, err := f.readNote(img, m, &f.notes[i])
		if err != nil {
			return err
		}
		if err := f.parseNotes(b); err != nil {
			return err
		}
	}
	return nil
}

// readNote gets a note segment's bytes: from the guest's memory if it is part
// of a loaded segment, as kernels have it, which a stream could not give again.
func (f *elfFile) readNote(img image, m *memory.Memory, n *segment) ([]byte, error) {
	b := make([]byte, n.file)
	for _, l := range f.loads {
		if n.offset >= l.offset && within(n.offset-l.offset, n.file, l.file) {
			if err := m.ReadAt(b, l.addr+memory.Addr(n.offset-l.offset)); err != nil {
				return nil, fmt.Errorf("ELF note segment %d: %w", n.index, err)
			}
			return b, nil
		}
	}
	if err := img.readAt(b, n.offset); err != nil {
		return nil, fmt.Errorf("ELF note segment %d: %w", n.index, err)
	}
	return b, nil
}

// parseNotes walks the notes of one segment for those of Xen and Linux. Names
// and descriptions are padded to 4 bytes.
func (f *elfFile) parseNotes(b []byte) error {
	le := binary.LittleEndian
	padded := func(n uint32) uint64 { return (uint64(n) + 3) &^ 3 }
	for len(b) >= 12 {
		nameBytes, descBytes, kind := le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:])
		b = b[12:]
		if padded(nameBytes) > uint64(len(b)) || uint64(descBytes) > uint64(len(b))-padded(nameBytes) {
			return fmt.Errorf("an ELF note of %d+%d bytes ends beyond its segment", nameBytes, descBytes)
		}
		name := bytes.TrimRight(b[:nameBytes], "\x00")
		b = b[padded(nameBytes):]
		desc := b[:descBytes]
		b = b[min(padded(descBytes), uint64(len(b))):]
		switch {
		case string(name) == "Linux":
			f.linux = true
		case string(name) == "Xen" && kind == XEN_ELFNOTE_PHYS32_ENTRY:
			switch len(desc) {
			case 4:
				f.pvhRIP = uint64(le.Uint32(desc))
			case 8:
				f.pvhRIP = le.Uint64(desc)
			default:
				return fmt.Errorf("the PVH entry note has %d bytes: want 4 or 8", len(desc))
			}
			f.pvh = true
		}
	}
	return nil
}

// end is the first address after all segments.
func (f *elfFile) end() memory.Addr {
	var end memory.Addr
	for _, s := range f.loads {
		end = max(end, s.span().end)
	}
	return end
}

// checkEntry says whether rip is in a loaded segment and below 4 GiB, which
// both protocols need.
func (f *elfFile) checkEntry(rip uint64) error {
	at := span{memory.Addr(rip), memory.Addr(rip) + 1}
	for _, s := range f.loads {
		if rip < 1<<32 && s.span().overlaps(at) {
			return nil
		}
	}
	return fmt.Errorf("the entry point %#x is in no loaded segment below 4 GiB", rip)
}
