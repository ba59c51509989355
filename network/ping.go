package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// handlePing takes ICMP from the guest. The stack itself answers pings to its own
// addresses; others go out by an unprivileged ping socket, where the machine
// permits these (net.ipv4.ping_group_range). Where it does not, the guest is told that
// the ping was filtered. It does not block.
func (u *User) handlePing(_ stack.TransportEndpointID, p *stack.PacketBuffer) bool {
	h := header.ICMPv4(p.TransportHeader().Slice())
	ip := header.IPv4(p.NetworkHeader().Slice())
	if len(h) < header.ICMPv4MinimumSize || len(ip) < header.IPv4MinimumSize {
		return true
	}
	src, dst := fromTCPIP(ip.SourceAddress()), fromTCPIP(ip.DestinationAddress())
	if dst == u.cfg.Gateway || dst == u.cfg.DNS {
		return false
	}
	if h.Type() != header.ICMPv4Echo || !u.cfg.isHost(src) || dst == broadcastOf(u.cfg.Network) || dst.IsMulticast() || dst == broadcastAddr {
		return true
	}
	key := flowKey{flowPing, netip.AddrPortFrom(src, h.Ident()), netip.AddrPortFrom(dst, 0)}
	fl := u.flows.get(key)
	if fl == nil {
		var err error
		if fl, err = u.newPing(key); err != nil {
			u.refusePing(key, err)
			return true
		}
	}
	data, done := u.flatten(p)
	defer done()
	msg := make([]byte, len(h)+len(data))
	copy(msg, h)
	copy(msg[len(h):], data)
	u.sendFlow(fl, msg)
	return true
}

func (u *User) refusePing(k flowKey, err error) {
	code := header.ICMPv4AdminProhibited
	switch {
	case errors.Is(err, errUnreachable), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		code = header.ICMPv4HostUnreachable
	case errors.Is(err, errRefused):
		u.stats.forbidden.Add(1)
	}
	u.sendUnreachable(code, quote{proto: header.ICMPv4ProtocolNumber, src: k.guest, dst: k.other})
}

// newPing opens a ping socket to the guest's destination, if it may.
func (u *User) newPing(k flowKey) (*flow, error) {
	to, err := u.policy.target(k.other.Addr())
	if err != nil {
		return nil, err
	}
	conn, err := dialPing(to)
	if err != nil {
		return nil, err
	}
	return u.startFlow(k, conn, u.cfg.UDPIdle/4, func(r *stack.Route, msg []byte) { u.sendEchoReply(r, k.guest.Port(), msg) })
}

// dialPing makes a connected socket for ICMP echo. The kernel chooses the
// identifier and lets only answers to it in.
func dialPing(to netip.Addr) (flowConn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, fmt.Errorf("open ping socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("connect ping socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "ping socket")
	defer func() { _ = f.Close() }()
	c, err := net.FileConn(f) // takes a duplicate
	if err != nil {
		return nil, fmt.Errorf("take ping socket: %w", err)
	}
	fc, ok := c.(flowConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("take ping socket: unexpected %T", c)
	}
	return fc, nil
}

// sendEchoReply gives the guest the answer to a ping, with its own identifier.
func (u *User) sendEchoReply(r *stack.Route, ident uint16, msg []byte) {
	if len(msg) < header.ICMPv4MinimumSize || header.ICMPv4(msg).Type() != header.ICMPv4EchoReply {
		return
	}
	h := header.ICMPv4(msg)
	h.SetIdent(ident)
	u.sendICMP(r, h)
}

// sendICMP sums and sends a whole ICMP message.
func (u *User) sendICMP(r *stack.Route, msg header.ICMPv4) {
	msg.SetChecksum(0)
	msg.SetChecksum(^checksum.Checksum(msg, 0))
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(r.MaxHeaderLength()),
		Payload:            buffer.MakeWithView(buffer.NewViewWithData(msg)),
	})
	defer p.DecRef()
	p.TransportProtocolNumber = header.ICMPv4ProtocolNumber
	_ = r.WritePacket(stack.NetworkHeaderParams{Protocol: header.ICMPv4ProtocolNumber, TTL: r.DefaultTTL()}, p)
}

// quote is what an ICMP error repeats of the packet that it is about.
type quote struct {
	proto    tcpip.TransportProtocolNumber
	src, dst netip.AddrPort
	seq      uint32 // TCP
}

// sendUnreachable tells the guest, as its gateway, that a packet of its went
// nowhere.
func (u *User) sendUnreachable(code header.ICMPv4Code, q quote) {
	if !u.stack.AllowICMPMessage() { // a rate limit
		return
	}
	r, err := u.route(u.cfg.Gateway, q.src.Addr())
	if err != nil {
		return
	}
	defer r.Release()
	const quoted = header.IPv4MinimumSize + 8 // RFC 792
	msg := header.ICMPv4(make([]byte, header.ICMPv4MinimumSize+quoted))
	msg.SetType(header.ICMPv4DstUnreachable)
	msg.SetCode(code)
	ip := header.IPv4(msg[header.ICMPv4MinimumSize:])
	ip.Encode(&header.IPv4Fields{TotalLength: quoted, TTL: 64, Protocol: uint8(q.proto),
		SrcAddr: toTCPIP(q.src.Addr()), DstAddr: toTCPIP(q.dst.Addr())})
	ip.SetChecksum(^ip.CalculateChecksum())
	rest := msg[header.ICMPv4MinimumSize+header.IPv4MinimumSize:]
	switch q.proto {
	case header.TCPProtocolNumber:
		t := header.UDP(rest) // both begin with the ports
		t.SetSourcePort(q.src.Port())
		t.SetDestinationPort(q.dst.Port())
		rest[4], rest[5], rest[6], rest[7] = byte(q.seq>>24), byte(q.seq>>16), byte(q.seq>>8), byte(q.seq)
	case header.UDPProtocolNumber:
		header.UDP(rest).Encode(&header.UDPFields{SrcPort: q.src.Port(), DstPort: q.dst.Port(), Length: 8})
	case header.ICMPv4ProtocolNumber:
		e := header.ICMPv4(rest)
		e.SetType(header.ICMPv4Echo)
		e.SetIdent(q.src.Port())
	}
	u.sendICMP(r, msg)
}
