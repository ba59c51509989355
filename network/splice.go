package network

import (
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxPayload is what one write to the guest's connection takes at most: whole
	// segments of 1448 bytes that make one packet below gsoBytes.
	maxPayload = 45 * 1448
	// uploadBytes bounds what is written to the host while the endpoint is locked, so
	// that acknowledgements are not held up.
	uploadBytes = 512 << 10
	// lingerTime is how long a connection that both sides have closed may take to
	// hand the guest what it has not acknowledged.
	lingerTime = 60 * time.Second

	// A buffer of tiny pieces costs many times its bytes. While the guest has maxTiny
	// writes of less than tinyBytes each to acknowledge, further ones wait tinyWait, and
	// longer each time, for more to come.
	tinyBytes   = 4096
	maxTiny     = 1024
	tinyWait    = time.Millisecond
	maxTinyWait = 256 * time.Millisecond
)

// splicer moves bytes between the guest's connection and one of this machine,
// by two goroutines. Neither copies: the host's socket is read into the buffers
// that are sent to the guest, and written from those that came from it.
//
//	upload:   endpoint ──Read──► hostWriter ──write(2)──► socket
//	download: socket ──read(2)──► hostReader ──Write──► endpoint
//
// The end of one direction is passed on as such (FIN); an error ends both, as a
// reset on either side.
type splicer struct {
	u    *User
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	host *net.TCPConn
	raw  syscall.RawConn
	w    hostWriter
	r    hostReader
	tiny int // small writes since the guest had acknowledged all
	slow time.Duration
	down chan struct{} // closed when download has ended
}

var errReset = errors.New("connection reset")

// splice runs until the connection is over on both sides. It owns both.
func (u *User) splice(ep tcpip.Endpoint, wq *waiter.Queue, host *net.TCPConn) {
	raw, err := host.SyscallConn()
	if err != nil {
		ep.Abort()
		abortHost(host)
		return
	}
	s := &splicer{u: u, ep: ep, wq: wq, host: host, raw: raw, down: make(chan struct{})}
	go func() {
		defer close(s.down)
		if err := s.download(); err != nil {
			s.abort()
		}
	}()
	if err := s.upload(); err != nil {
		s.abort()
	}
	<-s.down
	_ = host.Close()
	s.finish()
}

// abort resets both sides; both loops then end. It may be called twice.
func (s *splicer) abort() {
	abortHost(s.host)
	s.ep.Abort()
}

// finish waits until the guest has all, holding the connection's slot.
func (s *splicer) finish() {
	entry, events := waiter.NewChannelEntry(waiter.EventHUp | waiter.EventErr)
	s.wq.EventRegister(&entry)
	defer s.wq.EventUnregister(&entry)
	s.ep.Close()
	t := time.NewTimer(lingerTime)
	defer t.Stop()
	for !over(s.ep) {
		select {
		case <-events:
		case <-t.C:
			s.ep.Abort()
			return
		case <-s.u.ctx.Done():
			s.ep.Abort()
			return
		}
	}
}

// over says whether the endpoint has nothing more to send.
func over(ep tcpip.Endpoint) bool {
	switch tcp.EndpointState(ep.State()) {
	case tcp.StateClose, tcp.StateError, tcp.StateTimeWait, tcp.StateInitial:
		return true
	}
	return false
}

// hostWriter writes to the host's socket without waiting.
type hostWriter struct {
	fd    int
	left  int  // budget of this call
	again bool // the socket is full
	err   error
}

var errStop = errors.New("no more now")

// Write implements io.Writer for tcpip.Endpoint.Read.
func (w *hostWriter) Write(p []byte) (int, error) {
	if w.left <= 0 {
		return 0, errStop
	}
	n, err := ignoringEINTR(func() (int, error) { return unix.Write(w.fd, p) })
	n = max(n, 0)
	w.left -= n
	switch {
	case err == unix.EAGAIN:
		w.again = true
		return n, errStop
	case err != nil:
		w.err = err
		return n, err
	case n < len(p):
		w.again = true
		return n, errStop
	}
	return n, nil
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); err != unix.EINTR {
			return n, err
		}
	}
}

