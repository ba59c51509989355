package agent_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/peervisor/peervisor/kernel/agent"
	"github.com/peervisor/peervisor/kernel/agent/control"
)

// testBound is how long a single test may take before it is stuck.
const testBound = 30 * time.Second

// script is a guest that does what a test says, right or wrong.
type script struct {
	t              *testing.T
	ctx            context.Context
	client         *agent.Client
	ctl            net.Conn
	lines          *control.Reader
	stdin          io.ReadCloser
	stdout, stderr io.WriteCloser
	log            io.WriteCloser
}

func newScript(t *testing.T, opts agent.Options) *script {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testBound)
	hostCtl, guestCtl := net.Pipe()
	open := func() (r, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		return r, w
	}
	guestIn, hostIn := open()
	hostOut, guestOut := open()
	hostErr, guestErr := open()
	hostLog, guestLog := open()
	s := &script{t: t, ctx: ctx, ctl: guestCtl, lines: control.NewReader(guestCtl), stdin: guestIn, stdout: guestOut, stderr: guestErr, log: guestLog}
	before := runtime.NumGoroutine()
	s.client = agent.New(agent.Ports{Ctl: hostCtl, Stdin: hostIn, Stdout: hostOut, Stderr: hostErr, Log: hostLog}, opts)
	t.Cleanup(func() {
		for range 2 {
			if err := s.client.Close(); err != nil {
				t.Error(err)
			}
		}
		for _, c := range []io.Closer{guestCtl, guestIn, guestOut, guestErr, guestLog} {
			_ = c.Close()
		}
		cancel()
		for deadline := time.After(testBound); runtime.NumGoroutine() > before; runtime.Gosched() {
			select {
			case <-deadline:
				t.Errorf("%d goroutines before, %d after", before, runtime.NumGoroutine())
				return
			default:
			}
		}
	})
	return s
}

func (s *script) say(line string) {
	s.t.Helper()
	_ = s.ctl.SetWriteDeadline(time.Now().Add(testBound))
	if _, err := s.ctl.Write([]byte(line + "\n")); err != nil {
		s.t.Errorf("say %s: %v", line, err)
	}
}

// hear returns the next message of this type.
func (s *script) hear(kind string) control.Message {
	s.t.Helper()
	_ = s.ctl.SetReadDeadline(time.Now().Add(testBound))
	for {
		m, err := s.lines.Next()
		if err != nil {
			s.t.Errorf("wait for %s: %v", kind, err)
			return control.Message{}
		}
		if m.Type == kind {
			return m
		}
	}
}

const hello = `{"type":"hello","version":1,"kernel":"k"}`

// start runs a command that the script then plays.
func (s *script) start(cmd agent.Command) *agent.Process {
	s.t.Helper()
	type result struct {
		p   *agent.Process
		err error
	}
	done := make(chan result, 1)
	go func() {
		p, err := s.client.Run(s.ctx, cmd)
		done <- result{p, err}
	}()
	s.say(hello)
	s.hear(control.TypeRun)
	s.say(`{"type":"started","id":1}`)
	r := <-done
	if r.err != nil {
		s.t.Fatal(r.err)
	}
	return r.p
}

func (s *script) wantEnd(want error) {
	s.t.Helper()
	select {
	case <-s.client.Done():
	case <-s.ctx.Done():
		s.t.Fatal("the session did not end")
	}
	if err := s.client.Err(); !errors.Is(err, want) {
		s.t.Errorf("session ended with %v, want %v", err, want)
	}
}

