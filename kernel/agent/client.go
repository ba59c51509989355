package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"unicode/utf8"

	"github.com/peervisor/peervisor/kernel/agent/control"
)

// sendQueue is how many control lines may wait for a guest that is slow to read.
const sendQueue = 64

// copyBytes is the size of a stream's buffer.
const copyBytes = 128 << 10

// line is a control line on its way; written is closed when the port took it.
type line struct {
	bytes   []byte
	written chan struct{}
}

// Client drives one guest. All methods may be called from any goroutine.
type Client struct {
	ports Ports
	opts  Options

	lines          chan line
	stdout, stderr *stream

	hello     Hello
	helloOnce sync.Once
	helloed   chan struct{} // closed once hello is set

	done     chan struct{} // closed once err is set
	failOnce sync.Once
	err      error

	mu     sync.Mutex
	proc   *Process // the command that starts, runs, or is being finished
	lastID uint64

	wg sync.WaitGroup
}

// New starts to listen to the ports.
func New(ports Ports, opts Options) *Client {
	c := &Client{
		ports:   ports,
		opts:    opts,
		lines:   make(chan line, sendQueue),
		helloed: make(chan struct{}),
		done:    make(chan struct{}),
	}
	c.stdout = newStream(c, control.StreamStdout)
	c.stderr = newStream(c, control.StreamStderr)
	c.goDo(c.readControl)
	c.goDo(c.writeControl)
	c.goDo(func() { c.stdout.pump(ports.Stdout) })
	c.goDo(func() { c.stderr.pump(ports.Stderr) })
	if ports.Log != nil {
		c.goDo(c.copyLog)
	}
	return c
}

func (c *Client) goDo(f func()) {
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		f()
	}()
}

// fail ends the session. Ports that the guest would have to read are closed, so
// that nothing waits in a write; its output is read on until it ends or Close.
func (c *Client) fail(err error) {
	c.failOnce.Do(func() {
		c.err = err
		close(c.done)
		closePort(c.ports.Ctl)
		closePort(c.ports.Stdin)
	})
}

func closePort(port any) {
	if closer, ok := port.(io.Closer); ok {
		_ = closer.Close() // it only ends I/O that nobody wants any more
	}
}

// Done is closed when the session is over; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is nil until Done is closed.
func (c *Client) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// Close ends the session, closes the ports, and returns when nothing reads them
// any more. Ports that are no io.Closer must end by themselves. The guest powers off
// when it sees its control port closed.
func (c *Client) Close() error {
	c.fail(ErrClosed)
	closePort(c.ports.Stdout)
	closePort(c.ports.Stderr)
	if c.ports.Log != nil {
		closePort(c.ports.Log)
	}
	c.wg.Wait()
	return nil
}

// Hello waits for the guest's hello. It may be called again, and then answers at once.
func (c *Client) Hello(ctx context.Context) (Hello, error) {
	select {
	case <-c.helloed:
		return c.hello, nil
	default:
	}
	select {
	case <-c.helloed:
		return c.hello, nil
	case <-c.done:
		return Hello{}, fmt.Errorf("wait for the guest's hello: %w", c.err)
	case <-ctx.Done():
		return Hello{}, fmt.Errorf("wait for the guest's hello: %w", context.Cause(ctx))
	}
}

// PowerOff asks the guest to power off. It returns when the request is on its way.
func (c *Client) PowerOff(ctx context.Context) error {
	return c.power(ctx, control.TypePowerOff)
}

// Reboot is PowerOff with a reboot.
func (c *Client) Reboot(ctx context.Context) error {
	return c.power(ctx, control.TypeReboot)
}

func (c *Client) power(ctx context.Context, kind string) error {
	written, err := c.send(ctx, control.Message{Type: kind})
	if err != nil {
		return err
	}
	select {
	case <-written:
		return nil
	case <-c.done:
		return fmt.Errorf("%s guest: %w", kind, c.err)
	case <-ctx.Done():
		return fmt.Errorf("%s guest: %w", kind, context.Cause(ctx))
	}
}

// send puts a message into the queue; the channel is closed when the port took it.
func (c *Client) send(ctx context.Context, m control.Message) (<-chan struct{}, error) {
	b, err := control.Encode(m)
	if err != nil {
		return nil, err
	}
	l := line{bytes: b, written: make(chan struct{})}
	select {
	case <-c.done: // even if the queue has room
		return nil, fmt.Errorf("send %s: %w", m.Type, c.err)
	default:
	}
	select {
	case c.lines <- l:
		return l.written, nil
	case <-c.done:
		return nil, fmt.Errorf("send %s: %w", m.Type, c.err)
	case <-ctx.Done():
		return nil, fmt.Errorf("send %s: %w", m.Type, context.Cause(ctx))
	}
}

func (c *Client) writeControl() {
	for {
		select {
		case l := <-c.lines:
			if _, err := c.ports.Ctl.Write(l.bytes); err != nil {
				c.fail(fmt.Errorf("write control port: %w: %w", ErrGuestGone, err))
				return
			}
			close(l.written)
		case <-c.done:
			return
		}
	}
}

func (c *Client) readControl() {
	r := control.NewReader(c.ports.Ctl)
	for {
		m, err := r.Next()
		var syntax *control.SyntaxError
		switch {
		case err == nil:
			err = c.handle(m)
		case errors.As(err, &syntax), errors.Is(err, control.ErrLineTooLong):
			err = fmt.Errorf("%w: %w", ErrProtocol, err)
		case errors.Is(err, io.EOF):
			err = ErrGuestGone
		default:
			err = fmt.Errorf("read control port: %w: %w", ErrGuestGone, err)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// handle does what the guest says. An error ends the session.
func (c *Client) handle(m control.Message) error {
	switch m.Type {
	case control.TypeHello:
		return c.handleHello(m)
	case control.TypeNotice:
		if c.opts.Notice != nil {
			c.opts.Notice(m.Message)
		}
		return nil
	case control.TypeStarted, control.TypeFailed, control.TypeExit:
		c.mu.Lock()
		p := c.proc
		c.mu.Unlock()
		if p == nil || p.id != m.ID {
			return fmt.Errorf("%w: %s of command %d, which does not run", ErrProtocol, m.Type, m.ID)
		}
		return p.handle(m)
	}
	return nil // from a newer guest
}

func (c *Client) handleHello(m control.Message) error {
	if m.Version != control.Version {
		return fmt.Errorf("%w: its version is %d, ours is %d", ErrProtocol, m.Version, control.Version)
	}
	first := false
	c.helloOnce.Do(func() {
		first = true
		c.hello = Hello{Version: m.Version, Kernel: m.Kernel}
		close(c.helloed)
	})
	if !first {
		// What was in flight on the other ports cannot be told from what is new.
		return ErrRebooted
	}
	return nil
}

func (c *Client) copyLog() {
	dst := c.opts.Log
	if dst == nil {
		dst = io.Discard
	}
	buf := make([]byte, copyBytes/4)
	for {
		n, err := c.ports.Log.Read(buf)
		if _, werr := dst.Write(buf[:n]); werr != nil {
			dst = io.Discard // the guest must not wait for a log that cannot be kept
		}
		if err != nil {
			return
		}
	}
}

// checkText refuses what a control message cannot carry unchanged: JSON is
// UTF-8, and execve(2) ends strings at NUL.
func checkText(what, s string) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("run command: %s %q is not UTF-8", what, s)
	}
	for i := range len(s) {
		if s[i] == 0 {
			return fmt.Errorf("run command: %s %q has a NUL byte", what, s)
		}
	}
	return nil
}
