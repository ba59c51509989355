package kernel_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/peervisor/peervisor/kernel"
	"github.com/peervisor/peervisor/kernel/agent"
	"github.com/peervisor/peervisor/kernel/agent/control"
)

// qemuBound is how long one emulated guest may take in all. It takes about ten
// seconds on an idle machine.
const qemuBound = 2 * time.Minute

const qemuProgram = "qemu-system-x86_64"

// testInit builds the guest's init as it is in the tree now, once.
var testInit = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "peervisor-init-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	out := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "./init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build init: %w: %s", err, b)
	}
	return os.ReadFile(out)
})

// testCache is where the project's tests keep kernels: PEERVISOR_CACHE, or the machine's
// for root and the user's for others.
func testCache(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("PEERVISOR_CACHE"); dir != "" {
		return dir
	}
	if os.Geteuid() == 0 {
		return "/var/cache/peervisor"
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("no cache directory: set PEERVISOR_CACHE (%v)", err)
	}
	return filepath.Join(dir, "peervisor")
}

// testKernel returns a kernel and a busybox, fetched if need be.
func testKernel(t *testing.T) (*kernel.Kernel, string) {
	t.Helper()
	cache := testCache(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	opts := kernel.Options{CacheDir: cache, Progress: func(step string) { t.Log(step) }}
	k, err := kernel.Lookup(cache, "")
	if errors.Is(err, kernel.ErrNotFetched) {
		k, err = kernel.Fetch(ctx, opts)
	}
	if err != nil {
		t.Skipf("no kernel for the guest: %v", err)
	}
	busybox, err := kernel.LookupBusybox(cache)
	if errors.Is(err, kernel.ErrNotFetched) {
		busybox, err = kernel.FetchBusybox(ctx, opts)
	}
	if err != nil {
		t.Skipf("no busybox for the guest: %v", err)
	}
	return k, busybox
}

// qemuGuest is a guest of the emulator, and the agent's client to it.
type qemuGuest struct {
	t       *testing.T
	ctx     context.Context
	client  *agent.Client
	log     *lockedBuffer // from the log port
	notices *lockedBuffer
	serial  string // file
	exited  chan error
	started time.Time
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

type qemuOptions struct {
	initramfs kernel.InitramfsOptions // Kernel, Init and Busybox are set here
	cmdline   string
	args      []string
	noAgent   bool
	serial    string // where its text goes; default: a file
}

// startQEMU boots a guest under the emulator's own accelerator: no /dev/kvm needed.
func startQEMU(t *testing.T, o qemuOptions) *qemuGuest {
	t.Helper()
	if _, err := exec.LookPath(qemuProgram); err != nil {
		t.Skipf("%s is not installed (package qemu-system-x86)", qemuProgram)
	}
	if testing.Short() {
		t.Skip("boots an emulated machine: not in short mode")
	}
	o.initramfs.Kernel, o.initramfs.Busybox = testKernel(t)
	init, err := testInit()
	if err != nil {
		t.Fatal(err)
	}
	o.initramfs.Init = init
	dir := t.TempDir()
	initrd := filepath.Join(dir, "initrd")
	var archive bytes.Buffer
	if err := kernel.BuildInitramfs(&archive, o.initramfs); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(initrd, archive.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), qemuBound)
	g := &qemuGuest{t: t, ctx: ctx, log: &lockedBuffer{}, notices: &lockedBuffer{}, serial: filepath.Join(dir, "serial"), exited: make(chan error, 1)}
	if o.serial == "" {
		o.serial = "file:" + g.serial
	}
	args := []string{"-accel", "tcg", "-cpu", "max", "-M", "q35", "-m", "256M", "-smp", "2", "-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", o.initramfs.Kernel.VmlinuxPath, "-initrd", initrd,
		"-append", "console=ttyS0 panic=-1 " + o.cmdline, "-serial", o.serial}
	if !o.noAgent {
		args = append(args, "-device", "virtio-serial-pci,id=ser,max_ports=8")
		for i, name := range agentPorts {
			args = append(args, "-chardev", fmt.Sprintf("socket,id=c%d,path=%s,server=on,wait=off", i, filepath.Join(dir, name)),
				"-device", fmt.Sprintf("virtserialport,bus=ser.0,nr=%d,chardev=c%d,name=%s", i+1, i, name))
		}
	}
	cmd := exec.CommandContext(ctx, qemuProgram, append(args, o.args...)...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	g.started = time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		err := cmd.Wait()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, complaints.String())
		}
		g.exited <- err
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		if g.client != nil {
			_ = g.client.Close()
		}
		if t.Failed() {
			serial, _ := os.ReadFile(g.serial)
			t.Logf("serial:\n%s\nlog port:\n%s\nnotices:\n%s", serial, g.log, g.notices)
		}
	})
	if !o.noAgent {
		g.connect(dir)
	}
	return g
}

var agentPorts = []string{control.PortCtl, control.PortStdin, control.PortStdout, control.PortStderr, control.PortLog}

