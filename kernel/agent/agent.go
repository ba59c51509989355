// Package agent is the host's side of the guest agent: it runs commands in a
// guest whose PID 1 is kernel/init, over the virtio-console ports that
// docs/guest-agent.md describes.
//
// It is not tied to a hypervisor: whoever owns the guest hands over the host's
// ends of the ports. It neither starts nor ends guests.
//
// # Ownership and goroutines
//
// A Client owns its Ports from New to Close. One goroutine reads each of Ctl,
// Stdout, Stderr and Log for the Client's life, so that a guest never waits for a
// port that nobody reads; one more copies a command's standard input. Memory is
// bounded: one buffer a stream, one line of at most 1 MiB for Ctl.
//
// Commands run one after the other. Every byte that a command wrote reaches its
// writers before Wait returns, as the guest says how many there were.
//
// Lock order: Process.inMu, then Client.mu, then stream.mu. No lock but inMu is held
// over I/O.
package agent

import (
	"errors"
	"fmt"
	"io"
	"syscall"
)

// Errors that callers tell apart. All are wrapped.
var (
	// ErrGuestGone: the control port ended, so the guest died, powered off or was
	// killed. A command that ran has no status.
	ErrGuestGone = errors.New("the guest is gone")
	// ErrRebooted: the guest said hello again in the middle of a session.
	ErrRebooted = errors.New("the guest started anew")
	// ErrBusy: a command runs already.
	ErrBusy = errors.New("a command is running")
	// ErrProtocol: the guest sent what docs/guest-agent.md does not allow. The
	// session is over.
	ErrProtocol = errors.New("the guest broke the agent protocol")
	// ErrStuck: a command was killed because its context ended, and the guest did not
	// report its end in time.
	ErrStuck = errors.New("the guest does not answer")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("the agent session is closed")
)

// Ports are the host's ends of the guest's virtio-console ports. Those that are
// also io.Closer are closed by Client.Close, which is what ends blocked reads.
type Ports struct {
	// Ctl is peervisor.ctl. Required.
	Ctl io.ReadWriter
	// Stdin is peervisor.stdin. Required.
	Stdin io.Writer
	// Stdout and Stderr are peervisor.stdout and peervisor.stderr. Required.
	Stdout, Stderr io.Reader
	// Log is peervisor.log. May be nil.
	Log io.Reader
}

// Options of a Client. The zero value is good.
type Options struct {
	// Log gets the kernel's ring buffer, as text. Default: it is thrown away.
	Log io.Writer
	// Notice is told what the guest wants a person to know. It is called from
	// one goroutine and must not block. Default: nobody is told.
	Notice func(message string)
}

// Hello is what a guest says when it is up.
type Hello struct {
	// Version of the protocol: 1.
	Version int
	// Kernel is the guest's uname -r.
	Kernel string
}

// Command is what to run.
type Command struct {
	// Argv is the program, looked up in PATH unless it has a slash, and its
	// arguments. At least one.
	Argv []string
	// Env, "K=V", is put over the guest's default environment (PATH, HOME, and TERM with
	// a terminal).
	Env []string
	// Dir is the working directory. Empty: "/".
	Dir string
	// TTY gives the command a terminal of Rows by Cols; its output is then all on
	// Stdout.
	TTY        bool
	Rows, Cols uint16
	// Stdin is read until it ends or the command does. A Read that already blocks when
	// the command ends is left behind, and what it returns is lost, unless Stdin has
	// SetReadDeadline. Nil: no input.
	Stdin io.Reader
	// Stdout and Stderr get the output. After a failed Write the command is told
	// that nobody reads this stream (SIGPIPE). Nil: thrown away.
	Stdout, Stderr io.Writer
}

// Status is how a command ended.
type Status struct {
	// Code is the exit code, if Signal is 0.
	Code int
	// Signal is the signal that ended it, or 0.
	Signal syscall.Signal
	// StdoutBytes and StderrBytes are what it wrote.
	StdoutBytes, StderrBytes uint64
}

// ExitCode is the status as a shell has it: Code, or 128 + Signal.
func (s Status) ExitCode() int {
	if s.Signal != 0 {
		return 128 + int(s.Signal)
	}
	return s.Code
}

// StartError says that a command could not be started.
type StartError struct {
	// Code is what a shell would exit with: 127 not found, 126 not runnable, 125
	// anything else.
	Code int
	// Message is the guest's.
	Message string
}

func (e *StartError) Error() string { return fmt.Sprintf("start command: %s", e.Message) }
