package modload

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	testDep = `kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/fs/ext4/ext4.ko:
kernel/lib/crc32c.ko:
kernel/a.ko: kernel/b.ko
kernel/b.ko: kernel/a.ko
`
	testAlias = "alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\nalias virtio:d00000004v* virtio_rng\nalias fs-ext4 ext4\nalias virtio:d0000000[12]v* missing\nbad line\n"
	testSoft  = "softdep ext4 pre: crc32c not-there\n"
)

// recorder is a kernel that remembers.
type recorder struct {
	mu     sync.Mutex
	loaded []string
	err    map[string]error
	after  func(name string)
}

func (r *recorder) load(file string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := Name(file)
	r.loaded = append(r.loaded, name)
	if r.after != nil {
		r.after(name)
	}
	return r.err[name]
}

func TestLoadInOrderAndOnce(t *testing.T) {
	r := &recorder{err: map[string]error{"virtio": unix.EEXIST}}
	s := parse(testDep, testAlias, testSoft, r.load)
	for range 2 {
		if err := s.Load("virtio-pci"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Load("ext4"); err != nil {
		t.Fatal(err)
	}
	want := []string{"virtio_ring", "virtio", "virtio_pci", "crc32c", "ext4"}
	if !slices.Equal(r.loaded, want) {
		t.Errorf("loaded %v, want %v", r.loaded, want)
	}
	if s.Load("nothing") == nil {
		t.Error("a module that is not there was loaded")
	}
	if s.Load("a") == nil {
		t.Error("a circle was loaded")
	}
}

func TestFailureReachesTheDependant(t *testing.T) {
	r := &recorder{err: map[string]error{"virtio_ring": errors.New("bad format")}}
	s := parse(testDep, testAlias, testSoft, r.load)
	failed := s.LoadAll([]string{"virtio_pci", "virtio_rng"})
	if len(failed) != 2 || !strings.Contains(failed[0].Error(), "virtio_ring: bad format") {
		t.Errorf("failed: %v", failed)
	}
	if !slices.Equal(r.loaded, []string{"virtio_ring"}) {
		t.Errorf("loaded %v", r.loaded)
	}
}

func TestMatch(t *testing.T) {
	s := parse(testDep, testAlias, testSoft, nil)
	for modalias, want := range map[string][]string{
		"pci:v00001AF4d00001043sv00001AF4sd00001100bc07sc80i00": {"virtio_pci"},
		"virtio:d00000004v00001AF4":                             {"virtio_rng"},
		"virtio:d00000001v00001AF4":                             nil, // its module is not in the set
		"fs-ext4":                                               {"ext4"},
		"":                                                      nil,
	} {
		if got := s.Match(modalias); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", modalias, got, want)
		}
	}
}

// A bus's devices are there only once its driver is.
func TestColdplugFollowsNewDevices(t *testing.T) {
	sys := t.TempDir()
	device := func(bus, name, modalias string) {
		dir := filepath.Join(sys, "bus", bus, "devices", name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "modalias"), []byte(modalias+"\n"), 0o644); err != nil {
			t.Error(err)
		}
	}
	device("pci", "0000:00:01.0", "pci:v00001AF4d00001044sv00001AF4sd00001100bc00scFFi00")
	device("acpi", "x", "fs-ext4") // stands for one that can wait
	r := &recorder{}
	r.after = func(name string) {
		if name == "virtio_pci" {
			device("virtio", "virtio0", "virtio:d00000004v00001AF4")
		}
	}
	s := parse(testDep, testAlias, testSoft, r.load)
	left, failed := s.Coldplug(sys, func(m string) bool { return m == "ext4" })
	if len(failed) > 0 || !slices.Equal(left, []string{"ext4"}) {
		t.Errorf("left %v, failed %v", left, failed)
	}
	if want := []string{"virtio_ring", "virtio", "virtio_pci", "virtio_rng"}; !slices.Equal(r.loaded, want) {
		t.Errorf("loaded %v, want %v", r.loaded, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(testDep, testAlias, testSoft, "virtio:d00000004v00001AF4")
	f.Add("a.ko: b.ko\nb.ko: a.ko\n", "alias [ a\nalias * b\n", "softdep a pre: b a\n", "x")
	f.Fuzz(func(t *testing.T, dep, alias, soft, modalias string) {
		if len(dep) > 4096 {
			return // long chains are slow, no more
		}
		s := parse(dep, alias, soft, func(string) error { return nil })
		for _, name := range s.Match(modalias) {
			_ = s.Load(name)
		}
	})
}
