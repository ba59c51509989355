package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/peervisor/peervisor/internal/testenv"
)

// asMain makes the test binary behave as the program.
const asMain = "PEERVISOR_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) == "1" {
		main()
		return
	}
	os.Exit(m.Run())
}

type outcome struct {
	stdout, stderr string
	code           int
}

// peervisor runs the program with its state in home.
func peervisor(t *testing.T, home string, args ...string) outcome {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asMain+"=1", "PEERVISOR_HOME="+home, "PEERVISOR_CACHE="+filepath.Join(home, "cache"))
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return outcome{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

func write(t *testing.T, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRunRefusesInOneLine: everything that is wrong with what run is given is one
// line that names it, status 125, and nothing left behind.
func TestRunRefusesInOneLine(t *testing.T) {
	home := t.TempDir()
	file := func(name string, b []byte) string { return write(t, filepath.Join(home, name), b) }
	text := file("text", []byte("hello, this is no kernel, though it is longer than a header would be"))
	elf := file("elf", append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 20)...))
	qcow := file("a.qcow2", append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 4096)...))
	empty := file("empty", nil)
	raw := file("raw.img", make([]byte, 1<<20))
	for _, c := range []struct {
		name string
		args []string
		want string // in the line
		kvm  bool   // the fault shows only once the machine is made
	}{
		{"no such kernel", []string{"--kernel", "/nonexistent/vmlinux"}, "/nonexistent/vmlinux", false},
		{"kernel is a directory", []string{"--kernel", home}, "not a regular file", false},
		{"kernel is a text", []string{"--kernel", text}, "text", true},
		{"kernel is cut off", []string{"--kernel", elf}, "elf", true},
		{"kernel is empty", []string{"--kernel", empty}, "empty", true},
		{"no such initrd", []string{"--kernel", text, "--initrd", "/nonexistent/initrd"}, "/nonexistent/initrd", false},
		{"no such disk", []string{"--kernel", text, "--disk", "/nonexistent/a.img"}, "/nonexistent/a.img", false},
		{"disk is qcow2", []string{"--kernel", text, "--disk", qcow}, "qemu-img convert", false},
		{"disk is empty", []string{"--kernel", text, "--disk", empty}, "empty", false},
		{"disk twice", []string{"--kernel", text, "--disk", raw, "--disk", raw}, "raw.img", false},
		{"disk key", []string{"--disk", "a.img,size=3"}, "does not know the key", false},
		{"net kind", []string{"--net", "bridge=br0"}, "exactly one", false},
		{"hostfwd", []string{"--kernel", text, "--net", "user,hostfwd=tcp:80"}, "hostfwd|host forward", false},
		{"mac", []string{"--net", "user,mac=xx:yy"}, "unicast", false},
		{"serial", []string{"--serial", "com1"}, "exactly one|does not know", false},
		{"rng", []string{"--rng", "dice"}, "does not know", false},
		{"two terminals", []string{"--kernel", text, "--serial", "stdio", "--console", "stdio"}, "exclude each other", false},
		{"cpus 0", []string{"--cpus", "0"}, "--cpus 0", false},
		{"cpus 65", []string{"--kernel", text, "--cpus", "65"}, "1 to 64", false},
		{"cpus text", []string{"--cpus", "many"}, "cpus", false},
		{"memory text", []string{"--memory", "lots"}, "--memory", false},
		{"memory small", []string{"--kernel", text, "--memory", "1M"}, "at least 16M", false},
		{"memory huge", []string{"--kernel", text, "--memory", "4000T"}, "memory", true},
		{"name", []string{"--name", "../x", "--kernel", text}, "name", false},
		{"empty name", []string{"--name", ""}, "empty", false},
		{"unknown flag", []string{"--colour", "red"}, "colour", false},
		{"command with own kernel", []string{"--kernel", text, "--", "ls"}, "built-in initramfs", false},
		{"append", []string{"--kernel", text, "--append", "a\nb"}, "line feeds", false},
		{"transport", []string{"--kernel", text, "--transport", "usb"}, "pci or mmio", false},
		{"tty", []string{"--tty", "perhaps", "--", "ls"}, "auto, on or off", false},
		{"env", []string{"--env", "NOVALUE", "--", "ls"}, "NAME=VALUE", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.kvm {
				testenv.NeedKVM(t)
			}
			r := peervisor(t, home, append([]string{"run"}, c.args...)...)
			found := false
			for _, w := range strings.Split(c.want, "|") {
				found = found || strings.Contains(r.stderr, w)
			}
			if r.code != 125 || !found || strings.Count(r.stderr, "\n") != 1 || r.stdout != "" {
				t.Errorf("exit status %d, stdout %q, stderr:\n%s\nwant 125 and one line with %q", r.code, r.stdout, r.stderr, c.want)
			}
			if left, err := os.ReadDir(filepath.Join(home, "guests")); err == nil && len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestListingsWithoutGuests: an empty listing is empty, not an error.
func TestListingsWithoutGuests(t *testing.T) {
	home := t.TempDir()
	r := peervisor(t, home, "ps", "-a", "--json")
	var list []any
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil || len(list) != 0 || r.code != 0 {
		t.Errorf("ps --json: %q, %v, %d", r.stdout, err, r.code)
	}
	if r := peervisor(t, home, "kernel", "ls", "--json"); strings.TrimSpace(r.stdout) != "[]" || r.code != 0 {
		t.Errorf("kernel ls --json: %+v", r)
	}
	for _, args := range [][]string{{"inspect", "x"}, {"logs", "x"}, {"pause", "x"}, {"stop", "x"}, {"kill", "x"}, {"wait", "x"}, {"rm", "x"}, {"console", "x"}} {
		r := peervisor(t, home, args...)
		if r.code != 1 || !strings.Contains(r.stderr, "no such guest") || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%v: %+v", args, r)
		}
	}
	if r := peervisor(t, home, "ps", "-aq"); r.code != 0 || r.stdout != "" {
		t.Errorf("ps -aq: %+v", r)
	}
	if r := peervisor(t, home, "rm", "-f", "x"); r.code != 0 {
		t.Errorf("rm -f of nobody: %+v", r)
	}
	for _, args := range [][]string{{"pause"}, {"inspect"}, {"inspect", "a", "b"}, {"nosuchcommand"}, {"ps", "--nosuch"}, {"lab", "exec"}, {"lab", "exec", "--nosuch"}, {"completion", "tcsh"}} {
		if r := peervisor(t, home, args...); r.code == 0 || strings.Count(r.stderr, "\n") != 1 || r.stdout != "" {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

// TestHelpSuffices: every command has a help text that names its flags.
func TestHelpSuffices(t *testing.T) {
	home := t.TempDir()
	for _, c := range newApp().Commands {
		if c.Hidden {
			continue
		}
		r := peervisor(t, home, c.Name, "--help")
		if r.code != 0 || !strings.Contains(r.stdout, c.Usage) {
			t.Errorf("%s --help: %d\n%s", c.Name, r.code, r.stdout)
		}
	}
	if r := peervisor(t, home, "man"); r.code != 0 || !strings.Contains(r.stdout, ".SH") || !strings.Contains(r.stdout, "hostfwd") {
		t.Errorf("man: %d, %d bytes", r.code, len(r.stdout))
	}
	for _, sh := range []string{"bash", "zsh", "fish"} {
		if r := peervisor(t, home, "completion", sh); r.code != 0 || !strings.Contains(r.stdout, "peervisor") {
			t.Errorf("completion %s: %+v", sh, r)
		}
	}
}

func TestEscapes(t *testing.T) {
	for _, c := range []struct {
		in, send string
		action   int
	}{
		{"plain", "plain", escNone},
		{"a\x01d", "a", escDetach},
		{"\x01x", "", escEnd},
		{"\x01\x01b", "\x01b", escNone},
		{"\x01h!", "!", escHelp},
		{"\x01q", "\x01q", escNone},
	} {
		var e escapes
		send, action := e.filter([]byte(c.in))
		if string(send) != c.send || action != c.action {
			t.Errorf("%q: sends %q, action %d", c.in, send, action)
		}
		// The same, a byte at a time.
		e, send, action = escapes{}, nil, escNone
		for i := range c.in {
			s, a := e.filter([]byte(c.in[i : i+1]))
			send = append(send, s...)
			if a != escNone {
				action = a
				if a != escHelp {
					break
				}
			}
		}
		if string(send) != c.send || action != c.action {
			t.Errorf("%q by bytes: sends %q, action %d", c.in, send, action)
		}
	}
}
