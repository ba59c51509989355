package lab_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/peervisor/peervisor/kernel/agent"
	"github.com/peervisor/peervisor/lab"
)

// terminal is a person at a terminal of the lab host: types, and waits for words.
type terminal struct {
	t    *testing.T
	proc *lab.Process
	in   *io.PipeWriter
	mu   sync.Mutex
	out  bytes.Buffer
	more chan struct{}
}

func (tm *terminal) Write(p []byte) (int, error) {
	tm.mu.Lock()
	tm.out.Write(p)
	close(tm.more)
	tm.more = make(chan struct{})
	tm.mu.Unlock()
	return len(p), nil
}

// sit starts a command on a terminal of 100 columns and 30 rows.
func sit(t *testing.T, argv ...string) *terminal {
	t.Helper()
	r, w := io.Pipe()
	tm := &terminal{t: t, in: w, more: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel() // a test that failed leaves no command that holds the host
		_ = w.Close()
		if tm.proc != nil {
			_, _ = tm.proc.Wait()
		}
	})
	p, err := labHost(t).Run(ctx, agent.Command{Argv: argv, Dir: "/tmp", TTY: true, Rows: 30, Cols: 100, Stdin: r, Stdout: tm})
	if err != nil {
		t.Fatal(err)
	}
	tm.proc = p
	return tm
}

func (tm *terminal) enter(s string) {
	if _, err := io.WriteString(tm.in, s); err != nil {
		tm.t.Error(err)
	}
}

// see waits for a word, and forgets what came up to it.
func (tm *terminal) see(word string) {
	tm.t.Helper()
	timeout := time.After(2 * time.Minute)
	for {
		tm.mu.Lock()
		s, more := tm.out.String(), tm.more
		if i := strings.Index(s, word); i >= 0 {
			tm.out.Next(i + len(word))
			tm.mu.Unlock()
			return
		}
		tm.mu.Unlock()
		select {
		case <-more:
		case <-timeout:
			tm.t.Fatalf("no %q; the terminal shows:\n%s", word, s)
		}
	}
}

func (tm *terminal) leave() int {
	tm.t.Helper()
	st, err := tm.proc.Wait()
	_ = tm.in.Close()
	if err != nil {
		tm.t.Fatal(err)
	}
	return st.ExitCode()
}

// TestTerminal: a shell on a terminal, its size, Ctrl-C, detaching and coming back.
func TestTerminal(t *testing.T) {
	labHost(t)
	removed(t, "term")
	tm := sit(t, "peervisor", "run", "--name", "term", "--net", "none")
	tm.see("# ")
	tm.enter("stty size; tty\r")
	tm.see("30 100")
	tm.see("/dev/pts/")
	if err := tm.proc.Resize(40, 120); err != nil {
		t.Fatal(err)
	}
	tm.enter("sleep 1; stty size\r")
	tm.see("40 120")
	tm.enter("sh -c 'echo beg\"\"un; sleep 1000'\r")
	tm.see("begun")
	tm.enter("\x03")
	tm.enter("echo interrupted $?\r")
	tm.see("interrupted 130")
	tm.enter("\x01h")
	tm.see("Ctrl-a d")
	tm.enter("variable=kept\r")
	tm.see("kept")
	tm.enter("\x01d")
	tm.see("goes on")
	if code := tm.leave(); code != 0 {
		t.Errorf("exit status %d after detaching", code)
	}

	tm = sit(t, "peervisor", "console", "term")
	tm.see("attached to term")
	tm.enter("\recho $variable again\r")
	tm.see("kept again")
	tm.enter("exit 5\r")
	if code := tm.leave(); code != 5 {
		t.Errorf("exit status %d, want the shell's", code)
	}
}

// TestTerminalEnd: Ctrl-a x ends the guest.
func TestTerminalEnd(t *testing.T) {
	labHost(t)
	removed(t, "term2")
	tm := sit(t, "peervisor", "run", "--name", "term2", "--net", "none", "--", "sh")
	tm.see("# ")
	tm.enter("\x01x")
	if code := tm.leave(); code != 122 {
		t.Errorf("exit status %d", code)
	}
}
