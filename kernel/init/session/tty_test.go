package session_test

import (
	"bufio"
	"bytes"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/peervisor/peervisor/kernel/agent"
)

func TestTerminalSizeAndControl(t *testing.T) {
	r := newRig(t, agent.Options{})
	pr, pw := io.Pipe()
	in, typed := io.Pipe()
	p, err := r.client.Run(r.ctx, agent.Command{
		Argv: []string{"sh", "-c", `tty <&2 | cut -c1-9; stty -echo; stty size; trap "stty size; resized=1" WINCH; echo ready; while [ -z "$resized" ]; do sleep 0.02; done; read x; echo "got $x"; read y`},
		TTY:  true, Rows: 24, Cols: 80, Stdin: in, Stdout: pw,
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(pr)
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || strings.TrimRight(lines.Text(), "\r") != want {
			t.Fatalf("got %q (%v), want %q", lines.Text(), lines.Err(), want)
		}
	}
	expect("/dev/pts/")
	expect("24 80")
	expect("ready")
	if err := p.Resize(50, 120); err != nil {
		t.Fatal(err)
	}
	expect("50 120")
	_, _ = io.WriteString(typed, "hello\n")
	expect("got hello")
	_, _ = io.WriteString(typed, "\x03") // Ctrl-C, by the terminal's own rules
	go func() { _, _ = io.Copy(io.Discard, pr) }()
	if status, err := p.Wait(); err != nil || status.ExitCode() != 130 {
		t.Errorf("after Ctrl-C: %+v, %v", status, err)
	}
	_ = typed.Close()
}

func TestTerminalEndOfInput(t *testing.T) {
	r := newRig(t, agent.Options{})
	for _, in := range []string{"", "line\n", "no newline"} {
		var out bytes.Buffer
		status := r.run(agent.Command{Argv: []string{"sh", "-c", "stty -echo; cat | tr -d '\\r\\n'"}, TTY: true, Stdin: strings.NewReader(in), Stdout: &out})
		if got := out.String(); status.Code != 0 || !strings.HasSuffix(got, strings.TrimSpace(in)) {
			t.Errorf("%q came back as %q, %+v", in, got, status)
		}
	}
}

func TestTerminalHangUp(t *testing.T) {
	r := newRig(t, agent.Options{})
	status := r.run(agent.Command{Argv: []string{"yes"}, TTY: true, Stdout: &failingWriter{1000, io.ErrClosedPipe}})
	if status.Signal != syscall.SIGHUP {
		t.Errorf("a terminal that nobody reads: %+v", status)
	}
}

func TestTerminalOutputIsComplete(t *testing.T) {
	r := newRig(t, agent.Options{})
	var out bytes.Buffer
	r.run(agent.Command{Argv: []string{"sh", "-c", "stty -opost; head -c 1000000 /dev/zero; echo err >&2"}, TTY: true, Stdout: &out})
	if out.Len() != 1000004 {
		t.Errorf("got %d bytes", out.Len())
	}
}
