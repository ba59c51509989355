package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/peervisor/peervisor/kernel/agent/control"
)

// Bounds of waiting for a guest that should be quick.
const (
	// killGrace: from SIGKILL, because the context ended, to the command's exit and
	// the end of its output.
	killGrace = 10 * time.Second
	// lastWords: after the session broke, for what the guest wrote before.
	lastWords = time.Second
)

// Process is a command that runs.
type Process struct {
	client *Client
	id     uint64
	stdin  io.Reader

	stdout, stderr *sink

	started  chan struct{} // closed at started or failed
	startErr error         // set before started is closed

	exited chan struct{} // closed at exit
	status Status        // set before exited is closed

	finished chan struct{} // closed when Wait may return
	err      error         // set before finished is closed

	inMu    sync.Mutex // held over writes to the stdin port
	inEnded bool
	inBytes uint64
	inErr   error
}

// Run waits for hello, starts the command, and returns when it runs. If the guest
// cannot start it the error is a *StartError. When ctx ends the command is killed,
// and Wait returns its cause.
func (c *Client) Run(ctx context.Context, cmd Command) (*Process, error) {
	if err := cmd.check(); err != nil {
		return nil, err
	}
	if _, err := c.Hello(ctx); err != nil {
		return nil, err
	}
	p, err := c.admit(cmd)
	if err != nil {
		return nil, err
	}
	run := control.Message{Type: control.TypeRun, ID: p.id, Argv: cmd.Argv, Env: cmd.Env, Dir: cmd.Dir,
		TTY: cmd.TTY, Rows: cmd.Rows, Cols: cmd.Cols}
	if _, err := c.send(ctx, run); err != nil {
		c.release(p)
		return nil, fmt.Errorf("run command: %w", err)
	}
	c.goDo(func() { p.supervise(ctx) })
	select {
	case <-p.started:
		if p.startErr != nil {
			<-p.finished
			return nil, p.startErr
		}
		return p, nil
	case <-p.finished: // the session broke, or ctx ended
		return nil, p.err
	}
}

