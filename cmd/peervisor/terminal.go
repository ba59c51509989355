package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/peervisor/peervisor/guest"
)

const escapeByte = 0x01 // Ctrl-a

const escapeHelp = "\r\n" +
	"Ctrl-a x       end the guest\r\n" +
	"Ctrl-a d       detach; the guest goes on (`peervisor console NAME` comes back)\r\n" +
	"Ctrl-a h       this help\r\n" +
	"Ctrl-a Ctrl-a  send one Ctrl-a\r\n"

// escapes takes the Ctrl-a sequences out of a terminal's input.
type escapes struct{ pending bool }

// Actions of an escape sequence.
const (
	escNone = iota
	escEnd
	escDetach
	escHelp
)

// filter returns what to send on, and the action that the input ended in, if
// any. What follows an action in p is dropped: it was typed for nobody.
func (e *escapes) filter(p []byte) (send []byte, action int) {
	for _, b := range p {
		if !e.pending {
			if b == escapeByte {
				e.pending = true
			} else {
				send = append(send, b)
			}
			continue
		}
		e.pending = false
		switch b {
		case 'x', 'X':
			return send, escEnd
		case 'd', 'D':
			return send, escDetach
		case 'h', 'H', '?':
			action = escHelp
		case escapeByte, 'a':
			send = append(send, escapeByte)
		default:
			send = append(send, escapeByte, b)
		}
	}
	return send, action
}

// session joins this terminal and an attached guest. nil without an error:
// detached.
func session(store *guest.Store, name string, att *guest.Attachment, owner bool) (*guest.Exit, error) {
	defer func() { _ = att.Close() }() // the session is over either way
	restore := func() {}
	tty := term.IsTerminal(0)
	if tty {
		old, err := term.MakeRaw(0)
		if err != nil {
			return nil, fmt.Errorf("set up the terminal: %w", err)
		}
		restore = func() { _ = term.Restore(0, old) }
		defer restore()
	}
	done := make(chan struct{})
	defer close(done)
	go forwardWinsize(att, done)
	left := make(chan bool, 1) // true: detached on purpose
	go pumpInput(store, name, att, tty, owner, left)
	type result struct {
		exit *guest.Exit
		err  error
	}
	out := make(chan result, 1)
	go func() {
		e, err := att.Copy(os.Stdout, os.Stderr)
		out <- result{e, err}
	}()
	for {
		select {
		case detached := <-left:
			if detached {
				restore()
				fmt.Fprintf(os.Stderr, "\npeervisor: detached; guest %s goes on\n", name)
				return nil, nil
			}
			left = nil // input ended; output goes on
		case r := <-out:
			if errors.Is(r.err, guest.ErrLost) {
				// The guest's process is gone: what it left behind says why.
				if e := endedExit(store, name); e != nil {
					return e, nil
				}
			}
			return r.exit, r.err
		}
	}
}

// pumpInput sends standard input to the guest. It is left behind in a read
// when the session ends first; the program ends then too.
func pumpInput(store *guest.Store, name string, att *guest.Attachment, tty, owner bool, left chan<- bool) {
	var esc escapes
	buf := make([]byte, 32<<10)
	for {
		n, err := os.Stdin.Read(buf)
		send, action := buf[:n], escNone
		if tty {
			send, action = esc.filter(buf[:n])
		}
		if len(send) > 0 && att.Input(send) != nil {
			return
		}
		switch action {
		case escEnd:
			_ = store.Client(name).Kill(context.Background()) // it may have ended by itself
		case escDetach:
			_ = att.Detach()
			left <- true
			return
		case escHelp:
			fmt.Fprint(os.Stderr, escapeHelp)
		}
		if err != nil {
			if owner {
				_ = att.CloseInput()
			}
			left <- false
			return
		}
	}
}

func forwardWinsize(att *guest.Attachment, done <-chan struct{}) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGWINCH)
	defer signal.Stop(ch)
	for {
		if cols, rows, err := term.GetSize(0); err == nil {
			_ = att.Resize(guest.Winsize{Rows: rows, Cols: cols})
		}
		select {
		case <-ch:
		case <-done:
			return
		}
	}
}
