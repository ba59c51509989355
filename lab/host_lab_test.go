package lab_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kernel"
	"github.com/peervisor/peervisor/kernel/agent"
	"github.com/peervisor/peervisor/lab"
	"github.com/peervisor/peervisor/lab/labtest"
)

var shared = labtest.New(lab.Config{})

func TestMain(m *testing.M) {
	if os.Getenv(orphanEnv) != "" {
		os.Exit(orphan())
	}
	os.Exit(shared.Main(m))
}

// limit bounds one step of a test.
const limit = 3 * time.Minute

func timeLimit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

func closeLater(t *testing.T, host *lab.Host) {
	t.Cleanup(func() {
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestBoot(t *testing.T) {
	host := shared.Host(t)
	t.Logf("up in %v", host.BootTime())
	if got := labtest.Output(t, host, "uname", "-nr"); got != "lab "+host.Kernel()+"\n" {
		t.Errorf("uname -nr: %q", got)
	}
	if got := labtest.Output(t, host, "sh", "-c", "test -c /dev/kvm && cat /sys/module/kvm_amd/parameters/npt"); got != "Y\n" && got != "1\n" {
		t.Errorf("nested paging of kvm_amd: %q", got)
	}
	if got := labtest.Output(t, host, "nproc"); got != "2\n" {
		t.Errorf("nproc: %q", got)
	}
	// Kernel modules come by themselves.
	labtest.Output(t, host, "sh", "-c", "test -c /dev/net/tun && ip link add br0 type bridge && ip link del br0 && tc qdisc add dev lo root netem delay 1ms && tc qdisc del dev lo root")
	// The clock must be the TSC: others cost an exit from the emulation for each reading.
	if got := labtest.Output(t, host, "cat", "/sys/devices/system/clocksource/clocksource0/current_clocksource"); got != "tsc\n" {
		t.Errorf("clock source: %q", got)
	}
}

func TestStatusComesThrough(t *testing.T) {
	host := shared.Host(t)
	for _, c := range []struct {
		script string
		want   int
	}{{"exit 0", 0}, {"exit 3", 3}, {"exit 255", 255}, {"kill -9 $$", 128 + 9}} {
		status, err := host.Exec(timeLimit(t), agent.Command{Argv: []string{"sh", "-c", c.script}})
		if err != nil || status.ExitCode() != c.want {
			t.Errorf("%s: %v, %v", c.script, status, err)
		}
	}
	for _, c := range []struct {
		program string
		code    int
	}{{"no-such-program", 127}, {"/etc/passwd", 126}} {
		_, err := host.Exec(timeLimit(t), agent.Command{Argv: []string{c.program}})
		var start *agent.StartError
		if !errors.As(err, &start) || start.Code != c.code {
			t.Errorf("%s: %v, expected a StartError with code %d", c.program, err, c.code)
		}
	}
}

func TestStreamsComeThrough(t *testing.T) {
	host := shared.Host(t)
	data := make([]byte, 4<<20)
	for i := 0; i < len(data); i += 4 {
		binary.LittleEndian.PutUint32(data[i:], uint32(i)*2654435761)
	}
	var out, errOut bytes.Buffer
	status, err := host.Exec(timeLimit(t), agent.Command{
		Argv: []string{"sh", "-c", "tee /dev/stderr"}, Stdin: bytes.NewReader(data), Stdout: &out, Stderr: &errOut})
	if err != nil || status.ExitCode() != 0 {
		t.Fatal(status, err)
	}
	if !bytes.Equal(out.Bytes(), data) || !bytes.Equal(errOut.Bytes(), data) {
		t.Errorf("%d bytes went in, %d and %d came out, or others", len(data), out.Len(), errOut.Len())
	}
}

func TestContextEndsACommandNotTheHost(t *testing.T) {
	host := shared.Host(t)
	ctx, cancel := context.WithCancel(timeLimit(t))
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := host.Exec(ctx, agent.Command{Argv: []string{"sh", "-c", "echo up; exec sleep 600"}, Stdout: pw})
		done <- err
	}()
	if _, err := io.ReadFull(pr, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Exec returned %v", err)
	}
	labtest.Output(t, host, "true")
}

func TestFilesAndShares(t *testing.T) {
	in, results := t.TempDir(), t.TempDir()
	script := filepath.Join(in, "prog")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ncat '/the work/input'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(in, "input"), []byte("from outside"), 0o644); err != nil {
		t.Fatal(err)
	}
	host, err := labtest.Start(t, lab.Config{
		Name: "shares", CPUs: 1, MemoryMiB: 1024, Binary: script, ResultDir: results,
		Shares: []lab.Share{{Source: in, Target: "/the work", ReadOnly: true}},
	})
	labtest.Check(t, err)
	closeLater(t, host)
	if got := labtest.Output(t, host, "sh", "-c", "peervisor | tee /results/out"); got != "from outside" {
		t.Errorf("the binary read %q from a share", got)
	}
	if b, err := os.ReadFile(filepath.Join(results, "out")); err != nil || string(b) != "from outside" {
		t.Errorf("result: %q, %v", b, err)
	}
	// Writes here are seen there at once, though the file was read before.
	if err := os.WriteFile(filepath.Join(in, "input"), []byte("changed, and longer"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := labtest.Output(t, host, "cat", "/the work/input"); got != "changed, and longer" {
		t.Errorf("after a change: %q", got)
	}
	if got := labtest.Output(t, host, "sh", "-c", "! touch '/the work/x' 2>&1"); !strings.Contains(got, "Read-only") {
		t.Errorf("writing to a read-only share: %q", got)
	}
	// The last words of a host that crashes: its kernel's.
	_, err = host.Exec(timeLimit(t), agent.Command{Argv: []string{"sh", "-c", "echo c > /proc/sysrq-trigger"}})
	if !errors.Is(err, agent.ErrGuestGone) || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("Exec in a host that crashed: %v", err)
	}
	if err := host.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(host.RunDir()); !os.IsNotExist(err) {
		t.Errorf("run directory after Close: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(results, "kernel.log")); err != nil || !bytes.Contains(b, []byte("Linux version")) {
		t.Errorf("kernel.log has %d bytes, %v", len(b), err)
	}
}

// TestNestedGuest: the lab's KVM boots an unmodified kernel.
func TestNestedGuest(t *testing.T) {
	host := shared.Host(t)
	dir, err := labtest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	k, err := kernel.Prepare(timeLimit(t), kernel.Options{CacheDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	status, err := host.Exec(timeLimit(t), agent.Command{
		Argv: []string{"qemu-system-x86_64", "-M", "microvm,rtc=on", "-accel", "kvm", "-cpu", "host", "-m", "256",
			"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
			"-kernel", k.VmlinuxPath, "-initrd", k.InitrdPath,
			"-append", "console=ttyS0 quiet reboot=t panic=-1 peervisor.net=off"},
		// The first bytes go when the guest's driver empties its UART.
		Stdin:  strings.NewReader(strings.Repeat("\n", 64) + "echo sum $((40+2)); uname -r; exit\n"),
		Stdout: &out, Stderr: &errOut})
	if err != nil || status.ExitCode() != 0 {
		t.Fatalf("QEMU in the lab: %v, %v\n%s%s", status, err, out.String(), errOut.String())
	}
	if !strings.Contains(out.String(), "sum 42") || !strings.Contains(out.String(), k.Release) {
		t.Errorf("the nested guest said %q", out.String())
	}
}

// TestPowersOffWithoutItsOwner: the second line of defence, when the signal from
// the kernel does not come.
func TestPowersOffWithoutItsOwner(t *testing.T) {
	host, err := labtest.Start(t, lab.Config{CPUs: 1, MemoryMiB: 1024})
	labtest.Check(t, err)
	closeLater(t, host)
	if err := host.CloseAgent(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-host.Done():
	case <-time.After(limit):
		t.Error("a lab host whose control port closed runs on")
	}
}

// orphanEnv makes the test binary the process that is killed.
const orphanEnv = "PEERVISOR_LAB_ORPHAN_CACHE"

// orphan starts a host, says what it is, and waits for its death.
func orphan() int {
	host, err := lab.Start(context.Background(), lab.Config{CacheDir: os.Getenv(orphanEnv), CPUs: 1, MemoryMiB: 1024})
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error())
		return 1
	}
	_, _ = os.Stdout.WriteString(strconv.Itoa(host.PID()) + " " + host.RunDir() + "\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 1
}

// TestKilledParent: SIGKILL of the owner ends QEMU at once, and the next start
// removes what is left on disk.
func TestKilledParent(t *testing.T) {
	shared.Host(t) // the lab is there, and the image is built
	dir, err := labtest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(timeLimit(t), self)
	cmd.Env = append(os.Environ(), orphanEnv+"="+dir)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 4096)
	n, err := stdout.Read(line)
	if err != nil {
		t.Fatal(err, cmd.Wait())
	}
	pidText, runDir, _ := strings.Cut(strings.TrimSpace(string(line[:n])), " ")
	pid, err := strconv.Atoi(pidText)
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, int((10 * time.Second).Milliseconds())); n != 1 {
		_ = unix.Kill(pid, unix.SIGKILL)
		t.Fatalf("QEMU outlives its killed parent (%v)", err)
	}
	if _, err := os.Stat(runDir); err != nil {
		t.Fatalf("run directory: %v", err)
	}
	host, err := labtest.Start(t, lab.Config{CPUs: 1, MemoryMiB: 512, BootTimeout: time.Millisecond})
	if err == nil {
		_ = host.Close()
		t.Error("a host was up in a millisecond")
	}
	if _, err := os.Stat(runDir); !os.IsNotExist(err) {
		t.Errorf("run directory of a killed owner after the next start: %v", err)
	}
}

// TestImageIsShared: hosts do not see each other's writes, nor does the image.
func TestImageIsShared(t *testing.T) {
	host := shared.Host(t)
	before := sha256.Sum256([]byte(labtest.Output(t, host, "cat", "/etc/passwd")))
	other, err := labtest.Start(t, lab.Config{Name: "other", CPUs: 1, MemoryMiB: 1024})
	labtest.Check(t, err)
	closeLater(t, other)
	labtest.Output(t, other, "sh", "-c", "echo x >/etc/passwd; sync")
	if after := sha256.Sum256([]byte(labtest.Output(t, host, "cat", "/etc/passwd"))); before != after {
		t.Error("one host's write arrived in another")
	}
}
