package blk

import (
	"bytes"
	"errors"
	"fmt"
)

// ErrFormat is wrapped when an image is in a format other than raw.
var ErrFormat = errors.New("not a raw disk image")

// A signature is how an image format gives itself away.
type signature struct {
	format string // as qemu-img -f spells it; "" if qemu-img cannot read it
	name   string
	off    int // from the start of the file; negative: from its end
	magic  string
}

// The formats that people have disks in. A raw disk that happens to start like
// one of them is opened with Options.ForceRaw.
var signatures = []signature{
	{"qcow2", "a qcow2", 0, "QFI\xfb"},
	{"vmdk", "a VMDK", 0, "KDMV"},
	{"vmdk", "a VMDK", 0, "COWD"},
	{"vmdk", "a VMDK", 0, "# Disk DescriptorFile"},
	{"vdi", "a VDI", 0x40, "\x7f\x10\xda\xbe"},
	{"vhdx", "a VHDX", 0, "vhdxfile"},
	{"vpc", "a VHD", 0, "conectix"},
	{"vpc", "a VHD", -512, "conectix"},
	{"qed", "a QED", 0, "QED\x00"},
	{"parallels", "a Parallels", 0, "WithoutFreeSpace"},
	{"parallels", "a Parallels", 0, "WithouFreSpacExt"},
	{"dmg", "a DMG", -512, "koly"},
	{"bochs", "a Bochs", 0, "Bochs Virtual HD Image"},
	{"", "an Xz-compressed", 0, "\xfd7zXZ\x00"},
	{"", "a Zstandard-compressed", 0, "\x28\xb5\x2f\xfd"},
	{"", "a gzip-compressed", 0, "\x1f\x8b\x08"},
}

// unpackers names the command for the formats that qemu-img does not read.
var unpackers = map[string]string{
	"an Xz-compressed":       "xz -dc",
	"a Zstandard-compressed": "zstd -dc",
	"a gzip-compressed":      "gzip -dc",
}

// probeBytes is how much of the start and of the end of a file checkFormat looks at.
const probeBytes = 512

// checkFormat refuses a file whose first bytes are head and last ones tail if
// they are of a known format, with the command that makes a raw image of it.
func checkFormat(path string, head, tail []byte) error {
	for _, s := range signatures {
		b, off := head, s.off
		if off < 0 {
			b, off = tail, len(tail)+off
		}
		if off < 0 || off > len(b) || !bytes.HasPrefix(b[off:], []byte(s.magic)) {
			continue
		}
		cmd := fmt.Sprintf("qemu-img convert -f %s -O raw %s %s.img", s.format, path, path)
		if s.format == "" {
			cmd = fmt.Sprintf("%s %s > %s.img", unpackers[s.name], path, path)
		}
		return fmt.Errorf("disk %s is %s image, %w; convert it with: %s", path, s.name, ErrFormat, cmd)
	}
	return nil
}
