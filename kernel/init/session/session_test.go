package session_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/peervisor/peervisor/kernel/agent"
	"github.com/peervisor/peervisor/kernel/init/session"
)

func TestStreamsStatusAndEnvironment(t *testing.T) {
	r := newRig(t, agent.Options{})
	hello, err := r.client.Hello(r.ctx)
	if err != nil || hello.Kernel != "test" || hello.Version != 1 {
		t.Fatalf("hello: %+v, %v", hello, err)
	}
	o, e, status := r.sh("cat; echo err >&2; exit 3", strings.NewReader("in"))
	if o != "in" || e != "err\n" || status.ExitCode() != 3 {
		t.Errorf("got %q, %q, %+v", o, e, status)
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	r.run(agent.Command{Argv: []string{"sh", "-c", "pwd; echo $A $HOME $PATH"}, Dir: dir, Env: []string{"A=b", "HOME=/h"}, Stdout: &out})
	if want := dir + "\nb /h /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	_, _, status = r.sh("kill -9 $$", nil)
	if status.Signal != syscall.SIGKILL || status.ExitCode() != 137 {
		t.Errorf("killed: %+v", status)
	}
}

// randomReader gives n random bytes and hashes what it gave.
type randomReader struct {
	src  *rand.ChaCha8
	left int64
	sum  hash.Hash
}

func newRandomReader(n int64) *randomReader {
	return &randomReader{src: rand.NewChaCha8([32]byte{1}), left: n, sum: sha256.New()}
}

func (r *randomReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.left)]
	n, _ := r.src.Read(p)
	r.left -= int64(n)
	r.sum.Write(p[:n])
	return n, nil
}

func TestEightBitCleanAndExact(t *testing.T) {
	size := int64(256 << 20)
	if testing.Short() {
		size = 16 << 20
	}
	r := newRig(t, agent.Options{})
	in, out := newRandomReader(size), sha256.New()
	start := time.Now()
	status := r.run(agent.Command{Argv: []string{"cat"}, Stdin: in, Stdout: out})
	t.Logf("%d MiB through cat in %v", size>>20, time.Since(start))
	if status.ExitCode() != 0 || status.StdoutBytes != uint64(size) || status.StderrBytes != 0 {
		t.Errorf("status %+v", status)
	}
	if !bytes.Equal(in.sum.Sum(nil), out.Sum(nil)) {
		t.Error("what came back differs")
	}
}

// Sizes around the buffers' and pipes', where an off by one would show.
func TestAwkwardSizes(t *testing.T) {
	r := newRig(t, agent.Options{})
	for _, n := range []int{0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 128<<10 - 1, 128 << 10, 128<<10 + 1, 256<<10 + 7} {
		want := bytes.Repeat([]byte{0, 0xFF, '\n', 4}, n/4+1)[:n]
		var out bytes.Buffer
		r.run(agent.Command{Argv: []string{"cat"}, Stdin: bytes.NewReader(want), Stdout: &out})
		if !bytes.Equal(out.Bytes(), want) {
			t.Errorf("%d bytes came back as %d", n, out.Len())
		}
	}
}

func TestInputThatNobodyReadsIsNotTheNextCommands(t *testing.T) {
	r := newRig(t, agent.Options{Notice: func(m string) { t.Errorf("notice: %s", m) }})
	for i := range 20 {
		r.run(agent.Command{Argv: []string{"true"}, Stdin: newRandomReader(1 << 20)})
		want := strconv.Itoa(i)
		if o, _, _ := r.sh("cat", strings.NewReader(want)); o != want {
			t.Fatalf("round %d: got %q", i, o)
		}
	}
}

// A reader that blocks for ever is left behind; one with deadlines is woken and loses nothing.
func TestInputThatBlocks(t *testing.T) {
	r := newRig(t, agent.Options{})
	never, w := io.Pipe()
	t.Cleanup(func() { _ = w.Close() })
	r.run(agent.Command{Argv: []string{"true"}, Stdin: never})

	shared, feed := pipe(t)
	defer shared.Close()
	defer feed.Close()
	r.run(agent.Command{Argv: []string{"true"}, Stdin: shared})
	if _, err := feed.WriteString("for the second"); err != nil {
		t.Fatal(err)
	}
	feed.Close()
	if o, _, _ := r.sh("cat", shared); o != "for the second" {
		t.Errorf("got %q", o)
	}
}

