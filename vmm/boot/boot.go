// Package boot puts a kernel, its initrd and its command line into guest memory
// and says in which state the first vCPU starts.
//
// It is not firmware: nothing of it runs in the guest. It knows file formats
// (ELF64, bzImage, the compressions of its payload), the two entry protocols
// (PVH, Linux 64-bit) and the low addresses of docs/machine-v1.md, and knows no
// KVM: the initial registers are plain data.
//
// Kernel and initrd are hostile input. Every length is checked against the file
// and against guest RAM before anything is taken or written; an error is one
// line that names the file, what was found and what was expected.
//
// Specifications: ELF-64 Object File Format 1.5; Linux
// Documentation/x86/boot.rst and zero-page.rst (boot protocol 2.15); Xen
// docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h version 1; The .xz
// File Format 1.1.0.
package boot

import (
	"fmt"
	"io"

	"github.com/peervisor/peervisor/memory"
)

// Source is what to boot.
type Source struct {
	// Kernel is an ELF64 file or a bzImage of KernelSize bytes. KernelName is its
	// name in errors.
	Kernel     io.ReaderAt
	KernelSize int64
	KernelName string
	// Initrd, with its size and name, is optional: nil means none.
	Initrd     io.ReaderAt
	InitrdSize int64
	InitrdName string
	// Cmdline is the kernel command line, without a terminating NUL.
	Cmdline string
}

// Protocol is the contract by which a kernel is entered.
type Protocol int

const (
	// PVH: 32-bit protected mode without paging, RBX points to hvm_start_info.
	PVH Protocol = iota + 1
	// Linux64: 64-bit mode with identity paging, RSI points to boot_params.
	Linux64
)

func (p Protocol) String() string {
	switch p {
	case PVH:
		return "PVH"
	case Linux64:
		return "Linux 64-bit"
	}
	return "unknown protocol"
}

// Segment is a segment register with its hidden part, in the terms of KVM and
// the Intel SDM volume 3, 3.4.5.
type Segment struct {
	Selector uint16
	Base     uint64
	Limit    uint32 // in bytes, the granularity applied
	Type     uint8  // 0..15
	DPL      uint8
	Present  bool
	System   bool // true: a system segment (TSS, LDT), S bit 0
	DB       bool // 32-bit default operand size
	Long     bool // 64-bit code
	Granular bool // G bit of the descriptor
}

// Table is a descriptor table register.
type Table struct {
	Base  memory.Addr
	Limit uint16
}

// Entry is the state in which vCPU 0 starts: all other general registers are 0,
// interrupts are off, the other vCPUs wait for INIT and SIPI.
type Entry struct {
	Protocol Protocol

	RIP, RSP, RBX, RSI, RFLAGS uint64
	CR0, CR3, CR4, EFER        uint64

	CS, DS, ES, FS, GS, SS, TR, LDT Segment
	GDT, IDT                        Table

	// KernelEnd is the first address after the kernel's last segment, bss
	// included. InitrdStart is 0 without an initrd.
	KernelEnd   memory.Addr
	InitrdStart memory.Addr
}

// Load puts src into m and returns the state to start in. rsdp is where the
// ACPI tables begin, already in m. m must be fresh: what was never written reads
// as zero, so bss costs nothing.
//
// The kernel may be an ELF64 file, entered by PVH if it has the note of that and
// by the 64-bit Linux protocol if not, or a bzImage, whose payload is unpacked
// on the way into guest memory and then treated alike. After an error m has
// undefined content.
func Load(m *memory.Memory, src Source, rsdp memory.Addr) (Entry, error) {
	k, err := openKernel(src.Kernel, src.KernelSize)
	if err != nil {
		return Entry{}, fmt.Errorf("kernel %s: %w", src.KernelName, err)
	}
	defer k.close()
	if _, err := lowRAM(m); err != nil {
		return Entry{}, err
	}
	if err := k.load(m); err != nil {
		return Entry{}, fmt.Errorf("kernel %s: %w", src.KernelName, err)
	}
	if err := putCmdline(m, src.Cmdline, k.cmdlineMax()); err != nil {
		return Entry{}, err
	}
	initrd, err := putInitrd(m, &src, k)
	if err != nil {
		return Entry{}, fmt.Errorf("initrd %s: %w", src.InitrdName, err)
	}
	e, err := k.enter(m, initrd, rsdp)
	if err != nil {
		return Entry{}, fmt.Errorf("kernel %s: %w", src.KernelName, err)
	}
	e.KernelEnd, e.InitrdStart = k.elf.end(), initrd.start
	return e, nil
}

// Unpack opens the kernel proper inside a file: the payload of a bzImage, or
// the file itself if it is an ELF already. Read it to the end: the last Read
// checks sums and lengths. format names what it was: "elf", "gzip", "xz", "lz4" or
// "zstd". The caller closes the reader. Errors do not name the file.
func Unpack(kernel io.ReaderAt, size int64) (vmlinux io.ReadCloser, format string, err error) {
	k, err := openKernel(kernel, size)
	if err != nil {
		return nil, "", err
	}
	if k.payload == nil {
		return io.NopCloser(io.NewSectionReader(kernel, 0, size)), "elf", nil
	}
	return k.payload, k.payload.format, nil
}