func TestGarbageEndsTheSession(t *testing.T) {
	for name, line := range map[string]string{
		"no JSON":             "\x1b[2J login:",
		"too long":            strings.Repeat("x", control.MaxLineBytes+1),
		"wrong version":       `{"type":"hello","version":2,"kernel":"k"}`,
		"exit of no command":  `{"type":"exit","id":1,"code":0,"stdout":0,"stderr":0}`,
		"exit without counts": `{"type":"exit","id":1,"code":0}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t, agent.Options{})
			go func() { _, _ = s.ctl.Write([]byte(line + "\n")) }()
			s.wantEnd(agent.ErrProtocol)
			if _, err := s.client.Hello(s.ctx); !errors.Is(err, agent.ErrProtocol) {
				t.Errorf("hello: %v", err)
			}
		})
	}
}

func TestNewerGuestIsUnderstood(t *testing.T) {
	notices := make(chan string, 1)
	s := newScript(t, agent.Options{Notice: func(m string) { notices <- m }})
	s.say(`{"type":"weather","rain":true}`)
	s.say(`{"type":"notice","message":"no DHCP answer","urgency":3}`)
	s.say(hello)
	if h, err := s.client.Hello(s.ctx); err != nil || h.Kernel != "k" {
		t.Errorf("%+v, %v", h, err)
	}
	if m := <-notices; m != "no DHCP answer" {
		t.Errorf("notice %q", m)
	}
}

// A guest that dies takes its command's status along, but not what it wrote.
func TestDeathLosesNoOutput(t *testing.T) {
	s := newScript(t, agent.Options{})
	var out bytes.Buffer
	p := s.start(agent.Command{Argv: []string{"x"}, Stdout: &out})
	want := bytes.Repeat([]byte("last words "), 3000)
	if _, err := s.stdout.Write(want); err != nil {
		t.Fatal(err)
	}
	_ = s.ctl.Close()
	_ = s.stdout.Close()
	_ = s.stderr.Close()
	if _, err := p.Wait(); !errors.Is(err, agent.ErrGuestGone) {
		t.Errorf("wait: %v", err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("%d of %d bytes", out.Len(), len(want))
	}
	if _, err := s.client.Run(s.ctx, agent.Command{Argv: []string{"x"}}); !errors.Is(err, agent.ErrGuestGone) {
		t.Errorf("run afterwards: %v", err)
	}
}

// One whose ports stay open after the control port ended.
func TestDeathWithPortsOpen(t *testing.T) {
	s := newScript(t, agent.Options{})
	p := s.start(agent.Command{Argv: []string{"x"}})
	_ = s.ctl.Close()
	if _, err := p.Wait(); !errors.Is(err, agent.ErrGuestGone) {
		t.Errorf("wait: %v", err)
	}
}

// The exit was told and the bytes are on their way when the guest goes.
func TestDeathAfterExit(t *testing.T) {
	s := newScript(t, agent.Options{})
	var out bytes.Buffer
	p := s.start(agent.Command{Argv: []string{"x"}, Stdout: &out})
	s.say(`{"type":"exit","id":1,"code":5,"stdout":4,"stderr":0}`)
	_ = s.ctl.Close()
	if _, err := s.stdout.Write([]byte("done")); err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); err != nil || status.Code != 5 || out.String() != "done" {
		t.Errorf("%+v, %v, %q", status, err, out.String())
	}
}

func TestOutputBeforeStarted(t *testing.T) {
	s := newScript(t, agent.Options{})
	var out bytes.Buffer
	done := make(chan *agent.Process, 1)
	go func() {
		p, err := s.client.Run(s.ctx, agent.Command{Argv: []string{"x"}, Stdout: &out})
		if err != nil {
			t.Error(err)
		}
		done <- p
	}()
	s.say(hello)
	s.hear(control.TypeRun)
	if _, err := s.stdout.Write([]byte("early")); err != nil {
		t.Fatal(err)
	}
	s.say(`{"type":"started","id":1}`)
	s.say(`{"type":"exit","id":1,"code":0,"stdout":5,"stderr":0}`)
	if p := <-done; p != nil {
		if _, err := p.Wait(); err != nil || out.String() != "early" {
			t.Errorf("%q, %v", out.String(), err)
		}
	}
}

func TestMoreOutputThanTold(t *testing.T) {
	s := newScript(t, agent.Options{})
	p := s.start(agent.Command{Argv: []string{"x"}})
	if _, err := s.stdout.Write([]byte("four+")); err != nil {
		t.Fatal(err)
	}
	s.say(`{"type":"exit","id":1,"code":0,"stdout":4,"stderr":0}`)
	if _, err := p.Wait(); !errors.Is(err, agent.ErrProtocol) {
		t.Errorf("wait: %v", err)
	}
}

func TestOutputOfNoCommand(t *testing.T) {
	s := newScript(t, agent.Options{})
	if _, err := s.stderr.Write([]byte("boo")); err != nil {
		t.Fatal(err)
	}
	s.wantEnd(agent.ErrProtocol)
}

func TestRebootInTheMiddle(t *testing.T) {
	s := newScript(t, agent.Options{})
	p := s.start(agent.Command{Argv: []string{"x"}})
	s.say(hello)
	if _, err := p.Wait(); !errors.Is(err, agent.ErrRebooted) {
		t.Errorf("wait: %v", err)
	}
}

func TestStartedTwice(t *testing.T) {
	s := newScript(t, agent.Options{})
	s.start(agent.Command{Argv: []string{"x"}})
	s.say(`{"type":"started","id":1}`)
	s.wantEnd(agent.ErrProtocol)
}

func TestInputComesAfterStartedAndIsCounted(t *testing.T) {
	s := newScript(t, agent.Options{})
	p := s.start(agent.Command{Argv: []string{"x"}, Stdin: strings.NewReader("input")})
	got := make([]byte, 5)
	if _, err := io.ReadFull(s.stdin, got); err != nil || string(got) != "input" {
		t.Errorf("%q, %v", got, err)
	}
	if m := s.hear(control.TypeEOF); m.ID != 1 || *m.Bytes != 5 {
		t.Errorf("%+v", m)
	}
	s.say(`{"type":"exit","id":1,"code":0,"stdout":0,"stderr":0}`)
	if _, err := p.Wait(); err != nil {
		t.Error(err)
	}
}

func TestInputThatCannotBeRead(t *testing.T) {
	s := newScript(t, agent.Options{})
	broken := errors.New("broken disk")
	p := s.start(agent.Command{Argv: []string{"x"}, Stdin: io.MultiReader(strings.NewReader("some"), failing{broken})})
	if m := s.hear(control.TypeEOF); *m.Bytes != 4 {
		t.Errorf("%+v", m)
	}
	s.say(`{"type":"exit","id":1,"code":0,"stdout":0,"stderr":0}`)
	if _, err := p.Wait(); !errors.Is(err, broken) {
		t.Errorf("wait: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestHelloIsAwaitedNoLongerThanAsked(t *testing.T) {
	s := newScript(t, agent.Options{})
	ctx, cancel := context.WithCancelCause(s.ctx)
	why := errors.New("asked to stop")
	cancel(why)
	if _, err := s.client.Hello(ctx); !errors.Is(err, why) {
		t.Errorf("hello: %v", err)
	}
	if _, err := s.client.Run(ctx, agent.Command{Argv: []string{"x"}}); !errors.Is(err, why) {
		t.Errorf("run: %v", err)
	}
}

func TestCloseEndsARun(t *testing.T) {
	s := newScript(t, agent.Options{})
	p := s.start(agent.Command{Argv: []string{"x"}})
	if err := s.client.Close(); err != nil {
		t.Error(err)
	}
	if _, err := p.Wait(); !errors.Is(err, agent.ErrClosed) {
		t.Errorf("wait: %v", err)
	}
}

// fullLog fails after its first write, which must not stop the guest's log.
type fullLog struct{ got chan string }

func (l *fullLog) Write(p []byte) (int, error) {
	select {
	case l.got <- string(p):
		return len(p), nil
	default:
		return 0, errors.New("full")
	}
}

func TestLogIsReadOnWhateverHappens(t *testing.T) {
	l := &fullLog{got: make(chan string, 1)}
	s := newScript(t, agent.Options{Log: l})
	if _, err := s.log.Write([]byte("[    0.000000] Linux")); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 1<<20) // more than a pipe holds
	if _, err := s.log.Write(big); err != nil {
		t.Fatal(err)
	}
	if got := <-l.got; !strings.HasPrefix(got, "[    0.000000] Linux") {
		t.Errorf("%.40q", got)
	}
}
