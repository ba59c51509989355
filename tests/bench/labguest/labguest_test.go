package labguest

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestStampBzImageMovesTheEntry(t *testing.T) {
	k := make([]byte, 0x2000)
	k[0x1f1] = 4
	copy(k[0x202:], "HdrS")
	start := 5 * 512
	copy(k[start:], bzEntry)
	if err := stampBzImage(k); err != nil {
		t.Fatal(err)
	}
	p := k[start:]
	if p[0] != 0xe9 || binary.LittleEndian.Uint32(p[1:])+5 != 0x1e0 {
		t.Errorf("entry % x does not lead to the stamp", p[:8])
	}
	stub := p[0x1e0:0x200]
	want := append(append([]byte(nil), stampCode...), bzEntry...)
	if !bytes.HasPrefix(stub, want) {
		t.Errorf("stamp % x", stub)
	}
	back := stub[len(want):]
	if back[0] != 0xe9 || 0x1e0+uint32(len(want))+5+binary.LittleEndian.Uint32(back[1:]) != uint32(len(bzEntry)) {
		t.Errorf("jump back % x", back[:5])
	}
	if err := stampBzImage(k); err == nil {
		t.Error("a kernel that is stamped was stamped again")
	}
}

func TestStampKernelRefusesOtherFiles(t *testing.T) {
	for _, text := range []string{"", "\x7fELF", strings.Repeat("x", 0x2000)} {
		path := filepath.Join(t.TempDir(), "k")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := StampKernel(path, path+".out"); err == nil {
			t.Errorf("%.10q was stamped", text)
		}
	}
}

func TestWithInitAppendsAnArchive(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	if err := os.WriteFile(base, []byte("first"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := BuildNetInitrd(base, filepath.Join(dir, "net")); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "net"))
	if err != nil || !bytes.HasPrefix(b, []byte("first\x00\x00\x00070701")) || !bytes.Contains(b, []byte("iperf3 -f m")) {
		t.Errorf("archive %.40q, %v", b, err)
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("gcc is not installed")
	}
	if err := BuildBootInitrd(t.Context(), base, filepath.Join(dir, "boot")); err != nil {
		t.Fatal(err)
	}
}