func TestManySequentialCommands(t *testing.T) {
	r := newRig(t, agent.Options{})
	for i := range 300 {
		want := strconv.Itoa(i)
		o, e, status := r.sh("echo "+want+"; echo x"+want+" >&2; exit "+strconv.Itoa(i%200), nil)
		if o != want+"\n" || e != "x"+want+"\n" || status.Code != i%200 {
			t.Fatalf("command %d: %q, %q, %+v", i, o, e, status)
		}
	}
	before := countFDs(t)
	for range 20 {
		r.sh("cat", strings.NewReader("x"))
		r.run(agent.Command{Argv: []string{"true"}, TTY: true})
	}
	if after := countFDs(t); after > before {
		t.Errorf("descriptors grew from %d to %d", before, after)
	}
}

func countFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestNotFoundAndNotRunnable(t *testing.T) {
	r := newRig(t, agent.Options{})
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	script := file("plain", "#!/bin/sh\n", 0o644)
	noInterpreter := file("dangling", "#!/no/such\n", 0o755)
	junk := file("junk", "\x7fnothing", 0o755)
	for _, tc := range []struct {
		name string
		cmd  agent.Command
		code int
	}{
		{"not in PATH", agent.Command{Argv: []string{"no-such-program"}}, 127},
		{"no such file", agent.Command{Argv: []string{"/no/such"}}, 127},
		{"no interpreter", agent.Command{Argv: []string{noInterpreter}}, 127},
		{"not executable", agent.Command{Argv: []string{script}}, 126},
		{"not executable in PATH", agent.Command{Argv: []string{"plain"}, Env: []string{"PATH=" + dir}}, 126},
		{"directory", agent.Command{Argv: []string{"/etc"}}, 126},
		{"not a program", agent.Command{Argv: []string{junk}}, 126},
		{"no such directory", agent.Command{Argv: []string{"true"}, Dir: "/no/such"}, 125},
		{"terminal, not found", agent.Command{Argv: []string{"no-such-program"}, TTY: true}, 127},
	} {
		_, err := r.client.Run(r.ctx, tc.cmd)
		var start *agent.StartError
		if !errors.As(err, &start) || start.Code != tc.code {
			t.Errorf("%s: %v, want code %d", tc.name, err, tc.code)
		}
	}
	if o, _, _ := r.sh("echo alive", nil); o != "alive\n" {
		t.Errorf("afterwards: %q", o)
	}
}

// failingWriter takes so many bytes, then fails.
type failingWriter struct {
	room int
	err  error
}

func (w *failingWriter) Write(p []byte) (int, error) {
	if len(p) > w.room {
		n := w.room
		w.room = 0
		return n, w.err
	}
	w.room -= len(p)
	return len(p), nil
}

func TestClosedOutputIsSIGPIPE(t *testing.T) {
	r := newRig(t, agent.Options{})
	var stderr bytes.Buffer
	status := r.run(agent.Command{Argv: []string{"yes"}, Stdout: &failingWriter{1000, syscall.EPIPE}, Stderr: &stderr})
	if status.Signal != syscall.SIGPIPE {
		t.Errorf("yes into a closed reader: %+v", status)
	}
	status = r.run(agent.Command{Argv: []string{"sh", "-c", "yes >&2; echo $?"}, Stdout: &stderr, Stderr: &failingWriter{1000, io.ErrClosedPipe}})
	if status.ExitCode() != 0 || strings.TrimSpace(stderr.String()) != "141" {
		t.Errorf("yes on stderr: %+v, %q", status, stderr.String())
	}

	full := errors.New("disk full")
	p, err := r.client.Run(r.ctx, agent.Command{Argv: []string{"yes"}, Stdout: &failingWriter{1000, full}})
	if err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); !errors.Is(err, full) || status.Signal != syscall.SIGPIPE {
		t.Errorf("a writer that is broken: %+v, %v", status, err)
	}
}

func TestHugeStderrBesideStdout(t *testing.T) {
	r := newRig(t, agent.Options{})
	var o, e countWriter
	status := r.run(agent.Command{Argv: []string{"sh", "-c", "head -c 64M /dev/zero >&2 & head -c 8M /dev/zero; wait"}, Stdout: &o, Stderr: &e})
	if o != 8<<20 || e != 64<<20 || status.StderrBytes != 64<<20 {
		t.Errorf("got %d and %d bytes, %+v", o, e, status)
	}
}

type countWriter int64

func (w *countWriter) Write(p []byte) (int, error) {
	*w += countWriter(len(p))
	return len(p), nil
}

// slowWriter gives a command that wrote its last byte long ago the time to be taken
// for one that left its streams to children.
type slowWriter struct {
	bytes.Buffer
	first bool
}

