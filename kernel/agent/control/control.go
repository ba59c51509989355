// Package control is the line format of the peervisor.ctl port, for both of its
// ends (docs/guest-agent.md): one JSON object a line, at most MaxLineBytes each.
//
// It knows the messages and what makes one well formed. What they do is known
// to kernel/agent on the host and kernel/init/session in the guest. It is linked
// into the guest's init, so it imports little.
package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Version is the protocol's; a hello says it.
const Version = 1

// MaxLineBytes bounds a line, with its newline.
const MaxLineBytes = 1 << 20

// Names of the ports in /sys/class/virtio-ports/*/name.
const (
	PortCtl    = "peervisor.ctl"
	PortStdin  = "peervisor.stdin"
	PortStdout = "peervisor.stdout"
	PortStderr = "peervisor.stderr"
	PortLog    = "peervisor.log"
)

// Types, guest to host.
const (
	TypeHello   = "hello"
	TypeStarted = "started"
	TypeExit    = "exit"
	TypeFailed  = "failed"
	TypeNotice  = "notice"
)

// Types, host to guest.
const (
	TypeRun      = "run"
	TypeEOF      = "eof"
	TypeSignal   = "signal"
	TypeWinsize  = "winsize"
	TypeClosed   = "closed"
	TypePowerOff = "poweroff"
	TypeReboot   = "reboot"
)

// Streams, in a closed message.
const (
	StreamStdout = "stdout"
	StreamStderr = "stderr"
)

// Exit codes of a failed message, as shells and docker have them.
const (
	CodeOther       = 125 // anything that is not about the program itself
	CodeNotRunnable = 126 // found, and cannot be executed
	CodeNotFound    = 127
)

// Bounds of what a well-formed message says.
const (
	MaxSignal = 64 // SIGRTMAX
	MaxCode   = 255
)

// Errors of Reader.Next. After ErrLineTooLong and errors of the underlying reader
// the session is over; after a *SyntaxError the next line may be read.
var ErrLineTooLong = errors.New("control line is too long")

// SyntaxError is a line that is no well-formed message.
type SyntaxError struct{ Reason string }

func (e *SyntaxError) Error() string { return "control message: " + e.Reason }

