package memory

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func fileOf(t *testing.T, content []byte) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestCopyFile(t *testing.T) {
	m, err := New("test", []Region{{0, 1 << 20}, {HoleEnd, 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	content := make([]byte, 100_000)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	f := fileOf(t, content)
	for _, at := range []Addr{0x1001, HoleEnd + 0x123} {
		if err := m.CopyFile(at, f, 7, 90_000); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 90_000)
		if err := m.ReadAt(got, at); err != nil || !bytes.Equal(got, content[7:90_007]) {
			t.Errorf("at %#x: the bytes are not the file's (%v)", at, err)
		}
	}
	dirty := make([]uint64, 4)
	if err := m.TakeDirty(0, dirty); err != nil {
		t.Fatal(err)
	}
	if want := uint64(1<<23 - 1 - 1); dirty[0] != want { // pages 1..22
		t.Errorf("dirty pages %#x, want %#x", dirty[0], want)
	}
}

func TestCopyFileErrors(t *testing.T) {
	m, err := New("test", []Region{{0, 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	f := fileOf(t, make([]byte, 5000))
	if err := m.CopyFile(0, f, 0, 5001); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that is too short: %v", err)
	}
	if err := m.CopyFile(1<<20-4096, f, 0, 5000); !errors.Is(err, ErrOutOfRange) {
		t.Errorf("beyond the RAM: %v", err)
	}
	_ = f.Close()
	if err := m.CopyFile(0, f, 0, 1); err == nil {
		t.Error("a closed file was copied")
	}
}

// Files of /proc have no pages to send and are read.
func TestCopyFileOfProc(t *testing.T) {
	m, err := New("test", []Region{{0, 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	f, err := os.Open("/proc/self/stat")
	if err != nil {
		t.Skipf("no /proc here: %v", err)
	}
	defer func() { _ = f.Close() }()
	if err := m.CopyFile(0, f, 0, 4); err != nil {
		t.Error(err)
	}
}
