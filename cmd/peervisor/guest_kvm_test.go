package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/peervisor/peervisor/guest"
	"github.com/peervisor/peervisor/internal/testenv"
	"github.com/peervisor/peervisor/kernel/bare"
)

// bareKernel builds the bare guest, which this machine's KVM runs whatever its kind.
func bareKernel(t *testing.T, dir string) string {
	t.Helper()
	testenv.NeedKVM(t)
	elf, err := bare.Build(filepath.Join(dir, "bare"))
	if errors.Is(err, bare.ErrNoCompiler) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return elf
}

func (o outcome) must(t *testing.T, what string, words ...string) {
	t.Helper()
	if o.code != 0 {
		t.Fatalf("%s: exit status %d\n%s%s", what, o.code, o.stdout, o.stderr)
	}
	for _, w := range words {
		if !strings.Contains(o.stdout, w) {
			t.Errorf("%s: no %q in:\n%s", what, w, o.stdout)
		}
	}
}

// TestForegroundGuest: a guest with a kernel of the user's own has the serial line on
// standard output, ends by powering off, and leaves its log and counters.
func TestForegroundGuest(t *testing.T) {
	home := t.TempDir()
	elf := bareKernel(t, home)
	r := peervisor(t, home, "run", "--name", "fg", "--net", "none", "--kernel", elf, "--append", "bare.test=hello")
	r.must(t, "run", "B")
	peervisor(t, home, "logs", "fg").must(t, "logs", "B")
	peervisor(t, home, "inspect", "fg").must(t, "inspect", `"reason": "poweroff"`, `"firstEntry"`, `"kind": "io"`)
	peervisor(t, home, "rm", "fg").must(t, "rm", "fg")
	r = peervisor(t, home, "run", "--rm", "--net", "none", "--kernel", elf, "--append", "bare.test=hello")
	r.must(t, "run --rm", "B")
	if r := peervisor(t, home, "ps", "-aq"); r.stdout != "" {
		t.Errorf("--rm left %q", r.stdout)
	}
}

// TestDetachedGuestIsControlledAndItsCrashSeen walks a background guest through
// pause, resume, a second start of its name, a lock on its disk, kill, and the death of
// its process.
func TestDetachedGuestIsControlledAndItsCrashSeen(t *testing.T) {
	home := t.TempDir()
	elf := bareKernel(t, home)
	disk := write(t, filepath.Join(home, "d.img"), make([]byte, 1<<20))
	start := func() {
		t.Helper()
		peervisor(t, home, "run", "-d", "--name", "bg", "--net", "none", "--transport", "mmio", "--kernel", elf,
			"--disk", disk, "--append", "bare.test=dirty mib=8 seconds=600").must(t, "run -d", "bg\n")
	}
	start()
	peervisor(t, home, "ps").must(t, "ps", "bg", "running")
	peervisor(t, home, "inspect", "bg").must(t, "inspect", `"status": "running"`, `"disk0"`)
	peervisor(t, home, "pause", "bg").must(t, "pause")
	peervisor(t, home, "pause", "bg").must(t, "pause twice")
	peervisor(t, home, "ps").must(t, "ps", "paused")
	peervisor(t, home, "resume", "bg").must(t, "resume")
	if r := peervisor(t, home, "run", "--name", "bg", "--net", "none", "--kernel", elf); r.code != 125 || !strings.Contains(r.stderr, "taken") {
		t.Errorf("second guest of one name: %+v", r)
	}
	if r := peervisor(t, home, "run", "--net", "none", "--kernel", elf, "--disk", disk); r.code != 125 || !strings.Contains(r.stderr, "d.img") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("second writer of one disk: %+v", r)
	}
	peervisor(t, home, "kill", "bg").must(t, "kill")
	peervisor(t, home, "wait", "bg").must(t, "wait", "122\n")
	peervisor(t, home, "rm", "bg").must(t, "rm")

	start()
	g, err := (&guest.Store{Home: home, RunDir: filepath.Join(home, "run")}).Get("bg")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(g.State.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	peervisor(t, home, "wait", "bg").must(t, "wait", "125\n")
	peervisor(t, home, "ps", "-a").must(t, "ps -a", "crashed")
	peervisor(t, home, "inspect", "bg").must(t, "inspect", "process "+strconv.Itoa(g.State.PID)+" is gone")
	start2 := peervisor(t, home, "run", "--rm", "--net", "none", "--kernel", elf, "--append", "bare.test=hello", "--disk", disk)
	start2.must(t, "the disk of a crashed guest")
	peervisor(t, home, "rm", "bg").must(t, "rm")
}

// TestInterruptedStart: SIGTERM to a foreground guest without a command ends it with
// 122, and its socket and process are gone.
func TestInterruptedStart(t *testing.T) {
	home := t.TempDir()
	elf := bareKernel(t, home)
	cmd := exec.Command(os.Args[0], "run", "--name", "sig", "--net", "none", "--kernel", elf, "--append", "bare.test=dirty mib=8 seconds=600")
	cmd.Env = append(os.Environ(), asMain+"=1", "PEERVISOR_HOME="+home, "PEERVISOR_CACHE="+home)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for !strings.Contains(peervisor(t, home, "ps").stdout, "running") {
		if time.Now().After(deadline) {
			t.Fatal("the guest does not run")
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the status says it
	if code := cmd.ProcessState.ExitCode(); code != guest.ExitKilled {
		t.Errorf("exit status %d", code)
	}
	if left, err := os.ReadDir(filepath.Join(home, "run")); err != nil || len(left) != 0 {
		t.Errorf("sockets left: %v, %v", left, err)
	}
}
