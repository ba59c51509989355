package network

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// forward is a bound HostForward.
type forward struct {
	HostForward           // with the port that was bound
	close       func()    // stops listening
	closer      io.Closer // the socket
}

// Forwards lists the forwards with the ports that they are bound to.
func (u *User) Forwards() []HostForward {
	var out []HostForward
	for _, f := range u.fwd {
		out = append(out, f.HostForward)
	}
	return out
}

// listen binds one forward and serves it until Close.
func (u *User) listen(f HostForward) error {
	guest := f.Guest
	if !guest.Addr().IsValid() {
		guest = netip.AddrPortFrom(u.cfg.Guest, guest.Port())
	}
	var l io.Closer
	var bound netip.AddrPort
	var serve func()
	if f.Proto == "tcp" {
		tl, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(f.Host))
		if err != nil {
			return bindError(f, err)
		}
		l, bound, serve = tl, tl.Addr().(*net.TCPAddr).AddrPort(), func() { u.serveTCPForward(tl, guest) }
	} else {
		uc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(f.Host))
		if err != nil {
			return bindError(f, err)
		}
		pf := &udpForward{u: u, conn: uc, guest: guest, byPeer: make(map[netip.AddrPort]flowKey)}
		l, bound, serve = uc, uc.LocalAddr().(*net.UDPAddr).AddrPort(), pf.serve
	}
	f.Host = netip.AddrPortFrom(f.Host.Addr(), bound.Port())
	u.fwd = append(u.fwd, forward{HostForward: f, closer: l, close: func() { _ = l.Close() }})
	u.start(serve)
	return nil
}

// bindError says what to do about a port that cannot be had.
func bindError(f HostForward, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		hint = " (something else listens there: choose another port)"
	case errors.Is(err, unix.EACCES):
		hint = " (ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher one)"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		hint = " (this machine has no such address)"
	}
	return fmt.Errorf("listen for host forward %v: %w%s", f, err, hint)
}

// acceptPause is how long a listener rests after an error such as too many open
// files.
const acceptPause = 100 * time.Millisecond

// serveTCPForward leads each connection to the guest. A connection beyond MaxTCP
// waits in the listener's backlog.
func (u *User) serveTCPForward(l *net.TCPListener, guest netip.AddrPort) {
	for {
		select {
		case u.tcp.slots <- struct{}{}:
		case <-u.ctx.Done():
			return
		}
		c, err := l.AcceptTCP()
		if err != nil {
			u.tcp.release()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select {
			case <-time.After(acceptPause):
			case <-u.ctx.Done():
				return
			}
			continue
		}
		if !u.start(func() { defer u.tcp.release(); u.forwardTCP(c, guest) }) {
			u.tcp.release()
			abortHost(c)
			return
		}
	}
}

func (u *User) forwardTCP(c *net.TCPConn, guest netip.AddrPort) {
	ep, wq, err := u.connectGuest(guest)
	if err != nil {
		u.stats.tcpFailed.Add(1)
		u.cfg.Log.Debug("guest did not take forwarded connection", "guest", guest.String(), "error", err.Error())
		abortHost(c)
		return
	}
	_ = c.SetKeepAliveConfig(keepAlive())
	u.stats.tcpMade.Add(1)
	u.splice(ep, wq, c)
}

// udpForward gives each peer a port of the gateway, so that the guest can tell
// them apart and answer.
type udpForward struct {
	u     *User
	conn  *net.UDPConn
	guest netip.AddrPort

	mu     sync.Mutex
	byPeer map[netip.AddrPort]flowKey
	next   uint16
}

// firstPeerPort begins the gateway's ports for peers. The stack itself uses none:
// its own connections are TCP.
const firstPeerPort = 20000

// serve passes datagrams to the guest until the socket is closed.
func (f *udpForward) serve() {
	route, err := f.u.route(f.u.cfg.Gateway, f.guest.Addr())
	if err != nil {
		f.u.cfg.Log.Warn("UDP forward has no way to the guest", "guest", f.guest.String(), "error", err.Error())
		return
	}
	defer route.Release()
	b := make([]byte, 65536)
	swept := time.Now()
	for {
		if time.Since(swept) >= f.u.cfg.UDPIdle {
			f.u.flows.sweep(flowForward, f.u.cfg.UDPIdle)
			swept = time.Now()
		}
		_ = f.conn.SetReadDeadline(swept.Add(f.u.cfg.UDPIdle))
		n, peer, err := f.conn.ReadFromUDPAddrPort(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			continue // an ICMP error about an earlier answer
		}
		f.deliver(route, peer, b[:n])
	}
}

func (f *udpForward) deliver(route *stack.Route, peer netip.AddrPort, payload []byte) {
	f.mu.Lock()
	key, known := f.byPeer[peer]
	f.mu.Unlock()
	if !known || f.u.flows.get(key) == nil {
		if key, known = f.enter(peer); !known {
			f.u.stats.limitDrops.Add(1)
			return
		}
	}
	f.u.sendDatagram(route, key.other.Port(), f.guest.Port(), payload)
}

// enter gives a new peer a gateway port and a flow.
func (f *udpForward) enter(peer netip.AddrPort) (flowKey, bool) {
	raw, err := f.conn.SyscallConn()
	if err != nil {
		return flowKey{}, false
	}
	key, ok := f.freeKey()
	if !ok {
		return flowKey{}, false
	}
	fl := &flow{key: key}
	fl.send = func(payload []byte) bool { return sendToNow(raw, payload, peer) }
	fl.close = func() {
		f.mu.Lock()
		if f.byPeer[peer] == key {
			delete(f.byPeer, peer)
		}
		f.mu.Unlock()
	}
	f.mu.Lock()
	f.byPeer[peer] = key
	f.mu.Unlock()
	if !f.u.flows.add(fl) {
		return flowKey{}, false
	}
	f.u.stats.udpMade.Add(1)
	return key, true
}

// freeKey finds a gateway port that no flow to this guest port uses.
func (f *udpForward) freeKey() (flowKey, bool) {
	for range 2 * f.u.cfg.MaxUDP {
		port := firstPeerPort + f.next%(65535-firstPeerPort)
		f.next++
		key := flowKey{flowForward, f.guest, netip.AddrPortFrom(f.u.cfg.Gateway, port)}
		f.u.flows.mu.Lock()
		_, used := f.u.flows.table[key]
		f.u.flows.mu.Unlock()
		if !used {
			return key, true
		}
	}
	return flowKey{}, false
}

// sendToNow writes one datagram to a peer without waiting for room.
func sendToNow(raw syscall.RawConn, payload []byte, peer netip.AddrPort) bool {
	var ok bool
	err := raw.Write(func(fd uintptr) bool {
		sa := sockaddrFor(int(fd), peer)
		if sa == nil {
			return true
		}
		_, err := ignoringEINTR(func() (int, error) { return 0, unix.Sendto(int(fd), payload, unix.MSG_DONTWAIT, sa) })
		ok = err == nil || err == unix.ECONNREFUSED
		return true
	})
	return ok && err == nil
}

// sockaddrFor fits the address to the family of the socket.
func sockaddrFor(fd int, peer netip.AddrPort) unix.Sockaddr {
	local, err := unix.Getsockname(fd)
	if err != nil {
		return nil
	}
	if _, v6 := local.(*unix.SockaddrInet6); v6 {
		return &unix.SockaddrInet6{Addr: peer.Addr().As16(), Port: int(peer.Port())}
	}
	if !peer.Addr().Unmap().Is4() {
		return nil
	}
	return &unix.SockaddrInet4{Addr: peer.Addr().Unmap().As4(), Port: int(peer.Port())}
}