func (w *slowWriter) Write(p []byte) (int, error) {
	if !w.first {
		w.first = true
		<-time.After(1500 * time.Millisecond)
	}
	return w.Buffer.Write(p)
}

func TestSlowReaderLosesNothing(t *testing.T) {
	r := newRig(t, agent.Options{})
	var out slowWriter
	const n = 400 << 10
	status := r.run(agent.Command{Argv: []string{"head", "-c", strconv.Itoa(n), "/dev/zero"}, Stdout: &out})
	if out.Len() != n || status.StdoutBytes != n {
		t.Errorf("got %d of %d, %+v", out.Len(), n, status)
	}
}

func TestChildrenThatKeepStreams(t *testing.T) {
	r := newRig(t, agent.Options{})
	start := time.Now()
	o, _, status := r.sh("sleep 30 & echo $!; exit 4", nil)
	if took := time.Since(start); took > 20*time.Second || status.Code != 4 {
		t.Errorf("took %v, %+v", took, status)
	}
	if pid, err := strconv.Atoi(strings.TrimSpace(o)); err == nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	} else {
		t.Errorf("output %q", o)
	}
	// One that writes on and on must end as well.
	o, _, _ = r.sh("yes & exit 0", nil)
	if len(o) == 0 {
		t.Error("nothing of what the child wrote")
	}
}

func TestSignals(t *testing.T) {
	r := newRig(t, agent.Options{})
	pr, pw := io.Pipe()
	p, err := r.client.Run(r.ctx, agent.Command{Argv: []string{"sh", "-c", `trap "echo got; exit 7" INT; echo ready; while :; do sleep 0.05; done`}, Stdout: pw})
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 6)
	if _, err := io.ReadFull(pr, buf); err != nil || string(buf) != "ready\n" {
		t.Fatalf("%q, %v", buf, err)
	}
	go func() { _, _ = io.Copy(io.Discard, pr) }()
	if err := p.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); err != nil || status.Code != 7 {
		t.Errorf("%+v, %v", status, err)
	}
	if err := p.Signal(syscall.SIGINT); err != nil {
		t.Errorf("signal after the end: %v", err)
	}
}

func TestContextKills(t *testing.T) {
	r := newRig(t, agent.Options{})
	ctx, cancel := context.WithCancel(r.ctx)
	p, err := r.client.Run(ctx, agent.Command{Argv: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if status, err := p.Wait(); !errors.Is(err, context.Canceled) || status.Signal != syscall.SIGKILL {
		t.Errorf("%+v, %v", status, err)
	}
	if o, _, _ := r.sh("echo alive", nil); o != "alive\n" {
		t.Errorf("afterwards: %q", o)
	}
}

func TestOneAtATime(t *testing.T) {
	r := newRig(t, agent.Options{})
	p, err := r.client.Run(r.ctx, agent.Command{Argv: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Run(r.ctx, agent.Command{Argv: []string{"true"}}); !errors.Is(err, agent.ErrBusy) {
		t.Errorf("second command: %v", err)
	}
	_ = p.Signal(syscall.SIGTERM)
	_, _ = p.Wait()
	r.run(agent.Command{Argv: []string{"true"}})
}

func TestTextThatTheProtocolCannotCarry(t *testing.T) {
	r := newRig(t, agent.Options{})
	for _, cmd := range []agent.Command{
		{}, {Argv: []string{""}}, {Argv: []string{"echo", "\xff"}}, {Argv: []string{"echo", "a\x00b"}},
		{Argv: []string{"true"}, Env: []string{"A=\xff"}}, {Argv: []string{"true"}, Dir: "/\x00"},
		{Argv: []string{"echo", strings.Repeat("x", 2<<20)}},
	} {
		if _, err := r.client.Run(r.ctx, cmd); err == nil {
			t.Errorf("%.40q was accepted", cmd.Argv)
		}
	}
	r.run(agent.Command{Argv: []string{"true"}})
}

func TestPowerMessages(t *testing.T) {
	r := newRig(t, agent.Options{})
	if err := r.client.Reboot(r.ctx); err != nil {
		t.Fatal(err)
	}
	if got := <-r.served; got != session.Reboot {
		t.Errorf("action %v", got)
	}
	r.served <- session.Gone // for the cleanup
}

func TestTerminate(t *testing.T) {
	r := newRig(t, agent.Options{})
	r.engine.Terminate() // nothing runs
	p, err := r.client.Run(r.ctx, agent.Command{Argv: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	r.engine.Terminate()
	if status, err := p.Wait(); err != nil || status.Signal != syscall.SIGTERM {
		t.Errorf("%+v, %v", status, err)
	}
}
