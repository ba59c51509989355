package boot

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/peervisor/peervisor/memory"
)

// Bounds of bzImage.
const (
	// bzHeaderBytes is how much of the file holds the boot sector and the setup header.
	bzHeaderBytes = setupHeaderLimit
	// protocolPayload is the boot protocol that brought payload_offset (2.08),
	// protocolXLoad the one that brought xloadflags (2.12).
	protocolPayload = 0x0208
	protocolXLoad   = 0x020C

	sectorBytes = 512
	// maxUnpackedBytes bounds the kernel inside: distribution kernels have 30 to
	// 100 MiB.
	maxUnpackedBytes = 1 << 30
	// trailerBytes is the length of the unpacked size at the payload's end.
	trailerBytes = 4
)

// bzImage is a parsed Linux image.
type bzImage struct {
	header         []byte // struct setup_header, from setup_sects on
	cmdlineMax     uint32 // without the NUL
	initrdMax      uint32
	payloadOff     int64 // in the file
	payloadBytes   int64 // with the trailer
	unpackedBytes  int64
	compressedHead [6]byte
}

// isBzImage looks for the two marks of the setup header.
func isBzImage(head []byte) bool {
	return len(head) >= bzHeaderBytes && binary.LittleEndian.Uint16(head[boot_flag:]) == bootFlag &&
		string(head[header_magic:header_magic+4]) == headerMagic
}

// parseBzImage checks the setup header in head, the first bzHeaderBytes of the
// file, against the file's size.
func parseBzImage(head []byte, r io.ReaderAt, size int64) (*bzImage, error) {
	le := binary.LittleEndian
	version := le.Uint16(head[boot_version:])
	switch {
	case version < protocolPayload:
		return nil, fmt.Errorf("a Linux image with boot protocol %d.%02d: want 2.08 or newer", version>>8, version&0xFF)
	case head[loadflags]&loadedHigh == 0:
		return nil, fmt.Errorf("a Linux zImage: want a bzImage")
	case version >= protocolXLoad && le.Uint16(head[xloadflags:])&xlfKernel64 == 0:
		return nil, fmt.Errorf("a 32-bit Linux bzImage: want a 64-bit one")
	}
	b := &bzImage{cmdlineMax: le.Uint32(head[cmdline_size:]), initrdMax: le.Uint32(head[initrd_max:])}
	headerEnd := min(header_magic+int(head[setup_jump]), setupHeaderLimit)
	b.header = append([]byte(nil), head[setup_sects:headerEnd]...)

	sects := int64(head[setup_sects])
	if sects == 0 {
		sects = 4 // boot.rst: for backwards compatibility
	}
	protectedMode := (sects + 1) * sectorBytes
	b.payloadOff = protectedMode + int64(le.Uint32(head[payload_offset:]))
	b.payloadBytes = int64(le.Uint32(head[payload_length:]))
	if b.payloadBytes <= trailerBytes+int64(len(b.compressedHead)) || !within(uint64(b.payloadOff), uint64(b.payloadBytes), uint64(size)) {
		return nil, fmt.Errorf("a Linux bzImage with its payload at %#x, %d bytes: the file has %d", b.payloadOff, b.payloadBytes, size)
	}
	var trailer [trailerBytes]byte
	file := fileImage{r, size}
	if err := file.readAt(trailer[:], uint64(b.payloadOff+b.payloadBytes-trailerBytes)); err != nil {
		return nil, err
	}
	if err := file.readAt(b.compressedHead[:], uint64(b.payloadOff)); err != nil {
		return nil, err
	}
	b.unpackedBytes = int64(le.Uint32(trailer[:]))
	if b.unpackedBytes < elfHeaderBytes || b.unpackedBytes > maxUnpackedBytes {
		return nil, fmt.Errorf("a Linux bzImage whose kernel unpacks to %d bytes: want %d to %d", b.unpackedBytes, elfHeaderBytes, maxUnpackedBytes)
	}
	return b, nil
}

// open starts unpacking the payload.
func (b *bzImage) open(r io.ReaderAt) (*payload, error) {
	return openPayload(io.NewSectionReader(r, b.payloadOff, b.payloadBytes), b.compressedHead[:], b.unpackedBytes)
}

// streamImage is an image that is being unpacked: it keeps the head, which is
// read more than once, and otherwise goes forward only.
type streamImage struct {
	r    io.Reader
	size uint64
	pos  uint64
	head []byte
}

// streamHeadBytes must hold the ELF header and the program headers.
const streamHeadBytes = 64 << 10

func newStreamImage(r io.Reader, size uint64) (*streamImage, error) {
	s := &streamImage{r: r, size: size, head: make([]byte, min(streamHeadBytes, size))}
	n, err := io.ReadFull(r, s.head)
	s.pos = uint64(n)
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	return s, nil
}

func (s *streamImage) sizeBytes() uint64 { return s.size }

func (s *streamImage) readAt(p []byte, off uint64) error {
	if off < uint64(len(s.head)) {
		n := copy(p, s.head[off:])
		p, off = p[n:], off+uint64(n)
	}
	if len(p) == 0 {
		return nil
	}
	if off < s.pos {
		return fmt.Errorf("unpack: segments overlap in the file at %#x", off)
	}
	if skip := off - s.pos; skip > 0 {
		n, err := io.CopyN(io.Discard, s.r, int64(skip))
		s.pos += uint64(n)
		if err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
	}
	n, err := io.ReadFull(s.r, p)
	s.pos += uint64(n)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}

func (s *streamImage) copyTo(m *memory.Memory, a memory.Addr, off, n uint64) error {
	return readInto(s, m, a, off, n)
}

// finish unpacks the rest, so that checksums and lengths are looked at.
func (s *streamImage) finish() error {
	if _, err := io.Copy(io.Discard, s.r); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}
