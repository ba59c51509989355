package kernel

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Bounds of a .deb, well above any kernel package. They are there for files that
// lie; what is written is bounded by the same.
const (
	maxDebMembers   = 16        // of the ar archive; a .deb has three
	maxDebEntries   = 200_000   // of the tar archive
	maxDebDataBytes = 4 << 30   // unpacked
	maxNameBytes    = 4096      // PATH_MAX
	maxDecoderBytes = 256 << 20 // a decompressor's window
)

const (
	arMagic       = "!<arch>\n"
	arHeaderBytes = 60 // name 16, mtime 12, uid 6, gid 6, mode 8, size 10, magic 2
)

// errDeb is wrapped by every complaint about a .deb.
var errDeb = errors.New("not a good Debian package")

// walkDeb calls each for every regular file of a .deb's data archive, with its
// path relative to the root and clean. each need not read the file.
func walkDeb(deb io.Reader, each func(name string, mode int64, size int64, r io.Reader) error) error {
	data, err := debData(bufio.NewReaderSize(deb, 64<<10))
	if err != nil {
		return err
	}
	defer data.Close()
	left := int64(maxDebDataBytes)
	bounded := &boundedReader{r: data, left: &left}
	tr := tar.NewReader(bounded)
	for range maxDebEntries {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			// To the very end, where the decompressor checks sums.
			if _, err := io.Copy(io.Discard, bounded); err != nil {
				return fmt.Errorf("%w: data archive: %w", errDeb, err)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: data archive: %w", errDeb, err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name := path.Clean("/" + h.Name)[1:]
		if name == "" || len(name) > maxNameBytes || strings.ContainsRune(name, 0) {
			return fmt.Errorf("%w: data archive: bad file name %.80q", errDeb, h.Name)
		}
		if err := each(name, h.Mode, h.Size, tr); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: data archive: more than %d entries", errDeb, maxDebEntries)
}

// boundedReader fails, rather than ends, after so many bytes.
type boundedReader struct {
	r    io.Reader
	left *int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if *b.left <= 0 {
		return 0, fmt.Errorf("%w: unpacks to more than %d bytes", errDeb, int64(maxDebDataBytes))
	}
	p = p[:min(int64(len(p)), *b.left)]
	n, err := b.r.Read(p)
	*b.left -= int64(n)
	return n, err
}

// debData finds the data member of the ar archive and unpacks it.
func debData(r *bufio.Reader) (io.ReadCloser, error) {
	magic := make([]byte, len(arMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != arMagic {
		return nil, fmt.Errorf("%w: no ar archive", errDeb)
	}
	for range maxDebMembers {
		name, size, err := arHeader(r)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(name, "data.tar") {
			if ext := path.Ext(name); ext != ".tar" && ext != ".xz" && ext != ".zst" && ext != ".gz" {
				return nil, fmt.Errorf("%w: %s is packed in a way that is not known: expected xz, zst or gz", errDeb, name)
			}
			return decompress(name, io.LimitReader(r, size))
		}
		if _, err := io.CopyN(io.Discard, r, size+size%2); err != nil {
			return nil, fmt.Errorf("%w: cut off in %q", errDeb, name)
		}
	}
	return nil, fmt.Errorf("%w: no data archive among the first %d members", errDeb, maxDebMembers)
}

func arHeader(r io.Reader) (name string, size int64, err error) {
	h := make([]byte, arHeaderBytes)
	if _, err := io.ReadFull(r, h); err != nil {
		return "", 0, fmt.Errorf("%w: no data archive", errDeb)
	}
	name = strings.TrimSuffix(strings.TrimRight(string(h[:16]), " "), "/")
	size, err = strconv.ParseInt(strings.TrimRight(string(h[48:58]), " "), 10, 64)
	if err != nil || size < 0 || string(h[58:]) != "`\n" {
		return "", 0, fmt.Errorf("%w: bad ar header", errDeb)
	}
	return name, size, nil
}

// decompress unpacks by the end of name: .xz, .zst, .gz, or nothing known, which is as it is.
func decompress(name string, r io.Reader) (io.ReadCloser, error) {
	switch path.Ext(name) {
	case ".xz":
		// Larger buffers in front: the decoder reads bytes.
		x, err := xz.ReaderConfig{DictCap: 0}.NewReader(bufio.NewReaderSize(r, 64<<10))
		if err != nil {
			return nil, fmt.Errorf("unpack %s: %w", name, err)
		}
		return io.NopCloser(x), nil
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(maxDecoderBytes), zstd.WithDecoderMaxWindow(maxDecoderBytes))
		if err != nil {
			return nil, fmt.Errorf("unpack %s: %w", name, err)
		}
		return z.IOReadCloser(), nil
	case ".gz":
		g, err := gzip.NewReader(r)
		if err != nil {
			return nil, fmt.Errorf("unpack %s: %w", name, err)
		}
		return g, nil
	}
	return io.NopCloser(r), nil
}
