package kernel_test

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/peervisor/peervisor/kernel"
	"github.com/peervisor/peervisor/kernel/agent"
)

// powerButton presses it by the emulator's monitor.
func powerButton(t *testing.T, socket string) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d := json.NewDecoder(c)
	var greeting, answer map[string]any
	if err := d.Decode(&greeting); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"qmp_capabilities", "system_powerdown"} {
		if _, err := c.Write([]byte(`{"execute":"` + command + `"}`)); err != nil {
			t.Fatal(err)
		}
		for answer = nil; answer["return"] == nil; {
			if err := d.Decode(&answer); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A disk as root, modules by name, and the power button, which ends the command first.
func TestGuestWithADiskAsRoot(t *testing.T) {
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		t.Skip("mke2fs is not installed (package e2fsprogs)")
	}
	_, busybox := testKernel(t)
	dir := t.TempDir()
	tree, disk, monitor := filepath.Join(dir, "tree"), filepath.Join(dir, "disk"), filepath.Join(dir, "monitor")
	for _, d := range []string{"bin", "proc", "sys", "dev", "run", "tmp", "etc", "root"} {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "ls", "sleep", "mount", "hostname", "grep", "echo"} {
		if err := os.WriteFile(filepath.Join(tree, "bin", name), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), mke2fs, "-q", "-t", "ext4", "-d", tree, disk, "64M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	g := startQEMU(t, qemuOptions{
		initramfs: kernel.InitramfsOptions{Modules: []string{"tun"}, Preload: []string{"nbd"}},
		cmdline:   "peervisor.root=/dev/vda:ext4 peervisor.hostname=disk peervisor.time=4000000000",
		args: []string{"-drive", "if=none,id=d,format=raw,file=" + disk, "-device", "virtio-blk-pci,drive=d",
			"-device", "virtio-rng-pci", "-qmp", "unix:" + monitor + ",server=on,wait=off"},
	})
	out, _ := g.sh(`ls /; hostname; grep -c nbd /proc/modules; grep " / " /proc/mounts; cat /sys/class/misc/hw_random/rng_current; echo kept >/file`, nil)
	for _, want := range []string{"lost+found", "disk\n", "/dev/vda / ext4 rw", "virtio_rng"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
	if out, _ := g.sh("echo $(cat /proc/uptime) >/dev/null; date +%s 2>/dev/null || cat /proc/driver/rtc", nil); strings.HasPrefix(out, "1") {
		t.Errorf("the clock was not set: %q", out)
	}

	p, err := g.client.Run(g.ctx, agent.Command{Argv: []string{"sh", "-c", `trap "echo bye; exit 9" TERM; echo ready; while :; do sleep 1; done`}, Stdout: g.notices})
	if err != nil {
		t.Fatal(err)
	}
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for !strings.Contains(g.notices.String(), "ready") || !strings.Contains(g.log.String(), "Power Button") {
		select {
		case <-retry.C:
		case <-g.ctx.Done():
			t.Fatal("the command did not start, or the button's driver did not load")
		}
	}
	powerButton(t, monitor)
	if status, err := p.Wait(); err != nil || status.Code != 9 || !strings.Contains(g.notices.String(), "bye") {
		t.Errorf("the command got %+v, %v", status, err)
	}
	g.awaitEnd()
	e2fsck, err := exec.LookPath("e2fsck")
	if err != nil {
		t.Skip("e2fsck is not installed (package e2fsprogs)")
	}
	if out, err := exec.CommandContext(t.Context(), e2fsck, "-fn", disk).CombinedOutput(); err != nil {
		t.Errorf("the disk is not clean: %v: %s", err, out)
	}
}

// A root that is not there: every command says so, and the guest still ends in order.
func TestGuestWithoutItsRoot(t *testing.T) {
	g := startQEMU(t, qemuOptions{cmdline: "peervisor.root=/dev/none:ext4 peervisor.bad peervisor.net=nonsense"})
	_, err := g.client.Run(g.ctx, agent.Command{Argv: []string{"true"}})
	if start, ok := err.(*agent.StartError); !ok || start.Code != 125 || !strings.Contains(start.Message, "/dev/none") {
		t.Errorf("run: %v", err)
	}
	if notices := g.notices.String(); !strings.Contains(notices, "peervisor.net=nonsense") || !strings.Contains(notices, "/dev/none") {
		t.Errorf("notices %q", notices)
	}
	// The host goes away, and the guest with it.
	_ = g.client.Close()
	g.awaitEnd()
}

// Without an agent there is a shell on the console, and its end is the guest's.
func TestGuestWithoutAnAgent(t *testing.T) {
	console := filepath.Join(t.TempDir(), "console")
	g := startQEMU(t, qemuOptions{noAgent: true, serial: "unix:" + console + ",server=on,wait=off"})
	c := g.dial(console)
	defer c.Close()
	deadline, _ := g.ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	expect := func(want string) {
		t.Helper()
		var seen []byte
		for b := make([]byte, 1); !bytes.HasSuffix(seen, []byte(want)); {
			if _, err := c.Read(b); err != nil {
				t.Fatalf("wait for %q: %v after %q", want, err, seen)
			}
			seen = append(seen, b...)
		}
	}
	enter := func(line string) {
		t.Helper()
		if _, err := c.Write([]byte(line + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	expect("guest:/# ")
	enter("cat /proc/1/comm; echo $((6*7)); stty -echo; tty")
	expect("init\r\n42\r\n/dev/ttyS0\r\n")
	enter("poweroff") // busybox's, which is a signal to PID 1
	g.awaitEnd()
}
