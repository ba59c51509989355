// Package nettest has a network backend in memory, for tests of the device half
// and of what stands on it.
package nettest

import (
	"errors"
	stdnet "net"
	"sync"

	"github.com/peervisor/peervisor/virtio/net"
)

// Frame is a frame with its header, both copies.
type Frame struct {
	Header net.Header
	Bytes  []byte
}

// Backend queues what a test pushes for the guest and keeps what the guest
// sends. The zero value offers nothing; set the fields before the first Attach.
type Backend struct {
	// Can is what Offloads returns.
	Can net.Offload
	// AttachErr, SendErr, if set, are what Attach and Send return.
	AttachErr, SendErr error

	mu         sync.Mutex
	cond       *sync.Cond
	negotiated net.Offload
	open       *conn
	toGuest    []Frame
	sent       []Frame
	recvErr    error
}

type conn struct {
	b      *Backend
	closed bool
}

func (b *Backend) lock() *sync.Cond {
	b.mu.Lock()
	if b.cond == nil {
		b.cond = sync.NewCond(&b.mu)
	}
	return b.cond
}

// Offloads implements net.Backend.
func (b *Backend) Offloads() net.Offload { return b.Can }

// Attach implements net.Backend.
func (b *Backend) Attach(o net.Offload) (net.Conn, error) {
	b.lock()
	defer b.mu.Unlock()
	if b.AttachErr != nil {
		return nil, b.AttachErr
	}
	if b.open != nil {
		return nil, errors.New("attached twice")
	}
	b.negotiated = o
	b.open = &conn{b: b}
	return b.open, nil
}

// Negotiated is what the last Attach was told.
func (b *Backend) Negotiated() net.Offload {
	b.lock()
	defer b.mu.Unlock()
	return b.negotiated
}

// Attached says whether a Conn is open.
func (b *Backend) Attached() bool {
	b.lock()
	defer b.mu.Unlock()
	return b.open != nil
}

// Push queues a frame for the guest.
func (b *Backend) Push(f Frame) {
	c := b.lock()
	b.toGuest = append(b.toGuest, f)
	b.mu.Unlock()
	c.Broadcast()
}

// Break makes Recv fail with err from now on.
func (b *Backend) Break(err error) {
	c := b.lock()
	b.recvErr = err
	b.mu.Unlock()
	c.Broadcast()
}

// Pending counts the frames that were pushed and not yet received.
func (b *Backend) Pending() int {
	b.lock()
	defer b.mu.Unlock()
	return len(b.toGuest)
}

// TakeSent returns what the guest sent since the last call.
func (b *Backend) TakeSent() []Frame {
	b.lock()
	defer b.mu.Unlock()
	out := b.sent
	b.sent = nil
	return out
}

func (c *conn) Send(h net.Header, frame [][]byte) error {
	c.b.lock()
	defer c.b.mu.Unlock()
	if c.b.SendErr != nil {
		return c.b.SendErr
	}
	f := Frame{Header: append(net.Header(nil), h...)}
	for _, s := range frame {
		f.Bytes = append(f.Bytes, s...)
	}
	c.b.sent = append(c.b.sent, f)
	return nil
}

func (c *conn) Recv(room [][]byte) (int, error) {
	c.b.lock()
	defer c.b.mu.Unlock()
	switch {
	case c.closed:
		return 0, stdnet.ErrClosed
	case c.b.recvErr != nil:
		return 0, c.b.recvErr
	case len(c.b.toGuest) == 0:
		return 0, nil
	}
	f := c.b.toGuest[0]
	c.b.toGuest = c.b.toGuest[1:]
	all := append(append([]byte(nil), f.Header...), f.Bytes...)
	rest := all
	for _, s := range room {
		rest = rest[copy(s, rest):]
	}
	if len(rest) > 0 {
		return 0, errors.New("room is smaller than the contract says")
	}
	return len(all), nil
}

func (c *conn) Wait() error {
	cond := c.b.lock()
	defer c.b.mu.Unlock()
	for !c.closed && c.b.recvErr == nil && len(c.b.toGuest) == 0 {
		cond.Wait()
	}
	if c.closed {
		return stdnet.ErrClosed
	}
	return nil
}

func (c *conn) Close() error {
	cond := c.b.lock()
	defer c.b.mu.Unlock()
	if !c.closed {
		c.closed = true
		c.b.open = nil
		cond.Broadcast()
	}
	return nil
}
