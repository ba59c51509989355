package labguest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

// stampCode writes EntryStamp to COM1. It means the same in 32 and in 64 bit mode and
// changes AL and DX, which neither entry protocol gives a meaning.
var stampCode = []byte{
	0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
	0xb0, EntryStamp, //       mov $EntryStamp, %al
	0xee, //                   out %al, (%dx)
}

// StampKernel copies the kernel at path to out and makes it write EntryStamp
// first of all: a vmlinux at its PVH entry, a bzImage at its 32-bit entry.
func StampKernel(path, out string) error {
	k, err := os.ReadFile(path)
	if err == nil {
		if bytes.HasPrefix(k, []byte(elf.ELFMAG)) {
			err = stampELF(k)
		} else {
			err = stampBzImage(k)
		}
	}
	if err == nil {
		err = os.WriteFile(out, k, 0o644)
	}
	if err != nil {
		return fmt.Errorf("stamp kernel %s: %w", path, err)
	}
	return nil
}

// jump is a jmp at address from to address to.
func jump(from, to uint32) []byte {
	return binary.LittleEndian.AppendUint32([]byte{0xe9}, to-(from+5))
}

// stampELF puts the code into the unused end of the last segment, which the
// kernel clears later on, and changes the PVH note to lead there.
func stampELF(k []byte) error {
	f, err := elf.NewFile(bytes.NewReader(k))
	if err != nil {
		return err
	}
	note, err := pvhNote(f, k)
	if err != nil {
		return err
	}
	var last *elf.Prog
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && p.Filesz > 64 && (last == nil || p.Paddr > last.Paddr) {
			last = p
		}
	}
	if last == nil || last.Off+last.Filesz > uint64(len(k)) || last.Paddr+last.Filesz > 1<<32 {
		return errors.New("no segment has room")
	}
	room := k[last.Off+last.Filesz-32 : last.Off+last.Filesz]
	if !zero(room) {
		return errors.New("the end of the last segment is in use")
	}
	at := uint32(last.Paddr + last.Filesz - 32)
	n := copy(room, stampCode)
	copy(room[n:], jump(at+uint32(n), binary.LittleEndian.Uint32(note)))
	binary.LittleEndian.PutUint32(note, at)
	return nil
}

// pvhNote is the descriptor of the note XEN_ELFNOTE_PHYS32_ENTRY, in k.
func pvhNote(f *elf.File, k []byte) ([]byte, error) {
	const typePhys32Entry = 18
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Off+p.Filesz > uint64(len(k)) {
			continue
		}
		for b := k[p.Off : p.Off+p.Filesz]; len(b) >= 12; {
			name, desc := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
			descAt := 12 + (uint64(name)+3)&^3
			next := descAt + (uint64(desc)+3)&^3
			if next > uint64(len(b)) {
				break
			}
			if binary.LittleEndian.Uint32(b[8:]) == typePhys32Entry && string(b[12:16]) == "Xen\x00" && desc >= 4 {
				return b[descAt : descAt+uint64(desc)], nil
			}
			b = b[next:]
		}
	}
	return nil, errors.New("no PVH entry")
}

// bzEntry is how startup_32 begins: cld, cli, and a lea of the stack. It does not
// depend on its place and is moved behind the stamp.
var bzEntry = []byte{0xfc, 0xfa, 0x8d, 0xa6, 0xe8, 0x01, 0x00, 0x00}

// stampBzImage puts the code into the gap before the 64-bit entry at 0x200.
func stampBzImage(k []byte) error {
	const setupSects, stubAt = 0x1f1, 0x1e0
	if len(k) < 0x1000 || string(k[0x202:0x206]) != "HdrS" {
		return errors.New("neither an ELF file nor a bzImage")
	}
	start := (int(k[setupSects]) + 1) * 512
	if len(k) < start+0x200 || !bytes.Equal(k[start:start+len(bzEntry)], bzEntry) {
		return errors.New("the 32-bit entry is not as expected")
	}
	room := k[start+stubAt : start+0x200]
	if !zero(room) {
		return errors.New("the gap before the 64-bit entry is in use")
	}
	n := copy(room, stampCode)
	n += copy(room[n:], bzEntry)
	copy(room[n:], jump(stubAt+uint32(n), uint32(len(bzEntry))))
	copy(k[start:], jump(0, stubAt))
	return nil
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }
