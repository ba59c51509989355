package session

import (
	"errors"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// copyBytes is the size of a command's pipes and of the buffers that they are
// copied with. Larger ones gain nothing: the driver sends 32 KiB at a time.
const copyBytes = 128 << 10

// errWoken ends a wait that is no longer wanted.
var errWoken = errors.New("woken")

// waker ends poll(2) in another goroutine, once and for good.
type waker struct{ fd int }

func newWaker() (waker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	return waker{fd}, err
}

func (w waker) wake() { _, _ = unix.Write(w.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

func (w waker) close() { _ = unix.Close(w.fd) }

// await returns when fd is ready for one of events, or is at its end, or has an
// error; or errWoken when the waker was used.
func (w waker) await(fd int, events int16) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(w.fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case fds[1].Revents != 0:
			return errWoken
		}
		return nil
	}
}

// How an output is copied.
const (
	outputCopies   int32 = iota // until the end of src
	outputDiscards              // read on, and pass nothing on
	outputDrains                // what is there already, at most one pipe of it
	outputStops                 // nothing more
)

// output copies one stream of a command to its port. It belongs to its
// goroutine until done is closed.
type output struct {
	src  int      // non-blocking
	dst  *os.File // a port: blocks as long as the host has no room
	mode atomic.Int32
	wake waker
	// closes says that src is ours to close at the end; a terminal's master is not.
	closes bool
	// n is how many bytes went to dst. Read it after done.
	n    uint64
	done chan struct{}
}

// set changes how the stream is copied, from any goroutine.
func (o *output) set(mode int32) {
	o.mode.Store(mode)
	if mode != outputDiscards {
		o.wake.wake()
	}
}

func (o *output) run() {
	defer close(o.done)
	if o.closes {
		defer func() { _ = unix.Close(o.src) }() // here, at once: a closed pipe is what makes SIGPIPE
	}
	buf := make([]byte, copyBytes)
	drained := 0
	for {
		mode := o.mode.Load()
		if mode == outputStops || drained >= copyBytes {
			return
		}
		n, err := unix.Read(o.src, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			if mode == outputDrains {
				return
			}
			// Woken or not, the mode says what to do next.
			if err := o.wake.await(o.src, unix.POLLIN); err != nil && err != errWoken {
				return
			}
			continue
		case err != nil || n <= 0: // a terminal whose last slave is closed says EIO
			return
		}
		if mode == outputDrains {
			drained += n
		}
		if mode == outputDiscards {
			continue
		}
		written, err := o.dst.Write(buf[:n])
		o.n += uint64(written)
		if err != nil {
			return // the port is gone, and so is the host
		}
	}
}

// input is the standard input of one command, from its start until as many
// bytes came as the host said. All fields but those of write are guarded by Engine.mu.
type input struct {
	id uint64
	// ready: the command started, or never will; bytes may be taken.
	ready bool
	// dst is where bytes go, non-blocking; -1: they are thrown away.
	dst int
	// terminal: dst is a terminal's master, and not ours to close.
	terminal bool
	wake     waker
	// writing: the pump uses dst outside the lock.
	writing bool
	// received <= end, once ended.
	received uint64
	ended    bool
	end      uint64
	last     byte // of what was received
}

// write copies p to dst. It needs no lock: dst stays open while writing is set.
func (in *input) write(p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(in.dst, p)
		if n > 0 {
			p = p[n:]
		}
		switch err {
		case nil, unix.EINTR:
		case unix.EAGAIN:
			if err := in.wake.await(in.dst, unix.POLLOUT); err != nil {
				return err
			}
		default:
			return err
		}
	}
	return nil
}

// dropLocked makes dst nobody's. The caller made sure that writing is not set.
func (in *input) dropLocked() {
	if in.dst >= 0 && !in.terminal {
		_ = unix.Close(in.dst)
	}
	in.dst = -1
}

// typeEndLocked types end of file on a terminal: twice after an unfinished line,
// which the first only sends off.
func (in *input) typeEndLocked() {
	eof := endOfFile(in.dst)
	if len(eof) == 0 {
		return
	}
	if in.received > 0 && in.last != '\n' {
		eof = append(eof, eof...)
	}
	_, _ = unix.Write(in.dst, eof)
}

// endInput takes the host's word for how long the input of command id is.
func (e *Engine) endInput(id, n uint64) {
	e.mu.Lock()
	in := e.input
	if in == nil || in.id != id {
		in = nil
		if e.cmd != nil && e.cmd.id == id {
			in = e.cmd.input
		}
	}
	if in == nil || in.ended {
		e.mu.Unlock()
		return
	}
	complaint := ""
	if n < in.received {
		complaint = "more standard input came than the host said"
		n = in.received
	}
	in.ended, in.end = true, n
	e.settleLocked(in)
	e.mu.Unlock()
	if complaint != "" {
		e.Notice(complaint)
	}
}

// settleLocked ends an input that is complete.
func (e *Engine) settleLocked(in *input) {
	if e.input != in || !in.ready || !in.ended || in.received != in.end || in.writing {
		return
	}
	if in.terminal && in.dst >= 0 {
		in.typeEndLocked()
	}
	in.dropLocked()
	e.input = nil
	e.cond.Broadcast()
}

// pumpInput reads the standard input port for as long as it lasts.
func (e *Engine) pumpInput() {
	buf := make([]byte, copyBytes)
	for {
		e.mu.Lock()
		for !e.closed && (e.input == nil || !e.input.ready) {
			e.cond.Wait()
		}
		closed := e.closed
		e.mu.Unlock()
		if closed {
			return
		}
		n, err := gather(e.cfg.Stdin, buf)
		if n > 0 {
			e.takeInput(buf[:n])
		}
		if err != nil {
			// The host is gone. The command sees its end, and Serve that of the control port.
			e.mu.Lock()
			if in := e.input; in != nil {
				in.ended, in.end = true, in.received
				e.settleLocked(in)
			}
			e.mu.Unlock()
			return
		}
	}
}

// gather reads what is there, at least something. A virtio port gives a page at a
// time; passing pages on one by one would wake the command for each.
func gather(port *os.File, buf []byte) (int, error) {
	n, err := port.Read(buf)
	for err == nil && n < len(buf) && readable(int(port.Fd())) {
		var more int
		more, err = port.Read(buf[n:])
		n += more
	}
	return n, err
}

// readable tells whether a read would not block.
func readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&unix.POLLIN != 0
}

// takeInput gives bytes off the port to the command that they are for.
func (e *Engine) takeInput(p []byte) {
	e.mu.Lock()
	in := e.input
	excess := len(p)
	if in != nil && in.ready {
		excess = 0
		if in.ended && uint64(len(p)) > in.end-in.received {
			excess = len(p) - int(in.end-in.received)
		}
	}
	p = p[:len(p)-excess]
	if len(p) > 0 {
		in.received += uint64(len(p))
		in.last = p[len(p)-1]
		if in.dst >= 0 {
			in.writing = true
			e.mu.Unlock()
			err := in.write(p)
			e.mu.Lock()
			in.writing = false
			if err != nil {
				in.dropLocked() // the command reads no more; the rest is for nobody
			}
			e.cond.Broadcast()
		}
		e.settleLocked(in)
	}
	e.mu.Unlock()
	if excess > 0 {
		e.Notice("standard input that no command awaits was thrown away")
	}
}