// Message is any message; the type says which fields count. Pointers are for
// numbers that must be there and may be zero.
type Message struct {
	Type string `json:"type"`
	ID   uint64 `json:"id,omitempty"`

	// hello
	Version int    `json:"version,omitempty"`
	Kernel  string `json:"kernel,omitempty"`

	// exit, failed. Signal is also the signal message's.
	Code   *int    `json:"code,omitempty"`
	Signal int     `json:"signal,omitempty"`
	Stdout *uint64 `json:"stdout,omitempty"`
	Stderr *uint64 `json:"stderr,omitempty"`

	// failed, notice
	Message string `json:"message,omitempty"`

	// run. Rows and Cols are also the winsize message's.
	Argv []string `json:"argv,omitempty"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
	TTY  bool     `json:"tty,omitempty"`
	Rows uint16   `json:"rows,omitempty"`
	Cols uint16   `json:"cols,omitempty"`

	// eof
	Bytes *uint64 `json:"bytes,omitempty"`

	// closed
	Stream string `json:"stream,omitempty"`
}

// Exited makes the message of a command that ended by itself; Signalled that of
// one that a signal ended.
func Exited(id uint64, code int, stdout, stderr uint64) Message {
	return Message{Type: TypeExit, ID: id, Code: &code, Stdout: &stdout, Stderr: &stderr}
}

// Signalled is Exited for a command that a signal ended.
func Signalled(id uint64, signal int, stdout, stderr uint64) Message {
	return Message{Type: TypeExit, ID: id, Signal: signal, Stdout: &stdout, Stderr: &stderr}
}

// Failed makes the message of a command that could not be started.
func Failed(id uint64, code int, message string) Message {
	return Message{Type: TypeFailed, ID: id, Code: &code, Message: message}
}

// Notice makes a notice.
func Notice(message string) Message { return Message{Type: TypeNotice, Message: message} }

// EOF makes the end of standard input after so many bytes.
func EOF(id, n uint64) Message { return Message{Type: TypeEOF, ID: id, Bytes: &n} }

// Encode returns the line of a message, with its newline. A message that makes
// too long a line is ErrLineTooLong.
func Encode(m Message) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(m); err != nil {
		return nil, fmt.Errorf("encode %s message: %w", m.Type, err)
	}
	if b.Len() > MaxLineBytes {
		return nil, fmt.Errorf("encode %s message: %w: %d bytes, at most %d", m.Type, ErrLineTooLong, b.Len(), MaxLineBytes)
	}
	return b.Bytes(), nil
}

// Decode reads one line, with or without its newline. Unknown fields are ignored
// and unknown types come back as they are; a known type must be well formed.
func Decode(line []byte) (Message, error) {
	var m Message
	if len(line) > MaxLineBytes {
		return m, ErrLineTooLong
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return Message{}, &SyntaxError{Reason: err.Error()}
	}
	if reason := m.fault(); reason != "" {
		return Message{}, &SyntaxError{Reason: reason}
	}
	return m, nil
}

// fault says what is wrong with a message of a known type, or "".
func (m *Message) fault() string {
	switch m.Type {
	case "":
		return "no type"
	case TypeStarted, TypeExit, TypeFailed, TypeRun, TypeEOF, TypeSignal, TypeWinsize, TypeClosed:
		if m.ID == 0 {
			return m.Type + " without an id"
		}
	}
	switch m.Type {
	case TypeExit:
		switch {
		case (m.Code == nil) == (m.Signal == 0):
			return "exit needs either a code or a signal"
		case m.Stdout == nil || m.Stderr == nil:
			return "exit without byte counts"
		}
	case TypeFailed:
		if m.Code == nil {
			return "failed without a code"
		}
	case TypeRun:
		if len(m.Argv) == 0 {
			return "run without argv"
		}
	case TypeEOF:
		if m.Bytes == nil {
			return "eof without a byte count"
		}
	case TypeSignal:
		if m.Signal == 0 {
			return "signal without a number"
		}
	case TypeClosed:
		if m.Stream != StreamStdout && m.Stream != StreamStderr {
			return "closed names no output stream"
		}
	}
	if m.Signal < 0 || m.Signal > MaxSignal {
		return fmt.Sprintf("signal %d is not 1 to %d", m.Signal, MaxSignal)
	}
	if m.Code != nil && (*m.Code < 0 || *m.Code > MaxCode) {
		return fmt.Sprintf("code %d is not 0 to %d", *m.Code, MaxCode)
	}
	return ""
}

// Reader takes lines off a port. Not for concurrent use.
type Reader struct {
	src io.Reader
	buf []byte // bytes that were read and not yet returned; at most MaxLineBytes
	err error  // what src said last, told after the lines before it
	// scanned is how much of buf is known to have no newline; <= len(buf).
	scanned int
}

// readStepBytes is how much a read asks for. A virtio-console driver gives at
// most a page at a time.
const readStepBytes = 4096

// NewReader reads messages from src.
func NewReader(src io.Reader) *Reader { return &Reader{src: src} }

// Next returns the next message. Empty lines are skipped. At the end of src it
// returns io.EOF, and what came after the last newline is dropped: a message
// counts when it is whole.
func (r *Reader) Next() (Message, error) {
	for {
		if i := bytes.IndexByte(r.buf[r.scanned:], '\n'); i >= 0 {
			end := r.scanned + i
			line := bytes.TrimSpace(r.buf[:end])
			var m Message
			var err error
			if len(line) > 0 {
				m, err = Decode(line)
			}
			r.buf = r.buf[:copy(r.buf, r.buf[end+1:])]
			r.scanned = 0
			if len(line) == 0 {
				continue
			}
			return m, err
		}
		r.scanned = len(r.buf)
		if len(r.buf) >= MaxLineBytes {
			return Message{}, ErrLineTooLong
		}
		if r.err != nil {
			return Message{}, r.err
		}
		r.fill()
	}
}

func (r *Reader) fill() {
	step := min(readStepBytes, MaxLineBytes-len(r.buf))
	if cap(r.buf)-len(r.buf) < step {
		grown := make([]byte, len(r.buf), min(2*cap(r.buf)+step, MaxLineBytes))
		copy(grown, r.buf)
		r.buf = grown
	}
	n, err := r.src.Read(r.buf[len(r.buf) : len(r.buf)+step])
	r.buf = r.buf[:len(r.buf)+n]
	r.err = err
}
