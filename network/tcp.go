package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// dialTimeout is how long a connection to the outside may take, and
	// guestTimeout one to the guest.
	dialTimeout  = 60 * time.Second
	guestTimeout = 10 * time.Second
)

// Keepalives find guests that are gone without a word, such as a reset one. They
// tolerate a pause of 40 minutes. Those towards the outside are the same.
const (
	keepIdle     = 10 * time.Minute
	keepInterval = time.Minute
	keepCount    = 30
)

// tcpTable bounds the connections, in both directions together.
type tcpTable struct {
	slots chan struct{}

	mu   sync.Mutex
	syns [1024]synNote // a cache by hash: a newer attempt replaces an older one
}

// synNote keeps what an ICMP error about a connection attempt must quote.
type synNote struct {
	id  stack.TransportEndpointID
	seq uint32
}

func (t *tcpTable) init(limit int) { t.slots = make(chan struct{}, limit) }

func (t *tcpTable) open() int { return len(t.slots) }

func (t *tcpTable) take() bool {
	select {
	case t.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (t *tcpTable) release() { <-t.slots }

func synSlot(id stack.TransportEndpointID) int {
	a := id.LocalAddress.As4()
	return int(id.RemotePort^id.LocalPort^uint16(a[3])<<4) % 1024
}

func (t *tcpTable) noteSYN(id stack.TransportEndpointID, seq uint32) {
	t.mu.Lock()
	t.syns[synSlot(id)] = synNote{id, seq}
	t.mu.Unlock()
}

func (t *tcpTable) synSeq(id stack.TransportEndpointID) (uint32, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.syns[synSlot(id)]
	return n.seq, n.id == id
}

// tcpHandler takes the segments that belong to no connection.
func (u *User) tcpHandler() func(stack.TransportEndpointID, *stack.PacketBuffer) bool {
	fwd := tcp.NewForwarder(u.stack, tcpReceiveBytes, u.cfg.MaxTCP, u.accept)
	return func(id stack.TransportEndpointID, p *stack.PacketBuffer) bool {
		if h := header.TCP(p.TransportHeader().Slice()); len(h) >= header.TCPMinimumSize && h.Flags() == header.TCPFlagSyn {
			u.tcp.noteSYN(id, h.SequenceNumber())
		}
		return fwd.HandlePacket(id, p)
	}
}

// accept answers a SYN of the guest: it connects to the destination first, and
// tells the guest what came of that. It runs on a goroutine of its own.
func (u *User) accept(r *tcp.ForwarderRequest) {
	if !u.begin() {
		r.Complete(true)
		return
	}
	defer u.wg.Done()
	id := r.ID()
	dst := netip.AddrPortFrom(fromTCPIP(id.LocalAddress), id.LocalPort)
	if !u.tcp.take() {
		u.stats.limitDrops.Add(1)
		r.Complete(false) // the guest tries again
		return
	}
	defer u.tcp.release()
	if dst == netip.AddrPortFrom(u.cfg.DNS, dnsPort) {
		if ep, wq, ok := u.establish(r); ok {
			u.dns.serveTCP(ep, wq)
		}
		return
	}
	host, err := u.dialTCP(dst)
	if err != nil {
		u.stats.tcpFailed.Add(1)
		reset := u.refuse(id, err)
		r.Complete(reset)
		return
	}
	ep, wq, ok := u.establish(r)
	if !ok {
		abortHost(host)
		return
	}
	u.stats.tcpMade.Add(1)
	u.splice(ep, wq, host)
}

// dialTCP connects to what the guest calls dst, if it may.
func (u *User) dialTCP(dst netip.AddrPort) (*net.TCPConn, error) {
	to, err := u.policy.target(dst.Addr())
	if err != nil {
		if errors.Is(err, errRefused) {
			u.stats.forbidden.Add(1)
		}
		return nil, err
	}
	d := net.Dialer{Timeout: dialTimeout, KeepAliveConfig: keepAlive()}
	c, err := d.DialContext(u.ctx, "tcp4", netip.AddrPortFrom(to, dst.Port()).String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: keepIdle, Interval: keepInterval, Count: keepCount}
}

// refuse tells the guest by ICMP why its connection failed, where TCP has no
// word for it; true: a reset is the word.
func (u *User) refuse(id stack.TransportEndpointID, err error) bool {
	var code header.ICMPv4Code
	switch {
	case errors.Is(err, errUnreachable), errors.Is(err, unix.EHOSTUNREACH), isTimeout(err):
		code = header.ICMPv4HostUnreachable
	case errors.Is(err, unix.ENETUNREACH):
		code = header.ICMPv4NetUnreachable
	default:
		return true
	}
	seq, ok := u.tcp.synSeq(id)
	if !ok {
		return true
	}
	u.sendUnreachable(code, quote{
		proto: header.TCPProtocolNumber, seq: seq,
		src: netip.AddrPortFrom(fromTCPIP(id.RemoteAddress), id.RemotePort),
		dst: netip.AddrPortFrom(fromTCPIP(id.LocalAddress), id.LocalPort),
	})
	return false
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// establish does the handshake with the guest. ok is false if it went away.
func (u *User) establish(r *tcp.ForwarderRequest) (ep tcpip.Endpoint, wq *waiter.Queue, ok bool) {
	wq = &waiter.Queue{}
	ep, err := r.CreateEndpoint(wq)
	r.Complete(err != nil)
	if err != nil {
		u.stats.tcpFailed.Add(1)
		return nil, nil, false
	}
	tuneEndpoint(ep)
	return ep, wq, true
}

func tuneEndpoint(ep tcpip.Endpoint) {
	so := ep.SocketOptions()
	so.SetDelayOption(false) // the application on the far side has batched already
	so.SetKeepAlive(true)
	idle, interval := tcpip.KeepaliveIdleOption(keepIdle), tcpip.KeepaliveIntervalOption(keepInterval)
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepCount)
}

// connectGuest opens a connection to the guest, from the gateway's address.
func (u *User) connectGuest(to netip.AddrPort) (tcpip.Endpoint, *waiter.Queue, error) {
	ctx, cancel := context.WithTimeout(u.ctx, guestTimeout)
	defer cancel()
	ep, wq, terr := u.tryGuest(ctx, to)
	if _, ok := terr.(*tcpip.ErrHostUnreachable); ok {
		// Perhaps the guest was learned in the middle of being asked for: once more.
		ep, wq, terr = u.tryGuest(ctx, to)
	}
	if terr != nil {
		return nil, nil, fmt.Errorf("connect to guest %v: %v", to, terr)
	}
	tuneEndpoint(ep)
	return ep, wq, nil
}

func (u *User) tryGuest(ctx context.Context, to netip.AddrPort) (tcpip.Endpoint, *waiter.Queue, tcpip.Error) {
	wq := &waiter.Queue{}
	ep, terr := u.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, wq)
	if terr != nil {
		return nil, nil, terr
	}
	entry, events := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	terr = ep.Bind(tcpip.FullAddress{NIC: nicID, Addr: toTCPIP(u.cfg.Gateway)})
	if terr == nil {
		terr = ep.Connect(tcpip.FullAddress{NIC: nicID, Addr: toTCPIP(to.Addr()), Port: to.Port()})
	}
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-events:
			terr = ep.LastError()
		case <-ctx.Done():
			terr = &tcpip.ErrTimeout{}
		}
	}
	if terr != nil {
		ep.Abort()
		ep.Close()
		return nil, nil, terr
	}
	return ep, wq, nil
}

// abortHost closes a host connection with a reset.
func abortHost(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
