package boot

import (
	"fmt"
	"io"

	"github.com/peervisor/peervisor/memory"
)

// kernel is a kernel file on its way into memory.
type kernel struct {
	file    fileImage
	bz      *bzImage // nil for an ELF file
	payload *payload // nil for an ELF file
	elf     *elfFile // after load
}

// openKernel finds out what the file is.
func openKernel(r io.ReaderAt, size int64) (*kernel, error) {
	if r == nil || size <= 0 {
		return nil, fmt.Errorf("it is empty")
	}
	k := &kernel{file: fileImage{r, size}}
	head := make([]byte, min(bzHeaderBytes, size))
	if err := k.file.readAt(head, 0); err != nil {
		return nil, err
	}
	switch {
	case len(head) >= len(elfMagic) && string(head[:len(elfMagic)]) == elfMagic:
		return k, nil
	case isBzImage(head):
		var err error
		if k.bz, err = parseBzImage(head, r, size); err != nil {
			return nil, err
		}
		if k.payload, err = k.bz.open(r); err != nil {
			return nil, err
		}
		return k, nil
	}
	return nil, fmt.Errorf("neither an ELF file nor a Linux bzImage (starts with %q)", head[:min(4, len(head))])
}

func (k *kernel) close() {
	if k.payload != nil {
		_ = k.payload.Close()
	}
}

// load puts the segments into m.
func (k *kernel) load(m *memory.Memory) error {
	if k.payload == nil {
		return k.loadImage(k.file, m)
	}
	stream, err := newStreamImage(k.payload, uint64(k.bz.unpackedBytes))
	if err != nil {
		return err
	}
	if err := k.loadImage(stream, m); err != nil {
		return fmt.Errorf("in its %s payload: %w", k.payload.format, err)
	}
	return stream.finish()
}

func (k *kernel) loadImage(img image, m *memory.Memory) (err error) {
	if k.elf, err = parseELF(img); err != nil {
		return err
	}
	if err := k.elf.place(m); err != nil {
		return err
	}
	return k.elf.load(img, m)
}

// isLinux: it came as a bzImage, says so in a note, or can only be entered as Linux is.
func (k *kernel) isLinux() bool { return k.bz != nil || k.elf.linux || !k.elf.pvh }

// cmdlineMax is the longest command line that the kernel takes.
func (k *kernel) cmdlineMax() int {
	switch {
	case k.bz != nil && k.bz.cmdlineMax != 0:
		return int(min(k.bz.cmdlineMax, uint32(pvhCmdlineMax)))
	case k.isLinux():
		return defaultCmdlineMax
	}
	return pvhCmdlineMax
}

// initrdMax is the highest address that the initrd may occupy.
func (k *kernel) initrdMax() memory.Addr {
	switch {
	case k.bz != nil && k.bz.initrdMax != 0:
		return memory.Addr(k.bz.initrdMax)
	default:
		return defaultInitrdMax
	}
}

// enter writes what the kernel's protocol wants and returns the state for it.
func (k *kernel) enter(m *memory.Memory, initrd span, rsdp memory.Addr) (Entry, error) {
	if k.elf.pvh {
		if err := k.elf.checkEntry(k.elf.pvhRIP); err != nil {
			return Entry{}, fmt.Errorf("PVH: %w", err)
		}
		if err := putStartInfo(m, initrd, rsdp); err != nil {
			return Entry{}, err
		}
		return enterPVH(m, k.elf.pvhRIP)
	}
	if err := k.elf.checkEntry(k.elf.entry); err != nil {
		return Entry{}, fmt.Errorf("no PVH note, and %w", err)
	}
	var header []byte
	if k.bz != nil {
		header = k.bz.header
	}
	if err := putBootParams(m, header, initrd, rsdp); err != nil {
		return Entry{}, err
	}
	return enterLinux64(m, k.elf.entry)
}
