// Package session is the guest's side of the guest agent (docs/guest-agent.md):
// it takes control messages, runs one command at a time, and copies its streams.
//
// It is not PID 1: mounting, drivers and power are kernel/init's. Nor does it know
// what its ports are made of; tests give it pipes and socket pairs and run it as an
// ordinary process.
//
// # Goroutines and locks
//
// Serve reads the control port on the goroutine that called it. A command has one
// goroutine that starts it, waits and reports, and one for each output stream. One
// goroutine reads the standard input port from the first command on until that
// port ends. Engine.mu guards the command and its input stream; it is never held
// over I/O.
//
// Copying uses read(2) and write(2) with large buffers. splice(2) into a virtio
// port is not used: Linux 6.1 loses the pages that it took off the pipe when the
// send fails for want of descriptors (drivers/char/virtio_console.c, port_fops_splice_write).
package session

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kernel/agent/control"
)

// Action is why Serve returned.
type Action int

const (
	// Gone: the host closed the control port, or broke the protocol.
	Gone Action = iota
	// PowerOff and Reboot: the host asked for it.
	PowerOff
	Reboot
)

// Config of an Engine. The Engine borrows the ports: it closes none.
type Config struct {
	// Ctl is the control port. Required.
	Ctl io.ReadWriter
	// Stdin, Stdout and Stderr are the stream ports, in blocking mode. Required.
	Stdin, Stdout, Stderr *os.File
	// Reaper starts processes and waits for them. Required.
	Reaper *Reaper
	// Kernel is what hello says.
	Kernel string
	// Ready, if set, is called before each command starts, on the command's own
	// goroutine; it may block for a bounded time (the network is coming up). Its
	// error is why the command cannot run.
	Ready func() error
	// Greeted, if set, is called once hello was sent: from then on Notice may be used.
	Greeted func()
}

// Engine serves one host for one boot.
type Engine struct {
	cfg Config

	writeMu sync.Mutex // serialises lines on Ctl; taken before mu

	mu      sync.Mutex
	cond    *sync.Cond // on mu: input, its fields, or closed changed
	cmd     *command   // the one that starts or runs, or nil
	input   *input     // whose bytes come off Stdin now; nil: nobody's
	lastID  uint64
	pumping bool // the goroutine that reads Stdin was started
	closed  bool // Serve is over
	greeted bool // hello was sent
}

// New makes an Engine. Nothing runs before Serve.
func New(cfg Config) *Engine {
	e := &Engine{cfg: cfg}
	e.cond = sync.NewCond(&e.mu)
	return e
}

// Serve says hello and does what the host asks until it wants the guest to end
// or goes away. A command that still runs then is left to the caller.
func (e *Engine) Serve() (Action, error) {
	defer func() {
		e.mu.Lock()
		e.closed = true
		e.cond.Broadcast()
		e.mu.Unlock()
	}()
	if err := e.send(control.Message{Type: control.TypeHello, Version: control.Version, Kernel: e.cfg.Kernel}); err != nil {
		return Gone, err
	}
	e.mu.Lock()
	e.greeted = true
	e.mu.Unlock()
	if e.cfg.Greeted != nil {
		e.cfg.Greeted()
	}
	r := control.NewReader(e.cfg.Ctl)
	for {
		m, err := r.Next()
		var syntax *control.SyntaxError
		switch {
		case errors.As(err, &syntax):
			e.Notice("ignored: " + err.Error())
			continue
		case errors.Is(err, io.EOF):
			return Gone, nil
		case err != nil:
			return Gone, err
		}
		switch m.Type {
		case control.TypePowerOff:
			return PowerOff, nil
		case control.TypeReboot:
			return Reboot, nil
		}
		e.handle(m)
	}
}

