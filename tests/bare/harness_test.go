package bare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/peervisor/peervisor/internal/testenv"
	"github.com/peervisor/peervisor/kernel/bare"
	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/blk"
	"github.com/peervisor/peervisor/vmm"
	"github.com/peervisor/peervisor/vmm/boot"
)

// limit bounds one guest's life in a test.
const limit = 60 * time.Second

// elf builds the guest once for all tests; TestMain removes it.
var (
	elfDir string
	elf    = sync.OnceValues(func() (string, error) { return bare.Build(elfDir) })
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		if err := childMain(path); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "peervisor-bare-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	elfDir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// guestELF is the guest's path; without gcc or KVM the test is skipped.
func guestELF(t testing.TB) string {
	t.Helper()
	testenv.NeedKVM(t)
	path, err := elf()
	if errors.Is(err, bare.ErrNoCompiler) {
		testenv.Skip(t, testenv.KVM, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// spec is a guest to boot. Zero CPUs and MemMiB mean 1 and 128.
type spec struct {
	cmdline      string
	cpus, memMiB int
	halves       []virtio.Device
	line         func(string) // each line before the result, from another goroutine
}

// config makes the machine's configuration around an open kernel.
func (s spec) config(kernel *os.File, out io.Writer) (vmm.Config, error) {
	st, err := kernel.Stat()
	if err != nil {
		return vmm.Config{}, err
	}
	cfg := vmm.Config{
		Name: "bare", CPUs: max(s.cpus, 1), MemoryBytes: 128 << 20,
		Boot:   boot.Source{Kernel: kernel, KernelSize: st.Size(), KernelName: kernel.Name(), Cmdline: s.cmdline},
		Serial: vmm.SerialConfig{Out: out},
	}
	if s.memMiB != 0 {
		cfg.MemoryBytes = uint64(s.memMiB) << 20
	}
	for i, h := range s.halves {
		cfg.Devices = append(cfg.Devices, vmm.DeviceConfig{Name: fmt.Sprintf("dev%d", i), Half: h, Transport: vmm.TransportMMIO})
		cfg.Boot.Cmdline += fmt.Sprintf(" virtio_mmio.device=4K@%#x:%d", 0xF000_0000+i*0x1000, 16+i) // docs/machine-v1.md
	}
	return cfg, nil
}

// guest is a machine that runs the bare guest.
type guest struct {
	*vmm.Machine
	t      testing.TB
	out    *io.PipeWriter
	read   chan struct{} // closed when the reader has ended
	result bare.Result
	err    error
	once   sync.Once
}

// start boots s. The machine is closed with the test at the latest.
func start(t testing.TB, s spec) *guest {
	t.Helper()
	kernel, err := os.Open(guestELF(t))
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	r, w := io.Pipe()
	cfg, err := s.config(kernel, w)
	if err != nil {
		t.Fatal(err)
	}
	m, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{Machine: m, t: t, out: w, read: make(chan struct{})}
	go func() {
		defer close(g.read)
		g.result, g.err = bare.ReadResult(r, s.line)
		_, _ = io.Copy(io.Discard, r)
	}()
	t.Cleanup(g.close)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	return g
}

// close ends the machine and joins the reader.
func (g *guest) close() {
	g.once.Do(func() {
		if err := g.Close(); err != nil {
			g.t.Errorf("close: %v", err)
		}
		_ = g.out.Close()
		<-g.read
	})
}

// wait returns the guest's result once it has powered off.
func (g *guest) wait() bare.Result {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	exit, err := g.Wait(ctx)
	stats := g.Stats()
	g.close()
	if err != nil {
		g.t.Fatalf("%v; stats %+v", err, stats)
	}
	if exit.Reason != vmm.ReasonPowerOff {
		g.t.Fatalf("guest ended by %v", exit)
	}
	if g.err != nil {
		g.t.Fatal(g.err)
	}
	if err := g.result.Check(); err != nil {
		g.t.Fatal(err)
	}
	return g.result
}

// run boots s and waits for its result.
func run(t testing.TB, s spec) bare.Result {
	t.Helper()
	return start(t, s).wait()
}

// disk is a sparse file of the given size as a block device half.
func disk(t testing.TB, mib, queues int) *blk.Device {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := makeFile(path, mib); err != nil {
		t.Fatal(err)
	}
	d, err := openDisk(path, queues)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close disk: %v", err)
		}
	})
	return d
}

func makeFile(path string, mib int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(int64(mib)<<20), f.Close())
}

func openDisk(path string, queues int) (*blk.Device, error) {
	b, err := blk.Open(blk.Options{Path: path, ForceRaw: true})
	if err != nil {
		return nil, err
	}
	d, err := blk.New(blk.Config{Backend: b, Queues: queues})
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return d, nil
}

// eventually waits for a condition that other goroutines bring about on their way out.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come about within %v", what, limit)
		}
	}
}

// chaos calls round until the time that the environment asks for is over, or
// rounds times.
func chaos(t *testing.T, rounds int, round func(i int)) {
	t.Helper()
	seconds, _ := strconv.Atoi(os.Getenv("PEERVISOR_CHAOS_SECONDS"))
	end := time.Now().Add(time.Duration(seconds) * time.Second)
	for i := 0; i < rounds || time.Now().Before(end); i++ {
		round(i)
	}
}

// openFDs lists this process's descriptors, but for the one that reads the list.
func openFDs(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			out = append(out, to)
		}
	}
	return out
}

// mappings counts those of guest RAM and of vCPUs in this process.
func mappings(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "/memfd:") + strings.Count(string(b), "kvm-vcpu")
}

var mac = net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3}
