package console

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Input reads a file of the host whose Read cannot be interrupted otherwise:
// the terminal or pipe that a process got as its standard input. Setting such a
// descriptor non-blocking would change it for every process that shares it, so Input polls
// it together with a descriptor of its own. It is an In for a Port that the owner can end.
type Input struct {
	f    *os.File
	wake int // eventfd; readable from Close on

	mu     sync.Mutex // held by Read
	once   sync.Once
	closed chan struct{}
}

// NewInput borrows f, which stays open and as it is.
func NewInput(f *os.File) (*Input, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make an eventfd to read %s: %w", f.Name(), err)
	}
	return &Input{f: f, wake: wake, closed: make(chan struct{})}, nil
}

// Read implements io.Reader. It returns os.ErrClosed once Close was called.
func (in *Input) Read(p []byte) (int, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for {
		select {
		case <-in.closed:
			return 0, os.ErrClosed
		default:
		}
		ready, err := in.poll()
		if err != nil {
			return 0, err
		}
		if !ready {
			continue
		}
		// What poll reported may be gone (another reader of the same terminal): the
		// read then waits, which no one can help without O_NONBLOCK.
		n, err := in.f.Read(p)
		if n == 0 && err == nil && len(p) > 0 {
			err = io.EOF
		}
		return n, err
	}
}

// poll waits until the file can be read, is at its end, or Close was called.
func (in *Input) poll() (bool, error) {
	raw, err := in.f.SyscallConn()
	if err != nil {
		return false, err
	}
	var ready bool
	var failed error
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(in.wake), Events: unix.POLLIN}}
		_, failed = unix.Poll(fds, -1)
		ready = failed == nil && fds[0].Revents != 0 && fds[1].Revents == 0
	})
	if failed == unix.EINTR {
		failed = nil
	}
	if err == nil {
		err = failed
	}
	if err != nil {
		return false, fmt.Errorf("poll %s: %w", in.f.Name(), err)
	}
	return ready, nil
}

// Close makes a Read under way, and all later ones, return os.ErrClosed. It
// waits for that. A second Close does nothing.
func (in *Input) Close() error {
	var err error
	in.once.Do(func() {
		close(in.closed)
		if _, werr := unix.Write(in.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}); werr != nil {
			err = fmt.Errorf("wake the reader of %s: %w", in.f.Name(), werr)
			return
		}
		in.mu.Lock()
		defer in.mu.Unlock()
		err = unix.Close(in.wake)
	})
	return err
}
