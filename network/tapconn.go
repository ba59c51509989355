package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	vnet "github.com/peervisor/peervisor/virtio/net"
)

// pastDeadline makes a waiting read return at once.
var pastDeadline = time.Unix(1, 0)

// openTun opens the tun driver, not blocking.
func openTun() (int, error) {
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("open %s: %w: this kernel has no tun driver (modprobe tun)", path, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return -1, fmt.Errorf("open %s: %w: ask for permission on the file", path, err)
	case err != nil:
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	return fd, nil
}

// setupTun makes fd the tap of the given name, and returns the name that it has.
func setupTun(fd int, name string, existed bool) (string, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return name, fmt.Errorf("name: %w", err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	switch err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); {
	case errors.Is(err, unix.EBUSY):
		return name, fmt.Errorf("%w: another program (or guest) has it open", err)
	case errors.Is(err, unix.EPERM) && existed:
		return name, fmt.Errorf("%w: it belongs to another user; this needs CAP_NET_ADMIN, or %s", err, prepareHint(name))
	case errors.Is(err, unix.EPERM):
		return name, fmt.Errorf("%w: making a tap needs CAP_NET_ADMIN, or an administrator who prepares one: %s", err, prepareHint(name))
	case errors.Is(err, unix.EINVAL) && existed:
		return name, fmt.Errorf("%w: it is a tun or has several queues, not a plain tap", err)
	case err != nil:
		return name, fmt.Errorf("take it: %w", err)
	}
	name = ifr.Name()
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnet.HeaderBytes); err != nil {
		return name, fmt.Errorf("set header size: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0); err != nil {
		return name, fmt.Errorf("set offloads: %w", err)
	}
	return name, nil
}

// tunOffloads says what the guest takes, in the words of TUNSETOFFLOAD. What it
// sends needs no setting.
func tunOffloads(o vnet.Offload) int {
	f := 0
	for _, p := range []struct {
		o vnet.Offload
		f int
	}{{vnet.RxChecksum, unix.TUN_F_CSUM}, {vnet.RxTSO4, unix.TUN_F_TSO4}, {vnet.RxTSO6, unix.TUN_F_TSO6}, {vnet.RxECN, unix.TUN_F_TSO_ECN}} {
		if o&p.o != 0 {
			f |= p.f
		}
	}
	return f
}

// tapConn is one activation of the device on a tap. Frames go between the guest's
// buffers and the kernel by readv and writev. It implements vnet.Conn.
//
// The closures and vectors are made once, so that a frame allocates nothing.
type tapConn struct {
	t *Tap

	tx, rx vecCall
	poll   func(fd uintptr) bool
	perr   error
	closed chan struct{}
}

// vecCall is one readv or writev, made through the descriptor's RawConn, which
// keeps it open meanwhile.
type vecCall struct {
	iov []unix.Iovec
	n   int
	err error
	run func(fd uintptr) bool
}

func newTapConn(t *Tap) *tapConn {
	c := &tapConn{t: t, closed: make(chan struct{})}
	c.tx.run = func(fd uintptr) bool { c.tx.n, c.tx.err = vectored(unix.SYS_WRITEV, fd, c.tx.iov); return true }
	c.rx.run = func(fd uintptr) bool { c.rx.n, c.rx.err = vectored(unix.SYS_READV, fd, c.rx.iov); return true }
	c.poll = func(fd uintptr) bool {
		var ready bool
		ready, c.perr = readable(int(fd))
		return ready || c.perr != nil
	}
	return c
}

// Send implements vnet.Conn.
func (c *tapConn) Send(h vnet.Header, frame [][]byte) error {
	c.tx.iov = appendIovec(c.tx.iov[:0], h)
	for _, s := range frame {
		c.tx.iov = appendIovec(c.tx.iov, s)
	}
	err := c.t.raw.Write(c.tx.run)
	if err == nil {
		err = c.tx.err
	}
	clear(c.tx.iov)
	if err != nil {
		return fmt.Errorf("send to tap %s: %w", c.t.name, err)
	}
	return nil
}

// Recv implements vnet.Conn.
func (c *tapConn) Recv(room [][]byte) (int, error) {
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	c.rx.iov = c.rx.iov[:0]
	for _, s := range room {
		c.rx.iov = appendIovec(c.rx.iov, s)
	}
	err := c.t.raw.Read(c.rx.run)
	clear(c.rx.iov)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
		return 0, net.ErrClosed
	case err != nil:
		return 0, c.gone("receive from", err)
	}
	switch c.rx.err {
	case nil:
		return c.rx.n, nil
	case unix.EAGAIN:
		return 0, nil
	}
	return 0, c.gone("receive from", c.rx.err)
}

// gone explains the errors of a descriptor without an interface: EBADFD from the
// kernel, or the poller's refusal of a descriptor that only reports errors.
func (c *tapConn) gone(op string, err error) error {
	return fmt.Errorf("%s tap %s: %w: was the interface removed?", op, c.t.name, err)
}

// Wait implements vnet.Conn. The poller is edge-triggered and forgets an edge
// that came before, so the descriptor itself is asked first.
func (c *tapConn) Wait() error {
	err := c.t.raw.Read(c.poll)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
		return net.ErrClosed
	case err == nil:
		err = c.perr
	}
	if err != nil {
		return c.gone("wait for", err)
	}
	return nil
}

// readable polls a descriptor without waiting. An error condition counts: the
// next read tells.
func readable(fd int) (bool, error) {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := ignoringEINTR(func() (int, error) { return unix.Poll(p[:], 0) })
	return n > 0, err
}

// Close implements vnet.Conn.
func (c *tapConn) Close() error {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	if c.t.conn != c {
		return nil
	}
	c.t.conn = nil
	close(c.closed)
	if c.t.closed {
		return nil
	}
	return c.t.file.SetReadDeadline(pastDeadline)
}
