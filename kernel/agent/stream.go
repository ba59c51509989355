package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/peervisor/peervisor/kernel/agent/control"
)

// sink is where one command's share of an output port goes.
type sink struct {
	id uint64
	w  io.Writer // nil: nobody reads

	// Guarded by stream.mu.
	got    uint64 // bytes off the port, given to w or thrown away
	known  bool   // want is what the guest said
	want   uint64 // got <= want, once known
	err    error  // the first failed Write
	closed bool   // full was closed
	full   chan struct{}
}

// stream is one output port for the life of the Client. The bytes between one
// command's exit and the next one's start are none, so they never mix.
type stream struct {
	client *Client
	name   string
	ended  chan struct{} // closed when the port ended

	mu      sync.Mutex
	sink    *sink
	writing bool   // deliver waits for the sink's writer
	total   uint64 // bytes of all commands
}

func newStream(c *Client, name string) *stream {
	return &stream{client: c, name: name, ended: make(chan struct{})}
}

// attach makes w the reader of the next command's bytes. Called before the
// command can have written any.
func (s *stream) attach(id uint64, w io.Writer) *sink {
	k := &sink{id: id, w: w, full: make(chan struct{})}
	s.mu.Lock()
	s.sink = k
	s.mu.Unlock()
	return k
}

func (s *stream) detach() {
	s.mu.Lock()
	s.sink = nil
	s.mu.Unlock()
}

// expect takes the guest's word for how many bytes the command wrote.
func (s *stream) expect(want uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.sink
	k.known, k.want = true, want
	return s.checkLocked(k)
}

func (s *stream) checkLocked(k *sink) error {
	if !k.known {
		return nil
	}
	if k.got > k.want {
		return fmt.Errorf("%w: %d bytes on %s where it says %d", ErrProtocol, k.got, s.name, k.want)
	}
	if k.got == k.want && !k.closed {
		k.closed = true
		close(k.full)
	}
	return nil
}

// pump reads the port until it ends, whatever becomes of the bytes: a guest must
// never wait for a stream that nobody wants.
func (s *stream) pump(port io.Reader) {
	defer close(s.ended)
	buf := make([]byte, copyBytes)
	for {
		n, err := port.Read(buf)
		if n > 0 {
			if derr := s.deliver(buf[:n]); derr != nil {
				s.client.fail(derr)
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				err = fmt.Errorf("read %s port: %w: %w", s.name, ErrGuestGone, err)
			} else {
				err = fmt.Errorf("%s port: %w", s.name, ErrGuestGone)
			}
			s.client.fail(err)
			return
		}
	}
}

func (s *stream) deliver(p []byte) error {
	s.mu.Lock()
	k := s.sink
	s.writing = k != nil
	s.mu.Unlock()
	if k == nil {
		return fmt.Errorf("%w: bytes on %s while no command runs", ErrProtocol, s.name)
	}
	var werr error
	if k.w != nil {
		if _, werr = k.w.Write(p); werr != nil {
			k.w = nil // only this goroutine uses it
			s.client.report(control.Message{Type: control.TypeClosed, ID: k.id, Stream: s.name})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing = false
	s.total += uint64(len(p))
	if werr != nil && !isClosedPipe(werr) {
		k.err = fmt.Errorf("write the command's %s: %w", s.name, werr)
	}
	k.got += uint64(len(p))
	return s.checkLocked(k)
}

// isClosedPipe tells a reader that has enough, which is no error, from a writer
// that is broken (a full disk).
func isClosedPipe(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, os.ErrClosed)
}

func (s *stream) writeError(k *sink) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return k.err
}

// awaitQuiet returns when the port ended, or gave nothing for so long.
func (s *stream) awaitQuiet(quiet time.Duration) {
	timer := time.NewTicker(quiet)
	defer timer.Stop()
	before := s.progress()
	for {
		select {
		case <-s.ended:
			return
		case <-timer.C:
		}
		s.mu.Lock()
		busy := s.writing
		s.mu.Unlock()
		now := s.progress()
		if !busy && now == before {
			return
		}
		before = now
	}
}

func (s *stream) progress() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}
