package boot

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"crypto/sha256"

	"github.com/ulikunitz/xz/lzma"
)

// The container of .xz is read here, not by ulikunitz/xz, because kernels pass
// their code through the x86 branch filter, which that package does not know.
// LZMA2 itself is the package's. (The .xz File Format 1.1.0.)
const (
	xzMagic       = "\xfd7zXZ\x00"
	xzFooterMagic = "YZ"

	xzHeaderBytes = 12 // stream header and footer
	xzFilterX86   = 0x04
	xzFilterLZMA2 = 0x21

	// xzMaxDictBytes bounds the memory for a dictionary. Kernels use 32 MiB.
	xzMaxDictBytes = 128 << 20
	// xzMaxBlocks bounds the blocks of a stream: xz -T makes them of 24 MiB or more.
	xzMaxBlocks = 4096
)

// Check types (2.1.1.2) with the lengths of their values.
var xzChecks = map[byte]struct {
	lenBytes int
	new      func() hash.Hash
}{
	0x0: {0, nil},
	0x1: {4, func() hash.Hash { return crc32.NewIEEE() }},
	0x4: {8, func() hash.Hash { return crc64.New(crc64.MakeTable(crc64.ECMA)) }},
	0xA: {32, sha256.New},
}

var errXZ = errors.New("the stream is damaged")

func xzErrorf(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errXZ}, args...)...)
}

// xzReader unpacks one .xz stream. It looks at every checksum, and at the index
// against the blocks that it has read.
type xzReader struct {
	in        *countingReader
	unpacked  int64 // what the whole will be; bounds the dictionary
	flags     [2]byte
	records   []xzRecord
	block     io.Reader // nil between blocks
	sum       hash.Hash // nil: no check
	blockFrom int64     // offset of the block in the stream
	blockSize int64     // bytes unpacked from it
	declared  xzRecord  // sizes that the block header gives, or -1
	headerLen int64     // bytes of the block header
	ended     bool
}

// xzRecord has the two sizes of a block that the index keeps.
type xzRecord struct{ unpadded, unpacked int64 }

func openXZ(r *bufio.Reader, unpackedBytes int64) (io.Reader, func(), error) {
	x := &xzReader{in: &countingReader{r: r}, unpacked: unpackedBytes}
	var h [xzHeaderBytes]byte
	if _, err := io.ReadFull(x.in, h[:]); err != nil {
		return nil, nil, err
	}
	x.flags = [2]byte{h[6], h[7]}
	if _, known := xzChecks[x.flags[1]]; string(h[:6]) != xzMagic || x.flags[0] != 0 || !known {
		return nil, nil, xzErrorf("unknown stream flags %x", x.flags)
	}
	if crc32.ChecksumIEEE(h[6:8]) != binary.LittleEndian.Uint32(h[8:]) {
		return nil, nil, xzErrorf("stream header has a wrong checksum")
	}
	return x, nil, nil
}

// countingReader counts what was read. ReadByte makes the LZMA decoder fast.
type countingReader struct {
	r *bufio.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *countingReader) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

// Read implements io.Reader.
func (x *xzReader) Read(p []byte) (int, error) {
	for {
		switch {
		case x.ended:
			return 0, io.EOF
		case x.block == nil:
			if err := x.next(); err != nil {
				return 0, noEOF(err)
			}
			continue
		}
		n, err := x.block.Read(p)
		x.blockSize += int64(n)
		if x.blockSize > maxUnpackedBytes {
			return n, xzErrorf("a block unpacks to more than %d bytes", maxUnpackedBytes)
		}
		if x.sum != nil {
			x.sum.Write(p[:n])
		}
		if err == io.EOF {
			err = x.endBlock()
		}
		if n > 0 || err != nil {
			return n, noEOF(err)
		}
	}
}

// noEOF: where more must come, the end of the file is an error.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// next begins the next block, or reads the index and the footer.
func (x *xzReader) next() error {
	x.blockFrom = x.in.n
	size, err := x.in.ReadByte()
	if err != nil {
		return err
	}
	if size == 0 {
		return x.endStream()
	}
	if len(x.records) >= xzMaxBlocks {
		return xzErrorf("more than %d blocks", xzMaxBlocks)
	}
	h := make([]byte, (int(size)+1)*4)
	h[0] = size
	if _, err := io.ReadFull(x.in, h[1:]); err != nil {
		return err
	}
	body, sum := h[:len(h)-4], h[len(h)-4:]
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(sum) {
		return xzErrorf("block header has a wrong checksum")
	}
	x.headerLen = int64(len(h))
	return x.startBlock(body)
}

// startBlock parses a block header (3.1) and sets up its filters.
func (x *xzReader) startBlock(h []byte) error {
	flags, b := h[1], bytes.NewReader(h[2:])
	if flags&0x3C != 0 {
		return xzErrorf("unknown block flags %#x", flags)
	}
	x.declared = xzRecord{-1, -1}
	for i, to := range []*int64{&x.declared.unpadded, &x.declared.unpacked} {
		if flags&(0x40<<i) != 0 {
			v, err := readVLI(b)
			if err != nil {
				return err
			}
			*to = v
		}
	}
	branch := -1 // start offset of an x86 filter
	var dict int64
	for i, last := 0, int(flags&3); i <= last; i++ {
		id, props, err := readFilter(b)
		switch {
		case err != nil:
			return err
		case id == xzFilterLZMA2 && i == last && len(props) == 1 && props[0] <= 40:
			dict = lzma2DictBytes(props[0])
		case id == xzFilterX86 && i == 0 && last == 1 && len(props) == 0:
			branch = 0
		case id == xzFilterX86 && i == 0 && last == 1 && len(props) == 4:
			branch = int(binary.LittleEndian.Uint32(props))
		default:
			return fmt.Errorf("filter %d of %d has ID %#x: only LZMA2, or the x86 branch filter and LZMA2, can be unpacked", i+1, last+1, id)
		}
	}
	return x.openFilters(dict, branch)
}

