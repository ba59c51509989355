package guest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/virtio/console"
)

// Streams are the ends of a foreground guest's session in this process, in place of
// attached clients.
type Streams struct {
	// In is read for the session's input; nil: there is none.
	In io.Reader
	// Out and Err get its output. Required. A failed write tells the command that
	// nobody reads any more.
	Out, Err io.Writer
	// Resize and Signal deliver terminal sizes and signals until they are closed.
	// nil: none.
	Resize <-chan Winsize
	Signal <-chan int
}

// logLimitBytes bounds console.log; the older half is kept in console.log.1.
const logLimitBytes = 16 << 20

// logFile is an append-only file that is turned over when it is full. A full disk does
// not stop the guest: what cannot be written is dropped and counted.
type logFile struct {
	mu      sync.Mutex
	path    string
	f       *os.File
	n       int64
	dropped int64
}

func openLog(path string) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open log: %w", err), f.Close())
	}
	return &logFile{path: path, f: f, n: n}, nil
}

// Write never fails: a log is no reason to stop a guest.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return len(p), nil
	}
	if l.n+int64(len(p)) > logLimitBytes/2 {
		l.turnOver()
	}
	n, err := l.f.Write(p)
	l.n += int64(n)
	if err != nil {
		l.dropped += int64(len(p) - n)
	}
	return len(p), nil
}

// turnOver keeps the full log as .1 and starts a new one.
func (l *logFile) turnOver() {
	if os.Rename(l.path, l.path+".1") != nil {
		return
	}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	_ = l.f.Close()
	l.f, l.n = f, 0
}

// Dropped is the number of bytes that the disk did not take.
func (l *logFile) Dropped() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

// endpoint is the far end of a console or serial line.
type endpoint struct {
	in    io.Reader // nil: nothing comes in
	out   io.Writer // nil: there is no such line
	close func() error
	// where says for people where a pty or socket is.
	where string
}

// openEndpoint opens what spec names. session is the guest's session stream,
// used for stdio; log the guest's log.
func openEndpoint(flag string, spec PortSpec, session endpoint, log *logFile) (endpoint, error) {
	nop := func() error { return nil }
	switch spec.Kind {
	case PortStdio:
		e := endpoint{in: session.in, out: io.MultiWriter(log, session.out), close: nop}
		if f, ok := session.in.(*os.File); ok {
			in, err := console.NewInput(f) // a read that can be broken off when the guest ends
			if err != nil {
				return endpoint{}, fmt.Errorf("--%s stdio: %w", flag, err)
			}
			e.in, e.close = in, in.Close
		}
		return e, nil
	case PortLog:
		return endpoint{out: log, close: nop}, nil
	case PortFile:
		f, err := os.OpenFile(spec.File, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return endpoint{}, fmt.Errorf("--%s file=%s: %w", flag, spec.File, err)
		}
		return endpoint{out: f, close: f.Close, where: spec.File}, nil
	case PortPTY:
		return openPTY(flag)
	case PortSocket:
		return openSocket(flag, spec.Socket)
	}
	return endpoint{close: nop}, nil
}

// openPTY makes a pseudo-terminal in raw mode; its name is in `where`.
func openPTY(flag string) (endpoint, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return endpoint{}, fmt.Errorf("--%s pty: open /dev/ptmx: %w", flag, err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	name := fmt.Sprintf("/dev/pts/%d", n)
	if err == nil {
		err = rawPTY(fd)
	}
	// Holding the other side keeps reads from failing while nobody has it open.
	var keep int
	if err == nil {
		keep, err = unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return endpoint{}, errors.Join(fmt.Errorf("--%s pty: %w", flag, err), unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "/dev/ptmx")
	return endpoint{in: f, out: f, where: name, close: func() error { return errors.Join(f.Close(), unix.Close(keep)) }}, nil
}

func rawPTY(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag &^= unix.ICRNL | unix.IXON | unix.BRKINT | unix.ISTRIP | unix.INPCK
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG | unix.IEXTEN
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// socketLine is a line on a listening unix socket: one client at a time, what
// the guest says while nobody is there is dropped.
type socketLine struct {
	l    net.Listener
	in   *pipe
	done chan struct{}

	mu   sync.Mutex
	conn net.Conn
}

func openSocket(flag, path string) (endpoint, error) {
	if err := checkSocketPath(path); err != nil {
		return endpoint{}, fmt.Errorf("--%s: %w", flag, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return endpoint{}, fmt.Errorf("--%s socket=%s: %w; remove the file if nobody uses it", flag, path, err)
	}
	s := &socketLine{l: l, in: newPipe(hubInputBytes), done: make(chan struct{})}
	go s.accept()
	abs, err := filepath.Abs(path)
	if err != nil {
		abs = path
	}
	return endpoint{in: s.in, out: s, where: abs, close: s.close}, nil
}

func (s *socketLine) accept() {
	defer close(s.done)
	for {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conn = c
		s.mu.Unlock()
		_, _ = io.Copy(s.in, c) // ends when the client leaves or close closes it
		s.mu.Lock()
		s.conn = nil
		s.mu.Unlock()
		_ = c.Close()
	}
}

// Write sends to the client that is there.
func (s *socketLine) Write(p []byte) (int, error) {
	s.mu.Lock()
	c := s.conn
	s.mu.Unlock()
	if c != nil {
		_, _ = c.Write(p) // a client that left drops output like none
	}
	return len(p), nil
}

func (s *socketLine) close() error {
	err := s.l.Close()
	s.mu.Lock()
	if s.conn != nil {
		_ = s.conn.Close()
	}
	s.mu.Unlock()
	_ = s.in.Close()
	<-s.done
	return err
}
