package kernel

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// debFile is a file of a package made for a test.
type debFile struct {
	name string
	data []byte
	kind byte // tar's; 0 is a regular file
}

// makeDeb makes a package whose data archive is packed as ext says.
func makeDeb(t testing.TB, ext string, files ...debFile) []byte {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var packed bytes.Buffer
	var w io.WriteCloser
	var err error
	switch ext {
	case ".gz":
		w = gzip.NewWriter(&packed)
	case ".xz":
		w, err = xz.NewWriter(&packed)
	case ".zst":
		w, err = zstd.NewWriter(&packed)
	default:
		w = nopCloser{&packed}
	}
	must(err)
	tw := tar.NewWriter(w)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data)), Typeflag: f.kind}
		if f.kind == tar.TypeSymlink {
			h.Linkname, h.Size = "/etc/passwd", 0
		}
		must(tw.WriteHeader(h))
		if h.Size > 0 {
			_, err := tw.Write(f.data)
			must(err)
		}
	}
	must(tw.Close())
	must(w.Close())
	var deb bytes.Buffer
	deb.WriteString(arMagic)
	member := func(name string, data []byte) {
		fmt.Fprintf(&deb, "%-16s%-12d%-6d%-6d%-8o%-10d`\n", name, 0, 0, 0, 0o644, len(data))
		deb.Write(data)
		if len(data)%2 == 1 {
			deb.WriteByte('\n')
		}
	}
	member("debian-binary", []byte("2.0\n"))
	member("control.tar"+ext, []byte("odd"))
	member("data.tar"+ext, packed.Bytes())
	return deb.Bytes()
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func debContents(deb []byte) (map[string]string, error) {
	got := map[string]string{}
	err := walkDeb(bytes.NewReader(deb), func(name string, _, _ int64, r io.Reader) error {
		b, err := io.ReadAll(r)
		got[name] = string(b)
		return err
	})
	return got, err
}

func TestWalkDeb(t *testing.T) {
	for _, ext := range []string{"", ".gz", ".xz", ".zst"} {
		deb := makeDeb(t, ext,
			debFile{"./boot/vmlinuz-1", []byte("kernel"), 0},
			debFile{"./lib/", nil, tar.TypeDir},
			debFile{"./lib/link", nil, tar.TypeSymlink},
			debFile{"../../../etc/passwd", []byte("no way out"), 0},
			debFile{"/abs", nil, 0})
		got, err := debContents(deb)
		want := map[string]string{"boot/vmlinuz-1": "kernel", "etc/passwd": "no way out", "abs": ""}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, %v", ext, got, err)
		}
	}
}

func TestBadDebs(t *testing.T) {
	good := makeDeb(t, ".gz", debFile{"./a", bytes.Repeat([]byte("a"), 10000), 0})
	for n := range len(good) - 4 {
		if _, err := debContents(good[:n]); err == nil {
			t.Fatalf("cut off after %d of %d bytes: no error", n, len(good))
		}
	}
	unknown := bytes.Replace(makeDeb(t, "", debFile{"a", nil, 0}), []byte("data.tar   "), []byte("data.tar.lz"), 1)
	if _, err := debContents(unknown); !errors.Is(err, errDeb) || !strings.Contains(err.Error(), "expected xz") {
		t.Errorf("unknown compression: %v", err)
	}
	if _, err := debContents([]byte("<html>no such file</html>")); !errors.Is(err, errDeb) {
		t.Errorf("a web page: %v", err)
	}
}

func FuzzDeb(f *testing.F) {
	f.Add(makeDeb(f, "", debFile{"./boot/vmlinuz-1", []byte("kernel"), 0}))
	f.Add(makeDeb(f, ".gz", debFile{"./a", []byte("x"), 0}))
	f.Add(makeDeb(f, ".zst", debFile{"./a", []byte("x"), 0}))
	f.Add([]byte(arMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		err := walkDeb(bytes.NewReader(data), func(name string, _, _ int64, r io.Reader) error {
			if name == "" || name[0] == '/' || strings.Contains("/"+name+"/", "/../") {
				t.Fatalf("name %q leads out", name)
			}
			_, err := io.Copy(io.Discard, io.LimitReader(r, 1<<20))
			return err
		})
		_ = err
	})
}
