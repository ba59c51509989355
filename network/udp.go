package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// maxDatagram is the largest UDP payload over IPv4.
const maxDatagram = 65535 - header.IPv4MinimumSize - header.UDPMinimumSize

// datagrams has buffers for one datagram each.
type datagrams struct{ pool sync.Pool }

type datagram = [65536]byte

func (d *datagrams) get() *datagram {
	if b, ok := d.pool.Get().(*datagram); ok {
		return b
	}
	return new(datagram)
}

func (d *datagrams) put(b *datagram) { d.pool.Put(b) }

// handleUDP takes every datagram of the guest. It does not block: it runs
// within Send. false makes the stack answer that the port is closed.
func (u *User) handleUDP(id stack.TransportEndpointID, p *stack.PacketBuffer) bool {
	guest := netip.AddrPortFrom(fromTCPIP(id.RemoteAddress), id.RemotePort)
	dst := netip.AddrPortFrom(fromTCPIP(id.LocalAddress), id.LocalPort)
	h := header.UDP(p.TransportHeader().Slice())
	if len(h) < header.UDPMinimumSize || int(h.Length()) != len(h)+p.Data().Size() {
		return true
	}
	payload, done := u.flatten(p)
	defer done()
	switch {
	case dst.Port() == dhcpServerPort && guest.Port() == dhcpClientPort:
		u.answerDHCP(payload)
		return true
	case !u.cfg.isHost(guest.Addr()):
		return true // no address yet, or one that is not its own
	case dst == netip.AddrPortFrom(u.cfg.DNS, dnsPort):
		u.dns.serveUDP(guest, payload)
		return true
	}
	if fl := u.flows.get(flowKey{flowForward, guest, dst}); fl != nil {
		u.sendFlow(fl, payload)
		return true
	}
	if dst.Addr() == broadcastOf(u.cfg.Network) || dst.Addr().IsMulticast() || dst.Addr() == broadcastAddr {
		return true
	}
	key := flowKey{flowUDP, guest, dst}
	fl := u.flows.get(key)
	if fl == nil {
		var err error
		if fl, err = u.newUDPFlow(key); err != nil {
			return u.refuseDatagram(key, err)
		}
	}
	u.sendFlow(fl, payload)
	return true
}

var broadcastAddr = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func (u *User) sendFlow(fl *flow, payload []byte) {
	if !fl.send(payload) {
		u.stats.flowDrops.Add(1)
	}
}

// refuseDatagram says whether err was dealt with; otherwise the port is closed.
func (u *User) refuseDatagram(k flowKey, err error) bool {
	switch {
	case errors.Is(err, errRefused):
		u.stats.forbidden.Add(1)
		return false
	case errors.Is(err, errUnreachable), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		u.sendUnreachable(header.ICMPv4HostUnreachable, quote{proto: header.UDPProtocolNumber, src: k.guest, dst: k.other})
	default:
		u.stats.flowDrops.Add(1)
	}
	return true
}

// flatten gives the packet's data as one slice, valid until done is called.
func (u *User) flatten(p *stack.PacketBuffer) (data []byte, done func()) {
	views, skip := p.AsViewList()
	skip += p.HeaderSize()
	if v := views.Front(); v != nil && v.Next() == nil && v.Size() >= skip {
		return v.AsSlice()[skip:], func() {}
	}
	b := u.buffers.get()
	n := 0
	for v := views.Front(); v != nil; v = v.Next() {
		s := v.AsSlice()
		k := min(skip, len(s))
		skip -= k
		n += copy(b[n:], s[k:])
	}
	return b[:n], func() { u.buffers.put(b) }
}

// newUDPFlow connects a socket to where the guest wants to send, if it may.
// The socket is connected, so that only that peer can answer.
func (u *User) newUDPFlow(k flowKey) (*flow, error) {
	to, err := u.policy.target(k.other.Addr())
	if err != nil {
		return nil, err
	}
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, k.other.Port())))
	if err != nil {
		return nil, fmt.Errorf("open UDP socket: %w", err)
	}
	fl, err := u.startFlow(k, conn, u.cfg.UDPIdle, func(r *stack.Route, payload []byte) {
		u.sendDatagram(r, k.other.Port(), k.guest.Port(), payload)
	})
	if err == nil {
		u.stats.udpMade.Add(1)
	}
	return fl, err
}