func (x *xzReader) openFilters(dict int64, branch int) error {
	// No match reaches back further than the content is long.
	dict = max(min(dict, x.unpacked), lzma.MinDictCap)
	if dict > xzMaxDictBytes {
		return fmt.Errorf("a dictionary of %d bytes: at most %d are possible", dict, xzMaxDictBytes)
	}
	r, err := lzma.Reader2Config{DictCap: int(dict)}.NewReader2(x.in)
	if err != nil {
		return noEOF(err)
	}
	x.block, x.blockSize = r, 0
	if branch >= 0 {
		x.block = &x86Reader{r: r, filter: x86Filter{pos: uint32(branch)}}
	}
	x.sum = nil
	if check := xzChecks[x.flags[1]]; check.new != nil {
		x.sum = check.new()
	}
	return nil
}

// lzma2DictBytes decodes a dictionary size (5.3.1), 0..40.
func lzma2DictBytes(v byte) int64 {
	if v == 40 {
		return 1<<32 - 1
	}
	return (2 | int64(v&1)) << (v/2 + 11)
}

// endBlock reads the padding and the check behind a block (3.3, 3.4).
func (x *xzReader) endBlock() error {
	data := x.in.n - x.blockFrom - x.headerLen
	if d := x.declared; d.unpadded >= 0 && d.unpadded != data || d.unpacked >= 0 && d.unpacked != x.blockSize {
		return xzErrorf("a block has other sizes than its header says")
	}
	check := xzChecks[x.flags[1]]
	tail := make([]byte, int(-data&3)+check.lenBytes)
	if _, err := io.ReadFull(x.in, tail); err != nil {
		return noEOF(err)
	}
	if x.sum != nil {
		want := x.sum.Sum(nil)
		if x.flags[1] != 0xA {
			reverse(want) // the CRCs are little-endian
		}
		if !bytes.Equal(tail[len(tail)-check.lenBytes:], want) {
			return xzErrorf("the content has a wrong checksum")
		}
	}
	x.records = append(x.records, xzRecord{x.headerLen + data + int64(check.lenBytes), x.blockSize})
	x.block = nil
	return nil
}

func reverse(b []byte) {
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
}

// endStream reads the index, whose first byte is read already, and the footer
// (4, 2.1.2).
func (x *xzReader) endStream() error {
	start := x.in.n - 1
	index := &summedReader{r: x.in, sum: crc32.NewIEEE()}
	index.sum.Write([]byte{0})
	count, err := readVLI(index)
	if err != nil {
		return err
	}
	if count != int64(len(x.records)) {
		return xzErrorf("the index has %d blocks, the stream %d", count, len(x.records))
	}
	for i, r := range x.records {
		unpadded, err := readVLI(index)
		if err != nil {
			return err
		}
		unpacked, err := readVLI(index)
		if err != nil {
			return err
		}
		if (xzRecord{unpadded, unpacked}) != r {
			return xzErrorf("the index says other sizes of block %d than it has", i)
		}
	}
	for (x.in.n-start)%4 != 0 {
		if _, err := index.ReadByte(); err != nil {
			return err
		}
	}
	want := index.sum.Sum32()
	var tail [4 + xzHeaderBytes]byte
	if _, err := io.ReadFull(x.in, tail[:]); err != nil {
		return err
	}
	le, footer := binary.LittleEndian, tail[4:]
	backward := (x.in.n - xzHeaderBytes - start) / 4
	switch {
	case le.Uint32(tail[:]) != want:
		return xzErrorf("the index has a wrong checksum")
	case le.Uint32(footer) != crc32.ChecksumIEEE(footer[4:10]) || string(footer[10:]) != xzFooterMagic,
		le.Uint32(footer[4:]) != uint32(backward-1), [2]byte(footer[8:10]) != x.flags:
		return xzErrorf("the footer does not match the stream")
	}
	x.ended = true
	return nil
}

// summedReader sums the bytes that it reads.
type summedReader struct {
	r   io.ByteReader
	sum hash.Hash32
}

func (s *summedReader) ReadByte() (byte, error) {
	b, err := s.r.ReadByte()
	if err == nil {
		s.sum.Write([]byte{b})
	}
	return b, err
}

// readFilter reads one entry of the list of filters (3.1.5).
func readFilter(b *bytes.Reader) (id int64, props []byte, err error) {
	if id, err = readVLI(b); err != nil {
		return 0, nil, err
	}
	n, err := readVLI(b)
	if err != nil {
		return 0, nil, err
	}
	if n > int64(b.Len()) {
		return 0, nil, xzErrorf("filter properties of %d bytes end beyond the block header", n)
	}
	props = make([]byte, n)
	_, err = io.ReadFull(b, props)
	return id, props, err
}

// readVLI reads a variable-length integer (1.2): at most 9 bytes of 7 bits.
func readVLI(r io.ByteReader) (int64, error) {
	var v int64
	for i := range 9 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, noEOF(err)
		}
		v |= int64(b&0x7F) << (7 * i)
		if b&0x80 == 0 {
			if b == 0 && i > 0 {
				break // not the shortest form
			}
			return v, nil
		}
	}
	return 0, xzErrorf("a malformed integer")
}
