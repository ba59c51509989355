package blk_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/peervisor/peervisor/virtio/blk"
)

// A block device of the host, by way of a loop device.
func TestBlockDevice(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making a loop device needs root")
	}
	const size = 4 << 20
	model := pattern(1, size)
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, model, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", path).CombinedOutput()
	if err != nil {
		t.Skipf("losetup: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v: %s", err, out)
		}
	})
	for name, o := range map[string]blk.Options{"cached": {}, "direct": {Direct: true}} {
		t.Run(name, func(t *testing.T) {
			o.Path = dev
			b, err := blk.Open(o)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if in := b.Info(); in.SizeBytes != size || in.BlockBytes != 512 {
				t.Fatalf("%+v", in)
			}
			exercise(t, b, model)
			if err := b.Flush(); err != nil {
				t.Fatal(err)
			}
			if b2, err := blk.Open(o); err == nil {
				b2.Close()
				t.Error("opened twice for writing")
			}
		})
	}
}