// flowConn is a connected datagram socket of the net package.
type flowConn interface {
	net.Conn
	syscall.Conn
}

// startFlow enters a flow over conn, which it owns, and starts its reader.
// deliver is called with each datagram that comes back.
func (u *User) startFlow(k flowKey, conn flowConn, idle time.Duration, deliver func(*stack.Route, []byte)) (*flow, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("take UDP socket: %w", err)
	}
	route, err := u.route(k.other.Addr(), k.guest.Addr())
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	fl := &flow{key: k, close: func() { _ = conn.Close() }}
	fl.send = func(payload []byte) bool { return sendNow(raw, payload) }
	read := func() {
		defer route.Release()
		defer func() { _ = conn.Close() }()
		defer u.flows.remove(fl)
		u.readFlow(fl, conn, raw, route, idle, deliver)
	}
	if !u.flows.add(fl) || !u.start(read) {
		u.flows.remove(fl)
		route.Release()
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	return fl, nil
}

// sendNow writes one datagram without waiting for room.
func sendNow(raw syscall.RawConn, payload []byte) bool {
	ok := false
	err := raw.Write(func(fd uintptr) bool {
		_, err := ignoringEINTR(func() (int, error) { return unix.Write(int(fd), payload) })
		ok = err == nil || err == unix.ECONNREFUSED // an error of the datagram before
		return true
	})
	return ok && err == nil
}

// readFlow delivers what comes back until the flow is idle or closed.
func (u *User) readFlow(fl *flow, conn net.Conn, raw syscall.RawConn, route *stack.Route, idle time.Duration, deliver func(*stack.Route, []byte)) {
	var rerr error
	read := func(fd uintptr) bool {
		b := u.buffers.get()
		defer u.buffers.put(b)
		n, err := ignoringEINTR(func() (int, error) { return unix.Read(int(fd), b[:]) })
		if err == unix.EAGAIN {
			return false
		}
		if rerr = err; err == nil && n >= 0 {
			deliver(route, b[:n])
		}
		return true
	}
	for {
		_ = conn.SetReadDeadline(time.Now().Add(idle))
		err := raw.Read(read)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if u.flows.idle(fl) >= idle {
				return
			}
			continue
		case err != nil:
			return
		}
		u.flows.touch(fl)
		if rerr != nil {
			u.flowError(fl, rerr)
		}
	}
}

// flowError passes an ICMP error that the kernel reports on to the guest.
func (u *User) flowError(fl *flow, err error) {
	code := header.ICMPv4HostUnreachable
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		code = header.ICMPv4PortUnreachable
	case errors.Is(err, unix.ENETUNREACH):
		code = header.ICMPv4NetUnreachable
	}
	q := quote{proto: header.UDPProtocolNumber, src: fl.key.guest, dst: fl.key.other}
	if fl.key.kind == flowPing {
		q.proto = header.ICMPv4ProtocolNumber
	}
	u.sendUnreachable(code, q)
}

// sendDatagram sends a UDP datagram to the guest. r says from where.
func (u *User) sendDatagram(r *stack.Route, srcPort, dstPort uint16, payload []byte) {
	if len(payload) > maxDatagram {
		return
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.UDPMinimumSize + int(r.MaxHeaderLength()),
		Payload:            buffer.MakeWithView(buffer.NewViewWithData(payload)),
	})
	defer p.DecRef()
	n := header.UDPMinimumSize + len(payload)
	h := header.UDP(p.TransportHeader().Push(header.UDPMinimumSize))
	h.Encode(&header.UDPFields{SrcPort: srcPort, DstPort: dstPort, Length: uint16(n)})
	p.TransportProtocolNumber = header.UDPProtocolNumber
	if n+header.IPv4MinimumSize > u.cfg.MTU {
		// It goes as fragments, which the link cannot sum.
		sum := r.PseudoHeaderChecksum(header.UDPProtocolNumber, uint16(n))
		sum = ^h.CalculateChecksum(checksum.Checksum(payload, sum))
		if sum == 0 {
			sum = 0xFFFF
		}
		h.SetChecksum(sum)
	}
	_ = r.WritePacket(stack.NetworkHeaderParams{Protocol: header.UDPProtocolNumber, TTL: r.DefaultTTL()}, p)
}