// connect makes the agent's client.
func (g *qemuGuest) connect(dir string) {
	g.t.Helper()
	var conns []net.Conn
	for _, name := range agentPorts {
		conns = append(conns, g.dial(filepath.Join(dir, name)))
	}
	g.client = agent.New(agent.Ports{Ctl: conns[0], Stdin: conns[1], Stdout: conns[2], Stderr: conns[3], Log: conns[4]},
		agent.Options{Log: g.log, Notice: func(m string) { fmt.Fprintln(g.notices, m) }})
}

// dial connects to a socket that the emulator makes soon after its start.
func (g *qemuGuest) dial(socket string) net.Conn {
	g.t.Helper()
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for {
		c, err := net.Dial("unix", socket)
		if err == nil {
			return c
		}
		select {
		case <-retry.C:
		case err := <-g.exited:
			g.t.Fatalf("the emulator ended: %v", err)
		}
	}
}

// sh runs a script in the guest.
func (g *qemuGuest) sh(script string, stdin io.Reader) (stdout string, status agent.Status) {
	g.t.Helper()
	var o, e bytes.Buffer
	p, err := g.client.Run(g.ctx, agent.Command{Argv: []string{"sh", "-c", script}, Stdin: stdin, Stdout: &o, Stderr: &e})
	if err != nil {
		g.t.Fatalf("run %q: %v", script, err)
	}
	status, err = p.Wait()
	if err != nil {
		g.t.Fatalf("wait for %q: %v", script, err)
	}
	if e.Len() > 0 {
		g.t.Logf("%q wrote to stderr: %s", script, e.String())
	}
	return o.String(), status
}

// powerOff ends the guest in the orderly way.
func (g *qemuGuest) powerOff() {
	g.t.Helper()
	if err := g.client.PowerOff(g.ctx); err != nil {
		g.t.Fatal(err)
	}
	start := time.Now()
	g.awaitEnd()
	// Waiting in vain for processes to end would be four seconds.
	if took := time.Since(start); took > 3*time.Second {
		g.t.Errorf("it took %v to power off with no process left", took)
	}
}

func (g *qemuGuest) awaitEnd() {
	g.t.Helper()
	select {
	case err := <-g.exited:
		if err != nil {
			g.t.Fatalf("emulator: %v", err)
		}
	case <-g.ctx.Done():
		g.t.Fatal("the guest did not end")
	}
}

func TestGuestRunsCommands(t *testing.T) {
	g := startQEMU(t, qemuOptions{args: []string{"-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,romfile="}})
	hello, err := g.client.Hello(g.ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("hello from %s after %v", hello.Kernel, time.Since(g.started))
	out, status := g.sh("uname -r; cat; exit 3", strings.NewReader("in"))
	t.Logf("first command done after %v", time.Since(g.started))
	if out != hello.Kernel+"\nin" || status.ExitCode() != 3 {
		t.Errorf("got %q, %+v", out, status)
	}
	out, _ = g.sh("ip -4 -o addr show eth0; ip route; cat /etc/resolv.conf", nil)
	for _, want := range []string{"10.0.2.15/24", "default via 10.0.2.2", "nameserver 10.0.2.3"} {
		if !strings.Contains(out, want) {
			t.Errorf("network: no %q in %q", want, out)
		}
	}
	if out, _ = g.sh("modprobe loop && grep ^loop /proc/modules", nil); !strings.HasPrefix(out, "loop ") {
		t.Errorf("modprobe: %q", out)
	}
	g.checkStreams()
	g.powerOff()
	if log := g.log.String(); !strings.Contains(log, "Linux version") || !strings.Contains(log, "Run /init") {
		t.Errorf("the log does not start at the ring's start: %.200q", log)
	}
	if n := g.notices.String(); n != "" {
		t.Errorf("notices: %s", n)
	}
}

// checkStreams puts the virtio ports themselves to the test: many bytes, many
// commands, a terminal.
func (g *qemuGuest) checkStreams() {
	g.t.Helper()
	want := make([]byte, 16<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(want)
	start := time.Now()
	if out, _ := g.sh("cat", bytes.NewReader(want)); out != string(want) {
		g.t.Errorf("%d random bytes came back as %d others", len(want), len(out))
	}
	g.t.Logf("%d MiB through cat in %v", len(want)>>20, time.Since(start))
	start = time.Now()
	for i := range 20 {
		if out, _ := g.sh(fmt.Sprint("echo ", i), nil); out != fmt.Sprintln(i) {
			g.t.Errorf("command %d gave %q", i, out)
		}
	}
	g.t.Logf("20 commands in %v", time.Since(start))
	var out bytes.Buffer
	p, err := g.client.Run(g.ctx, agent.Command{Argv: []string{"sh", "-c", "stty size; tty"}, TTY: true, Rows: 33, Cols: 99, Stdout: &out})
	if err != nil {
		g.t.Fatal(err)
	}
	if status, err := p.Wait(); err != nil || status.Code != 0 || out.String() != "33 99\r\n/dev/pts/0\r\n" {
		g.t.Errorf("terminal: %q, %+v, %v", out.String(), status, err)
	}
	_, err = g.client.Run(g.ctx, agent.Command{Argv: []string{"no-such-program"}})
	if start, ok := err.(*agent.StartError); !ok || start.Code != 127 {
		g.t.Errorf("a program that is not there: %v", err)
	}
}
