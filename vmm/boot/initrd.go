package boot

import (
	"fmt"
	"strings"

	"github.com/peervisor/peervisor/memory"
)

// initramfsMagics are the beginnings of what Linux unpacks as its first root
// file system: a cpio archive, or one compressed.
var initramfsMagics = []string{
	"070701", "070702", // cpio, newc without and with checksum
	"\x1f\x8b",             // gzip
	"\xfd7zXZ\x00",         // xz
	"\x28\xb5\x2f\xfd",     // zstd
	"\x02\x21\x4c\x18",     // lz4, legacy frame
	"BZh",                  // bzip2
	"\x5d\x00\x00",         // lzma
	"\x89LZO\x00\x0d\x0a",  // lzo
	"\x00\x00\x00\x00\x00", // padding before an archive
}

// putInitrd reads the initrd to the highest place that the kernel allows, above
// all of the kernel that is below that place.
func putInitrd(m *memory.Memory, src *Source, k *kernel) (span, error) {
	if src.Initrd == nil {
		return span{}, nil
	}
	if src.InitrdSize <= 0 {
		return span{}, fmt.Errorf("it is empty")
	}
	if k.isLinux() {
		if err := checkInitramfs(src); err != nil {
			return span{}, err
		}
	}
	low, err := lowRAM(m)
	if err != nil {
		return span{}, err
	}
	limit := min(low, initrdBelow, k.initrdMax()+1)
	size := memory.Addr(src.InitrdSize)
	if size > limit || limit-size < highRAMStart {
		return span{}, fmt.Errorf("its %d bytes do not fit between %#x and %#x", size, uint64(highRAMStart), uint64(limit))
	}
	start := (limit - size) &^ (memory.PageBytes - 1)
	at := span{start, start + size}
	for _, s := range k.elf.loads {
		if s.span().overlaps(at) {
			return span{}, fmt.Errorf("its %d bytes do not fit between the kernel's end at %#x and %#x: give the guest more memory", size, uint64(s.span().end), uint64(limit))
		}
	}
	if err := (fileImage{src.Initrd, src.InitrdSize}).copyTo(m, at.start, 0, uint64(size)); err != nil {
		return span{}, err
	}
	return at, nil
}

// checkInitramfs refuses what Linux would not unpack, before the guest panics
// for want of a root file system.
func checkInitramfs(src *Source) error {
	head := make([]byte, min(8, src.InitrdSize))
	if n, err := src.Initrd.ReadAt(head, 0); n < len(head) {
		return fmt.Errorf("read its first %d bytes: %w", len(head), err)
	}
	for _, magic := range initramfsMagics {
		if strings.HasPrefix(string(head), magic) {
			return nil
		}
	}
	return fmt.Errorf("not an initramfs (starts with %q): want a cpio archive (newc), plain or compressed with gzip, xz, zstd, lz4, bzip2, lzma or lzo", head[:min(4, len(head))])
}
