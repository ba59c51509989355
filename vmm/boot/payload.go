package boot

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Formats of a payload, by its first bytes. Those without an open function are
// known and refused.
var payloadFormats = []struct {
	name, magic string
	open        func(r *bufio.Reader, unpackedBytes int64) (io.Reader, func(), error)
}{
	{"gzip", "\x1f\x8b", openGzip},
	{"xz", xzMagic, openXZ},
	{"lz4", "\x02\x21\x4c\x18", openLZ4},
	{"zstd", "\x28\xb5\x2f\xfd", openZstd},
	{"bzip2", "BZh", nil},
	{"lzma", "\x5d\x00\x00", nil},
	{"lzo", "\x89LZO", nil},
}

// maxZstdWindow bounds the memory that a zstd frame may ask for: window log 27,
// which is what the strongest level uses.
const maxZstdWindow = 128 << 20

// payload is a kernel being unpacked. Its Read fails when the content is longer
// or shorter than the image's own trailer says.
type payload struct {
	r      io.Reader
	closer func() // nil: nothing to close
	format string
	size   int64
	left   int64
	err    error
}

// openPayload starts unpacking section, which ends with the size's trailer, by
// the format that head, its first bytes, shows.
func openPayload(section *io.SectionReader, head []byte, unpackedBytes int64) (*payload, error) {
	for _, f := range payloadFormats {
		if !strings.HasPrefix(string(head), f.magic) {
			continue
		}
		if f.open == nil {
			return nil, fmt.Errorf("a Linux bzImage compressed with %s: only gzip, xz, lz4 and zstd can be unpacked", f.name)
		}
		compressed := section.Size()
		if f.name != "gzip" { // gzip's trailer is part of its format
			compressed -= trailerBytes
		}
		const bufferBytes = 256 << 10
		in := bufio.NewReaderSize(io.LimitReader(section, compressed), bufferBytes)
		r, closer, err := f.open(in, unpackedBytes)
		if err != nil {
			return nil, fmt.Errorf("unpack %s: %w", f.name, err)
		}
		return &payload{r: r, closer: closer, format: f.name, size: unpackedBytes, left: unpackedBytes}, nil
	}
	return nil, fmt.Errorf("a Linux bzImage with an unknown payload (starts with %q): want gzip, xz, lz4 or zstd", head)
}

func openGzip(r *bufio.Reader, _ int64) (io.Reader, func(), error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, nil, err
	}
	z.Multistream(false)
	return z, func() { _ = z.Close() }, nil
}

func openLZ4(r *bufio.Reader, _ int64) (io.Reader, func(), error) {
	z := lz4.NewReader(r)
	return z, func() { z.Reset(nil) }, nil
}

func openZstd(r *bufio.Reader, _ int64) (io.Reader, func(), error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, nil, err
	}
	return z, z.Close, nil
}

// Read implements io.Reader.
func (p *payload) Read(b []byte) (int, error) {
	if p.err != nil || len(b) == 0 {
		return 0, p.err
	}
	if p.left == 0 {
		p.err = p.atEnd()
		return 0, p.err
	}
	n, err := p.r.Read(b[:min(int64(len(b)), p.left)])
	p.left -= int64(n)
	switch {
	case errors.Is(err, io.EOF) && p.left > 0:
		p.err = fmt.Errorf("%s: it unpacks to %d bytes, but its trailer says %d: %w", p.format, p.size-p.left, p.size, io.ErrUnexpectedEOF)
	case err != nil && !errors.Is(err, io.EOF):
		p.err = fmt.Errorf("%s: %w", p.format, err)
	}
	return n, p.err
}

// atEnd looks whether the content ends where the trailer says, which also makes
// the decoder check its sums.
func (p *payload) atEnd() error {
	var one [1]byte
	switch n, err := io.ReadFull(p.r, one[:]); {
	case n > 0:
		return fmt.Errorf("%s: it unpacks to more than the %d bytes that its trailer says", p.format, p.size)
	case err != io.EOF:
		return fmt.Errorf("%s: %w", p.format, err)
	}
	return io.EOF
}

// Close implements io.Closer.
func (p *payload) Close() error {
	if p.closer != nil {
		p.closer()
		p.closer = nil
	}
	p.err = errors.New("read of a closed kernel")
	return nil
}
