package blk_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/peervisor/peervisor/virtio/blk"
)

func image(t testing.TB, dir string, content []byte) string {
	t.Helper()
	path := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, o blk.Options) blk.Backend {
	t.Helper()
	b, err := blk.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func vec(bufs ...[]byte) *blk.Vec {
	v := new(blk.Vec)
	for _, b := range bufs {
		v.Append(b)
	}
	return v
}

// The ways to open a file that all have to behave like a disk.
var variants = map[string]blk.Options{
	"file":            {},
	"direct":          {Direct: true},
	"snapshot":        {Snapshot: true},
	"snapshot direct": {Snapshot: true, Direct: true},
}

// dirs are a directory on the disk and one in memory, whose file systems differ in what they can.
func dirs(t *testing.T) map[string]string {
	m := map[string]string{"disk": t.TempDir()}
	if d, err := os.MkdirTemp("/dev/shm", "blk-test-*"); err == nil {
		t.Cleanup(func() { os.RemoveAll(d) })
		m["memory"] = d
	}
	return m
}

// Random transfers, zeroes and discards of odd sizes and addresses against a
// model, on every kind of file.
func TestFileAgainstModel(t *testing.T) {
	const size = 600*512 + 77 // neither whole clusters nor whole sectors
	for fs, dir := range dirs(t) {
		for name, o := range variants {
			t.Run(fs+"/"+name, func(t *testing.T) {
				model := pattern(1, size)
				o.Path, o.SnapshotDir = image(t, dir, model), dir
				b, err := blk.Open(o)
				if err != nil {
					if o.Direct && strings.Contains(err.Error(), "direct I/O") {
						t.Skip(err)
					}
					t.Fatal(err)
				}
				defer b.Close()
				exercise(t, b, model)
				if err := b.Flush(); err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(o.Path)
				if err != nil {
					t.Fatal(err)
				}
				want := model
				if o.Snapshot {
					want = pattern(1, size)
				}
				if !bytes.Equal(got, want) {
					t.Error("the file is not what it should be")
				}
			})
		}
	}
}

// exercise changes b and model alike. Discarded ranges are given known content
// again, because what they hold is undefined.
func exercise(t *testing.T, b blk.Backend, model []byte) {
	rng := rand.New(rand.NewPCG(3, 4))
	total := len(model) / 512
	arena := make([]byte, 64<<10)
	for i := range 500 {
		at := rng.IntN(total)
		n := min(1+rng.IntN(40), total-at)
		off, bytesN := int64(at)*512, n*512
		// Memory at odd addresses, in pieces.
		p := arena[rng.IntN(16):][:bytesN]
		k := rng.IntN(bytesN)
		mode := blk.Mode(rng.IntN(2))
		finish := func(v *blk.Vec, call func(*blk.Vec, int64, blk.Mode) (int, error)) {
			got, err := call(v, off, mode)
			if errors.Is(err, blk.ErrWouldBlock) || errors.Is(err, blk.ErrUnsure) {
				var more int
				more, err = call(v, off+int64(got), blk.Wait)
				got += more
			}
			if err != nil || got != bytesN || v.Len() != 0 {
				t.Fatalf("step %d: %d of %d bytes, %d left: %v", i, got, bytesN, v.Len(), err)
			}
		}
		switch rng.IntN(5) {
		case 0, 1:
			copy(p, pattern(byte(i), bytesN))
			copy(model[off:], p)
			finish(vec(p[:k], p[k:]), b.WriteAt)
		case 2:
			clear(model[off:][:bytesN])
			if err := b.(blk.Zeroer).WriteZeroes(off, int64(bytesN), rng.IntN(2) == 0); err != nil {
				t.Fatal(err)
			}
		case 3:
			if err := b.(blk.Discarder).Discard(off, int64(bytesN)); err != nil {
				t.Fatal(err)
			}
			clear(model[off:][:bytesN])
			if err := b.(blk.Zeroer).WriteZeroes(off, int64(bytesN), true); err != nil {
				t.Fatal(err)
			}
		default:
			finish(vec(p[:k], p[k:]), b.ReadAt)
			if !bytes.Equal(p, model[off:][:bytesN]) {
				t.Fatalf("step %d: %d bytes at %d differ", i, bytesN, off)
			}
		}
	}
}

// Writers to different sectors of one cluster at the same time lose nothing.
func TestConcurrentNeighbours(t *testing.T) {
	for name, o := range variants {
		t.Run(name, func(t *testing.T) {
			const size = 256 << 10
			o.Path = image(t, t.TempDir(), pattern(9, size))
			b := open(t, o)
			var wg sync.WaitGroup
			for w := range 8 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for at := w * 512; at < size; at += 8 * 512 {
						if _, err := b.WriteAt(vec(pattern(byte(w), 512)), int64(at), blk.Wait); err != nil {
							t.Error(err)
						}
					}
				}()
			}
			wg.Wait()
			got := make([]byte, size)
			if _, err := b.ReadAt(vec(got), 0, blk.Wait); err != nil {
				t.Fatal(err)
			}
			for at := 0; at < size; at += 512 {
				if !bytes.Equal(got[at:][:512], pattern(byte(at/512%8), 512)) {
					t.Fatalf("the sector at %d is lost", at)
				}
			}
		})
	}
}