func (e *Engine) handle(m control.Message) {
	switch m.Type {
	case control.TypeRun:
		e.run(m)
	case control.TypeEOF:
		e.endInput(m.ID, *m.Bytes)
	case control.TypeSignal:
		e.withCommand(m.ID, func(c *command) { c.signalLocked(unix.Signal(m.Signal)) })
	case control.TypeWinsize:
		e.withCommand(m.ID, func(c *command) { c.resizeLocked(m.Rows, m.Cols) })
	case control.TypeClosed:
		e.withCommand(m.ID, func(c *command) { c.closeStreamLocked(m.Stream) })
	default:
		e.Notice("ignored: unknown control message " + quote(m.Type))
	}
}

// withCommand calls f with the lock held if command id still runs. A message for
// one that just ended is no error: it crossed the exit message.
func (e *Engine) withCommand(id uint64, f func(*command)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cmd != nil && e.cmd.id == id {
		f(e.cmd)
	}
}

// run admits a command, or says why not.
func (e *Engine) run(m control.Message) {
	e.mu.Lock()
	var refusal string
	switch {
	case e.cmd != nil:
		refusal = "another command runs"
	case m.ID <= e.lastID:
		refusal = "the id of a command must grow"
	case e.input != nil && !e.input.ended:
		refusal = "the end of the last command's standard input was not told"
	}
	if refusal != "" {
		e.mu.Unlock()
		e.report(control.Failed(m.ID, control.CodeOther, refusal))
		return
	}
	c := &command{engine: e, id: m.ID, spec: m, rows: m.Rows, cols: m.Cols, input: &input{id: m.ID, dst: -1}}
	e.cmd, e.lastID = c, m.ID
	if !e.pumping {
		e.pumping = true
		go e.pumpInput()
	}
	e.mu.Unlock()
	go c.run()
}

// Notice tells the host something that a person should know.
func (e *Engine) Notice(message string) { e.report(control.Notice(message)) }

// report sends a message; if the host is gone Serve finds out by itself.
func (e *Engine) report(m control.Message) { _ = e.send(m) }

func (e *Engine) send(m control.Message) error {
	line, err := control.Encode(m)
	if err != nil {
		return err
	}
	e.writeMu.Lock()
	defer e.writeMu.Unlock()
	_, err = e.cfg.Ctl.Write(line)
	return err
}

// leave reports the end of the command that runs, and makes room for the next one
// before the host can know of it.
func (e *Engine) leave(m control.Message) {
	line, err := control.Encode(m)
	e.writeMu.Lock()
	defer e.writeMu.Unlock()
	e.mu.Lock()
	e.cmd = nil
	if m.Type == control.TypeFailed {
		e.input = nil // the host sent none
	}
	e.cond.Broadcast()
	e.mu.Unlock()
	if err == nil {
		_, _ = e.cfg.Ctl.Write(line) // if the host is gone Serve finds out
	}
}

// Terminate sends SIGTERM to the command that runs, if there is one.
func (e *Engine) Terminate() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cmd != nil {
		e.cmd.signalLocked(unix.SIGTERM)
	}
}

// Greeted tells whether hello was sent, so that Notice does not come before it.
func (e *Engine) Greeted() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.greeted
}

// Idle waits until no command runs and the last one's end was reported, for a bounded time.
func (e *Engine) Idle(within time.Duration) {
	timer := time.AfterFunc(within, e.cond.Broadcast)
	defer timer.Stop()
	deadline := time.Now().Add(within)
	e.mu.Lock()
	for e.cmd != nil && !e.closed && time.Now().Before(deadline) {
		e.cond.Wait()
	}
	e.mu.Unlock()
	reported := make(chan struct{})
	go func() { // to come after the report
		e.writeMu.Lock()
		defer e.writeMu.Unlock()
		close(reported)
	}()
	select {
	case <-reported:
	case <-time.After(time.Until(deadline)): // the host does not read
	}
}

// quote makes bytes of the host fit for a message to a person.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "…"
	}
	return "\"" + s + "\""
}
