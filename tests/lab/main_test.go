// Package lab_test holds the tests with unmodified kernels: guests of this
// repo's binary on an emulated host with hardware-style KVM (package lab). One host is
// booted for all of them. They are skipped, with the reason, where the lab cannot be had.
//
// Timings there are inflated many-fold; nothing here measures.
package lab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/peervisor/peervisor/guest"
	"github.com/peervisor/peervisor/internal/testenv"
	"github.com/peervisor/peervisor/kernel"
	"github.com/peervisor/peervisor/kernel/agent"
	"github.com/peervisor/peervisor/lab"
)

// commandTimeout bounds one command on the lab host.
const commandTimeout = 100 * time.Second

var shared struct {
	once sync.Once
	host *lab.Host
	err  error
	// hosts counts those that were replaced.
	hosts int
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.host != nil {
		if err := shared.host.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "close lab host:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// labHost boots the shared host at first use.
func labHost(t *testing.T) *lab.Host {
	t.Helper()
	shared.once.Do(func() { shared.host, shared.err = startHost(t.Logf) })
	if errors.Is(shared.err, lab.ErrUnavailable) {
		testenv.Skip(t, testenv.Lab, shared.err.Error())
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	testenv.Ran(t, testenv.Lab)
	return shared.host
}

func startHost(logf func(string, ...any)) (*lab.Host, error) {
	bin, err := filepath.Abs("../../bin/peervisor")
	if err == nil {
		_, err = os.Stat(bin)
	}
	if err != nil {
		return nil, fmt.Errorf("%w; run `make build` first", err)
	}
	cache, err := guest.DefaultCacheDir()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	step := func(s string) { logf("%s", s) }
	for _, pkg := range []string{"", fullKernel} {
		if _, err := kernel.Prepare(ctx, kernel.Options{CacheDir: cache, Package: pkg, Progress: step}); err != nil {
			return nil, err
		}
	}
	return lab.Start(ctx, lab.Config{CacheDir: cache, Binary: bin, MemoryMiB: 9000, Progress: step})
}

const fullKernel = "linux-image-amd64"

// result is what a command on the lab host gave.
type result struct {
	stdout, stderr string
	code           int
}

// sh runs a shell script on the lab host.
func sh(t *testing.T, script string) result {
	t.Helper()
	return run(t, agent.Command{Argv: []string{"sh", "-c", script}, Dir: "/tmp"})
}

func run(t *testing.T, cmd agent.Command) result {
	t.Helper()
	var out, errOut bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &errOut
	}
	st, err := exec(t, cmd)
	if err != nil && cmd.Stdin == nil {
		// QEMU's emulation of nested SVM stalls the lab host's processors now and then.
		// A fresh host gets one more try; what is at fault itself fails again.
		t.Logf("%q: %v; once more on a fresh lab host", cmd.Argv, err)
		freshHost(t)
		out.Reset()
		errOut.Reset()
		st, err = exec(t, cmd)
	}
	if err != nil {
		freshHost(t)
		t.Fatalf("%q: %v\n%s%s", cmd.Argv, err, out.String(), errOut.String())
	}
	return result{out.String(), errOut.String(), st.ExitCode()}
}

func exec(t *testing.T, cmd agent.Command) (agent.Status, error) {
	t.Helper()
	timeout := commandTimeout
	if d, ok := longCommands[t.Name()]; ok {
		timeout = d
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return labHost(t).Exec(ctx, cmd)
}

// freshHost replaces the shared host, at most maxHosts-1 times in all.
func freshHost(t *testing.T) {
	t.Helper()
	labHost(t)
	if shared.hosts++; shared.hosts == maxHosts {
		t.Fatalf("%d lab hosts were not enough", maxHosts)
	}
	if err := shared.host.Close(); err != nil {
		t.Error(err)
	}
	shared.host, shared.err = startHost(t.Logf)
	if shared.err != nil {
		t.Fatal(shared.err)
	}
}

// longCommands are tests whose commands move much data over emulated processors.
var longCommands = map[string]time.Duration{"TestCatGivesBackAGiB": 6 * time.Minute}

// maxHosts bounds the hosts of one run of the suite.
const maxHosts = 5

// mustSh runs a script that has to succeed and returns its standard output.
func mustSh(t *testing.T, script string) string {
	t.Helper()
	r := sh(t, "set -e\n"+script)
	if r.code != 0 {
		t.Fatalf("%s\nexit status %d\n%s%s", script, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// expect fails unless the output has each of the words.
func expect(t *testing.T, what, out string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("%s: no %q in:\n%s", what, w, out)
		}
	}
}

// removed makes sure that a guest's state is gone after the test.
func removed(t *testing.T, name string) {
	t.Helper()
	t.Cleanup(func() { sh(t, "peervisor rm -f "+name) })
}

// counted counts what is written to it.
type counted struct {
	io.Writer
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n += int64(n)
	return n, err
}