func TestTruncatedWhileOpen(t *testing.T) {
	path := image(t, t.TempDir(), pattern(1, 8192))
	b := open(t, blk.Options{Path: path})
	if err := os.Truncate(path, 4096+100); err != nil {
		t.Fatal(err)
	}
	n, err := b.ReadAt(vec(make([]byte, 8192)), 0, blk.Wait)
	if n != 4196 || err == nil {
		t.Fatalf("read %d bytes of a file cut to 4196: %v", n, err)
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, p []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	raw := make([]byte, 4096)
	vdi, vhd := bytes.Clone(raw), bytes.Clone(raw)
	copy(vdi[0x40:], "\x7f\x10\xda\xbe")
	copy(vhd[len(vhd)-512:], "conectix")
	for _, c := range []struct {
		path string
		want []string
	}{
		{filepath.Join(dir, "absent"), []string{"no such file", "truncate -s"}},
		{dir, []string{"neither a regular file nor a block device"}},
		{"/dev/null", []string{"neither a regular file nor a block device"}},
		{write("empty", nil), []string{"0 bytes", "truncate"}},
		{write("short", raw[:511]), []string{"511 bytes"}},
		{write("a.qcow2", append([]byte("QFI\xfb\x00\x00\x00\x03"), raw...)), []string{"a qcow2 image", "qemu-img convert -f qcow2 -O raw"}},
		{write("a.vmdk", append([]byte("KDMV"), raw...)), []string{"qemu-img convert -f vmdk"}},
		{write("a.vdi", vdi), []string{"qemu-img convert -f vdi"}},
		{write("a.vhd", vhd), []string{"qemu-img convert -f vpc"}},
		{write("a.vhdx", append([]byte("vhdxfile"), raw...)), []string{"qemu-img convert -f vhdx"}},
		{write("a.xz", append([]byte("\xfd7zXZ\x00"), raw...)), []string{"xz -dc"}},
		{"bad\x00name", []string{"invalid argument"}},
	} {
		b, err := blk.Open(blk.Options{Path: c.path})
		if err == nil {
			b.Close()
			t.Errorf("%s was opened", c.path)
			continue
		}
		for _, w := range append(c.want, filepath.Base(c.path)) {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: error %q does not say %q", c.path, err, w)
			}
		}
		if strings.Contains(c.want[0], "qemu-img") && !errors.Is(err, blk.ErrFormat) {
			t.Errorf("%v is not ErrFormat", err)
		}
	}
	open(t, blk.Options{Path: filepath.Join(dir, "a.qcow2"), ForceRaw: true})
}

// A second writer is refused with the holder's pid; readers share.
func TestLock(t *testing.T) {
	path := image(t, t.TempDir(), make([]byte, 4096))
	refused := func(o blk.Options) {
		t.Helper()
		b, err := blk.Open(o)
		if err == nil {
			b.Close()
			t.Fatalf("%+v was opened", o)
		}
		if !errors.Is(err, blk.ErrLocked) || !strings.Contains(err.Error(), "by this process") {
			t.Errorf("error %q", err)
		}
	}
	w, err := blk.Open(blk.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	refused(blk.Options{Path: path})
	refused(blk.Options{Path: path, ReadOnly: true})
	refused(blk.Options{Path: path, Snapshot: true})
	open(t, blk.Options{Path: path, NoLock: true})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, blk.Options{Path: path, ReadOnly: true})
	open(t, blk.Options{Path: path, Snapshot: true})
	refused(blk.Options{Path: path})
}

// The lock of another process: it is named, and a child that inherits nothing
// keeps nothing.
func TestLockOfOtherProcess(t *testing.T) {
	if path := os.Getenv("BLK_TEST_LOCK"); path != "" {
		b, err := blk.Open(blk.Options{Path: path})
		if err != nil {
			fmt.Println(err)
			return
		}
		b.Close()
		fmt.Println("opened")
		return
	}
	path := image(t, t.TempDir(), make([]byte, 4096))
	open(t, blk.Options{Path: path})
	cmd := exec.Command(os.Args[0], "-test.run=^TestLockOfOtherProcess$")
	cmd.Env = append(os.Environ(), "BLK_TEST_LOCK="+path)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), fmt.Sprintf("by process %d (", os.Getpid())) {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestNoDescriptorLeaks(t *testing.T) {
	path := image(t, t.TempDir(), make([]byte, 4096))
	count := func() int {
		e, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(e)
	}
	before := count()
	for _, o := range variants {
		o.Path = path
		b, err := blk.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := blk.Open(blk.Options{Path: path}); err == nil {
			t.Fatal("opened twice")
		}
		if err := errors.Join(b.Close(), b.Close()); err != nil {
			t.Fatal(err)
		}
		o.SnapshotDir = "/nonexistent"
		if b, err := blk.Open(o); err == nil {
			b.Close()
		}
	}
	if n := count(); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}