func (cmd *Command) check() error {
	if len(cmd.Argv) == 0 || cmd.Argv[0] == "" {
		return fmt.Errorf("run command: no program is named")
	}
	for _, list := range []struct {
		what   string
		values []string
	}{{"argument", cmd.Argv}, {"environment variable", cmd.Env}, {"directory", []string{cmd.Dir}}} {
		for _, s := range list.values {
			if err := checkText(list.what, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// admit makes the Process, if no other runs.
func (c *Client) admit(cmd Command) (*Process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc != nil {
		return nil, fmt.Errorf("run command: %w", ErrBusy)
	}
	c.lastID++
	p := &Process{
		client:   c,
		id:       c.lastID,
		stdin:    cmd.Stdin,
		started:  make(chan struct{}),
		exited:   make(chan struct{}),
		finished: make(chan struct{}),
	}
	p.stdout = c.stdout.attach(p.id, cmd.Stdout)
	p.stderr = c.stderr.attach(p.id, cmd.Stderr)
	c.proc = p
	return p, nil
}

func (c *Client) release(p *Process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proc = nil
	c.stdout.detach()
	c.stderr.detach()
}

// report sends a message that need not arrive if the session is over.
func (c *Client) report(m control.Message) { _, _ = c.send(context.Background(), m) }

// handle takes started, failed and exit of this command, on the goroutine that
// reads the control port.
func (p *Process) handle(m control.Message) error {
	begun := isClosed(p.started)
	if isClosed(p.exited) || begun != (m.Type == control.TypeExit) {
		return fmt.Errorf("%w: unexpected %s of command %d", ErrProtocol, m.Type, p.id)
	}
	switch m.Type {
	case control.TypeStarted:
		close(p.started)
	case control.TypeFailed:
		p.startErr = &StartError{Code: *m.Code, Message: m.Message}
		close(p.started)
		close(p.exited)
	case control.TypeExit:
		p.status = Status{Signal: syscall.Signal(m.Signal), StdoutBytes: *m.Stdout, StderrBytes: *m.Stderr}
		if m.Code != nil {
			p.status.Code = *m.Code
		}
		close(p.exited)
		return errors.Join(p.client.stdout.expect(*m.Stdout), p.client.stderr.expect(*m.Stderr))
	}
	return nil
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// supervise sees the command through: from its start to the last byte of output.
func (p *Process) supervise(ctx context.Context) {
	p.err = p.see(ctx)
	// Also where the guest is gone: it keeps a pump that blocks in Read from writing
	// what it gets to the next command.
	p.endStdin()
	p.client.release(p)
	close(p.finished)
}

func (p *Process) see(ctx context.Context) error {
	c := p.client
	var late <-chan time.Time // after ctx ended
	cancelled := ctx.Done()
	until := func(ch <-chan struct{}) error {
		for {
			select {
			case <-ch:
				return nil
			case <-c.done:
				if isClosed(ch) {
					return nil
				}
				return c.err
			case <-cancelled:
				cancelled = nil
				p.kill()
				timer := time.NewTimer(killGrace)
				defer timer.Stop()
				late = timer.C
			case <-late:
				// The guest still has the command, so there can be no other.
				c.fail(fmt.Errorf("kill command: %w: %w", ErrStuck, context.Cause(ctx)))
				return c.err
			}
		}
	}
	if err := until(p.started); err != nil {
		return p.broken(err)
	}
	if p.startErr != nil {
		return p.startErr
	}
	stopStdin := p.startStdin()
	err := until(p.exited)
	stopStdin()
	if err != nil {
		return p.broken(err)
	}
	for _, k := range []*sink{p.stdout, p.stderr} {
		if err := until(k.full); err != nil {
			if err := p.broken(err); !isClosed(p.stdout.full) || !isClosed(p.stderr.full) {
				return err
			}
		}
	}
	if cancelled == nil && ctx.Err() != nil {
		return fmt.Errorf("run command: %w", context.Cause(ctx))
	}
	return errors.Join(p.stdinError(), c.stdout.writeError(p.stdout), c.stderr.writeError(p.stderr))
}

// kill asks for the command's death; if the queue is full the guest is stuck and
// killGrace says so.
func (p *Process) kill() {
	b, err := control.Encode(control.Message{Type: control.TypeSignal, ID: p.id, Signal: int(syscall.SIGKILL)})
	if err != nil {
		return
	}
	select {
	case p.client.lines <- line{bytes: b, written: make(chan struct{})}:
	default:
	}
}

// broken waits for what the guest wrote before it was gone: until the ports end,
// or nothing comes any more.
func (p *Process) broken(err error) error {
	if errors.Is(err, ErrGuestGone) {
		for _, s := range []*stream{p.client.stdout, p.client.stderr} {
			s.awaitQuiet(lastWords)
		}
	}
	return fmt.Errorf("run command: %w", err)
}

// deadliner is a reader that can be told to return: a net.Conn, a pipe.
type deadliner interface{ SetReadDeadline(time.Time) error }

// startStdin copies standard input in the background. The function that it
// returns ends that and waits for it, unless the reader blocks and cannot be woken.
func (p *Process) startStdin() (stop func()) {
	if p.stdin == nil {
		p.endStdin()
		return func() {}
	}
	pumped := make(chan struct{})
	go func() {
		defer close(pumped)
		p.pumpStdin()
	}()
	return func() {
		if isClosed(pumped) {
			return
		}
		d, ok := p.stdin.(deadliner)
		if ok && d.SetReadDeadline(time.Unix(1, 0)) == nil {
			<-pumped
			_ = d.SetReadDeadline(time.Time{})
		}
	}
}

func (p *Process) pumpStdin() {
	buf := make([]byte, copyBytes/2)
	for {
		n, err := p.stdin.Read(buf)
		if n > 0 && !p.writeStdin(buf[:n]) {
			return
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !isClosed(p.exited) {
				p.inMu.Lock()
				p.inErr = fmt.Errorf("read the command's stdin: %w", err)
				p.inMu.Unlock()
			}
			p.endStdin()
			return
		}
	}
}

// writeStdin writes to the port, unless the command's input ended. The write
// waits for the guest, which takes and drops what a command that ended did not read.
func (p *Process) writeStdin(b []byte) bool {
	p.inMu.Lock()
	defer p.inMu.Unlock()
	if p.inEnded || isClosed(p.exited) || isClosed(p.client.done) {
		return false
	}
	n, err := p.client.ports.Stdin.Write(b)
	p.inBytes += uint64(n)
	if err != nil {
		p.client.fail(fmt.Errorf("write stdin port: %w: %w", ErrGuestGone, err))
		return false
	}
	return true
}

// endStdin tells the guest how much input there was, once.
func (p *Process) endStdin() {
	p.inMu.Lock()
	defer p.inMu.Unlock()
	if p.inEnded {
		return
	}
	p.inEnded = true
	if p.startErr == nil {
		p.client.report(control.EOF(p.id, p.inBytes))
	}
}

func (p *Process) stdinError() error {
	p.inMu.Lock()
	defer p.inMu.Unlock()
	return p.inErr
}

// Signal sends a signal to the command's process group. For a command that ended
// meanwhile it does nothing.
func (p *Process) Signal(sig syscall.Signal) error {
	_, err := p.client.send(context.Background(), control.Message{Type: control.TypeSignal, ID: p.id, Signal: int(sig)})
	return err
}

// Resize sets the size of the command's terminal.
func (p *Process) Resize(rows, cols uint16) error {
	_, err := p.client.send(context.Background(), control.Message{Type: control.TypeWinsize, ID: p.id, Rows: rows, Cols: cols})
	return err
}

// Wait returns when the command ended and all its output was written. It may be
// called more than once. The status counts also where err is a writer's.
func (p *Process) Wait() (Status, error) {
	<-p.finished
	return p.status, p.err
}