// upload moves the guest's bytes out until its FIN (nil) or an error.
func (s *splicer) upload() error {
	entry, events := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	s.wq.EventRegister(&entry)
	defer s.wq.EventUnregister(&entry)
	var terr tcpip.Error
	pump := func(fd uintptr) bool {
		s.w = hostWriter{fd: int(fd), left: uploadBytes}
		_, terr = s.ep.Read(&s.w, tcpip.ReadOptions{})
		return !s.w.again
	}
	for {
		if err := s.raw.Write(pump); err != nil {
			return err
		}
		if s.w.err != nil {
			return s.w.err
		}
		switch terr.(type) {
		case nil, *tcpip.ErrBadBuffer:
		case *tcpip.ErrWouldBlock:
			<-events
		case *tcpip.ErrClosedForReceive:
			return s.uploadEnd(events)
		default:
			return errReset
		}
	}
}

// uploadEnd passes the guest's FIN on, and watches for its reset from then on.
func (s *splicer) uploadEnd(events <-chan struct{}) error {
	if err := s.host.CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, unix.ENOTCONN) {
		return err
	}
	for {
		select {
		case <-s.down:
			return nil
		case <-events:
			if tcp.EndpointState(s.ep.State()) == tcp.StateError {
				return errReset
			}
		}
	}
}

// hostReader reads from the host's socket, as a tcpip.Payloader.
type hostReader struct {
	fd   int
	want int // bytes that are there
	err  error
}

// Len implements tcpip.Payloader.
func (r *hostReader) Len() int { return r.want }

// Read implements io.Reader. The Len bytes are there, and nobody else reads
// them, so coming up short is an error. (It must not be io.EOF: the stack would ask again,
// forever.)
func (r *hostReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(r.fd, p) })
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		r.err = err
		return 0, err
	}
	return n, nil
}

// What a look at the host's socket found.
type look int

const (
	lookData look = iota
	lookNone
	lookEOF
	lookErr
)

// peek fills in how much there is to read, so that buffers are made to measure.
func (r *hostReader) peek() look {
	n, err := unix.IoctlGetInt(r.fd, unix.SIOCINQ)
	if err == nil && n > 0 {
		r.want = min(n, maxPayload)
		return lookData
	}
	var b [1]byte
	n, err = ignoringEINTR(func() (int, error) {
		n, _, err := unix.Recvfrom(r.fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return n, err
	})
	switch {
	case err == unix.EAGAIN:
		return lookNone
	case err != nil:
		r.err = err
		return lookErr
	case n == 0:
		return lookEOF
	}
	r.want = 1
	return lookData
}

// download moves the host's bytes to the guest until the host's FIN (nil) or
// an error.
func (s *splicer) download() error {
	entry, events := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	s.wq.EventRegister(&entry)
	defer s.wq.EventUnregister(&entry)
	var terr tcpip.Error
	var found look
	pump := func(fd uintptr) bool {
		s.r = hostReader{fd: int(fd)}
		if found = s.r.peek(); found != lookData {
			return found != lookNone
		}
		if s.holdTiny() {
			return true
		}
		_, terr = s.ep.Write(&s.r, tcpip.WriteOptions{})
		return true
	}
	for {
		terr = nil
		if err := s.raw.Read(pump); err != nil {
			return err
		}
		switch {
		case s.r.err != nil:
			return s.r.err
		case found == lookEOF:
			if terr := s.ep.Shutdown(tcpip.ShutdownWrite); terr != nil {
				return errReset
			}
			return nil
		case s.slow > 0:
			if err := s.waitTiny(events); err != nil {
				return err
			}
			continue
		}
		switch terr.(type) {
		case nil, *tcpip.ErrBadBuffer:
		case *tcpip.ErrWouldBlock:
			<-events
		default:
			return errReset
		}
	}
}

// holdTiny counts small writes and says whether this one should wait.
func (s *splicer) holdTiny() bool {
	if s.r.want >= tinyBytes {
		s.slow = 0
		return false
	}
	s.tiny++
	if s.tiny <= maxTiny {
		return false
	}
	if queued, err := s.ep.GetSockOptInt(tcpip.SendQueueSizeOption); err != nil || queued == 0 {
		s.tiny, s.slow = 0, 0
		return false
	}
	s.slow = min(max(2*s.slow, tinyWait), maxTinyWait)
	return true
}

// waitTiny waits a moment for the guest to acknowledge, or the host to send more.
func (s *splicer) waitTiny(events <-chan struct{}) error {
	t := time.NewTimer(s.slow)
	defer t.Stop()
	select {
	case <-t.C:
	case <-events:
	}
	if tcp.EndpointState(s.ep.State()) == tcp.StateError {
		return errReset
	}
	return nil
}
