package network

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Names and numbers of RFC 2131 and RFC 2132.
const (
	dhcpServerPort = 67
	dhcpClientPort = 68

	bootRequest = 1
	bootReply   = 2

	dhcpDiscover = 1
	dhcpOffer    = 2
	dhcpRequest  = 3
	dhcpDecline  = 4
	dhcpAck      = 5
	dhcpNak      = 6
	dhcpRelease  = 7
	dhcpInform   = 8

	optPad         = 0
	optMask        = 1
	optRouter      = 3
	optDNS         = 6
	optHostname    = 12
	optDomain      = 15
	optMTU         = 26
	optBroadcast   = 28
	optRequestedIP = 50
	optLease       = 51
	optMessageType = 53
	optServerID    = 54
	optRenewal     = 58
	optRebinding   = 59
	optEnd         = 255

	dhcpHeaderBytes = 236 // up to the magic cookie
	dhcpMinBytes    = 300 // BOOTP's, which relays and old clients expect
	dhcpBroadcast   = 0x8000
)

var dhcpCookie = [4]byte{99, 130, 83, 99}

const (
	leaseTime = 24 * time.Hour
	// offerTime keeps an address for a client that was offered it.
	offerTime = time.Minute
	// maxLeases bounds the addresses given out: a guest has few interfaces.
	maxLeases = 32
)

// dhcpMessage is what a server needs of a client's message.
type dhcpMessage struct {
	kind      byte
	xid       [4]byte
	flags     uint16
	ciaddr    netip.Addr
	relayed   bool
	chaddr    [6]byte
	requested netip.Addr // option 50; invalid without
	server    netip.Addr // option 54; invalid without
}

var errDHCP = errors.New("malformed DHCP message")

// parseDHCP reads a client's message.
func parseDHCP(b []byte) (dhcpMessage, error) {
	var m dhcpMessage
	if len(b) < dhcpHeaderBytes+4 || b[0] != bootRequest || b[1] != 1 || b[2] != 6 || [4]byte(b[dhcpHeaderBytes:]) != dhcpCookie {
		return m, errDHCP
	}
	copy(m.xid[:], b[4:8])
	m.flags = binary.BigEndian.Uint16(b[10:])
	m.ciaddr = netip.AddrFrom4([4]byte(b[12:16]))
	m.relayed = [4]byte(b[24:28]) != [4]byte{}
	copy(m.chaddr[:], b[28:34])
	opts := b[dhcpHeaderBytes+4:]
	for len(opts) > 0 {
		code := opts[0]
		if code == optEnd {
			break
		}
		if code == optPad {
			opts = opts[1:]
			continue
		}
		if len(opts) < 2 || len(opts) < 2+int(opts[1]) {
			return m, errDHCP
		}
		v := opts[2 : 2+int(opts[1])]
		opts = opts[2+len(v):]
		switch {
		case code == optMessageType && len(v) == 1:
			m.kind = v[0]
		case code == optRequestedIP && len(v) == 4:
			m.requested = netip.AddrFrom4([4]byte(v))
		case code == optServerID && len(v) == 4:
			m.server = netip.AddrFrom4([4]byte(v))
		}
	}
	if m.kind == 0 || m.chaddr[0]&1 != 0 {
		return m, errDHCP
	}
	return m, nil
}

// lease binds an address to a client, which is known by its hardware address:
// firmware, initramfs and system name themselves differently, and must all get
// the address that forwards lead to.
type lease struct {
	client  [6]byte
	expires time.Time
	// declined: somebody else uses the address.
	declined bool
}

// dhcpServer gives out addresses (RFC 2131, section 4.3).
type dhcpServer struct {
	cfg *UserConfig
	now func() time.Time

	mu     sync.Mutex
	leases map[netip.Addr]*lease
}

func newDHCPServer(cfg *UserConfig, now func() time.Time) *dhcpServer {
	return &dhcpServer{cfg: cfg, now: now, leases: make(map[netip.Addr]*lease)}
}

// dhcpReply is a message and where it goes.
type dhcpReply struct {
	payload []byte
	to      netip.Addr // broadcastAddr: to everyone
	mac     [6]byte
}

// handle answers a message; nil: silence.
func (s *dhcpServer) handle(b []byte) *dhcpReply {
	m, err := parseDHCP(b)
	if err != nil || m.relayed {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch m.kind {
	case dhcpDiscover:
		if a, ok := s.pickLocked(m); ok {
			s.leases[a] = &lease{client: m.chaddr, expires: s.now().Add(offerTime)}
			return s.reply(m, dhcpOffer, a)
		}
	case dhcpRequest:
		return s.requestLocked(m)
	case dhcpDecline:
		if l := s.leases[m.requested]; l != nil && l.client == m.chaddr {
			*l = lease{declined: true, expires: s.now().Add(leaseTime)}
		}
	case dhcpRelease:
		if l := s.leases[m.ciaddr]; l != nil && l.client == m.chaddr && !l.declined {
			delete(s.leases, m.ciaddr)
		}
	case dhcpInform:
		return s.reply(m, dhcpAck, netip.Addr{})
	}
	return nil
}

// requestLocked answers DHCPREQUEST in its three forms (section 4.3.2).
func (s *dhcpServer) requestLocked(m dhcpMessage) *dhcpReply {
	want := m.requested
	switch {
	case m.server.IsValid() && m.server != s.cfg.Gateway:
		return nil // the client chose another server
	case !want.IsValid():
		want = m.ciaddr // renewing or rebinding
	}
	if !s.freeLocked(want, m.chaddr) {
		return s.reply(m, dhcpNak, netip.Addr{})
	}
	s.dropOthersLocked(m.chaddr, want)
	if s.leases[want] == nil && len(s.leases) >= maxLeases {
		return s.reply(m, dhcpNak, netip.Addr{})
	}
	s.leases[want] = &lease{client: m.chaddr, expires: s.now().Add(leaseTime)}
	return s.reply(m, dhcpAck, want)
}

// dropOthersLocked ends what the client had besides keep.
func (s *dhcpServer) dropOthersLocked(client [6]byte, keep netip.Addr) {
	for a, l := range s.leases {
		if a != keep && l.client == client && !l.declined {
			delete(s.leases, a)
		}
	}
}

// freeLocked says whether the client may have a.
func (s *dhcpServer) freeLocked(a netip.Addr, client [6]byte) bool {
	if !a.IsValid() || !s.cfg.isHost(a) || a == s.cfg.Gateway || a == s.cfg.DNS {
		return false
	}
	l := s.leases[a]
	return l == nil || !l.declined && l.client == client || s.now().After(l.expires)
}

// pickLocked chooses an address to offer: the one that the client has, the one
// that it asks for, or the next from Guest on.
func (s *dhcpServer) pickLocked(m dhcpMessage) (netip.Addr, bool) {
	for a, l := range s.leases {
		if l.client == m.chaddr && !l.declined {
			return a, true
		}
		if s.now().After(l.expires) {
			delete(s.leases, a)
		}
	}
	if len(s.leases) >= maxLeases {
		return netip.Addr{}, false
	}
	if s.freeLocked(s.cfg.Guest, m.chaddr) {
		return s.cfg.Guest, true
	}
	if m.requested.IsValid() && s.freeLocked(m.requested, m.chaddr) {
		return m.requested, true
	}
	// maxLeases + 2 tries are enough: only leases and two servers are in the way.
	for a, i := s.cfg.Guest.Next(), 0; i < maxLeases+2 && s.cfg.isHost(a); a, i = a.Next(), i+1 {
		if s.freeLocked(a, m.chaddr) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// reply builds the answer (table 3) and addresses it (section 4.1).
func (s *dhcpServer) reply(m dhcpMessage, kind byte, yiaddr netip.Addr) *dhcpReply {
	b := make([]byte, dhcpHeaderBytes, dhcpMinBytes+64)
	b[0], b[1], b[2] = bootReply, 1, 6
	copy(b[4:8], m.xid[:])
	binary.BigEndian.PutUint16(b[10:], m.flags)
	if kind != dhcpNak {
		put4(b[12:], m.ciaddr)
	}
	if yiaddr.IsValid() {
		put4(b[16:], yiaddr)
	}
	if kind == dhcpAck || kind == dhcpOffer {
		put4(b[20:], s.cfg.Gateway)
	}
	copy(b[28:34], m.chaddr[:])
	b = append(b, dhcpCookie[:]...)
	b = append(b, optMessageType, 1, kind)
	b = appendAddr(b, optServerID, s.cfg.Gateway)
	if kind != dhcpNak {
		b = s.appendOptions(b, yiaddr.IsValid())
	}
	b = append(b, optEnd)
	for len(b) < dhcpMinBytes {
		b = append(b, optPad)
	}
	r := &dhcpReply{payload: b, to: broadcastAddr, mac: m.chaddr}
	switch unset := (netip.AddrFrom4([4]byte{})); {
	case kind == dhcpNak:
	case m.ciaddr != unset && s.cfg.isHost(m.ciaddr):
		r.to = m.ciaddr
	case m.flags&dhcpBroadcast == 0 && yiaddr.IsValid():
		r.to = yiaddr
	}
	return r
}

func (s *dhcpServer) appendOptions(b []byte, leased bool) []byte {
	if leased {
		for _, o := range []struct {
			code byte
			t    time.Duration
		}{{optLease, leaseTime}, {optRenewal, leaseTime / 2}, {optRebinding, leaseTime * 7 / 8}} {
			b = append(b, o.code, 4)
			b = binary.BigEndian.AppendUint32(b, uint32(o.t/time.Second))
		}
	}
	b = append(append(b, optMask, 4), maskOf(s.cfg.Network)...)
	b = appendAddr(b, optRouter, s.cfg.Gateway)
	b = appendAddr(b, optDNS, s.cfg.DNS)
	b = appendAddr(b, optBroadcast, broadcastOf(s.cfg.Network))
	b = append(b, optMTU, 2)
	b = binary.BigEndian.AppendUint16(b, uint16(s.cfg.MTU))
	b = append(append(b, optDomain, byte(len(localZone)-1)), localZone[:len(localZone)-1]...)
	if h := s.cfg.Hostname; h != "" {
		b = append(append(b, optHostname, byte(len(h))), h...)
	}
	return b
}

func put4(b []byte, a netip.Addr) {
	v := a.As4()
	copy(b, v[:])
}

func appendAddr(b []byte, code byte, a netip.Addr) []byte {
	v := a.As4()
	return append(append(b, code, 4), v[:]...)
}

// answerDHCP sends the reply as a frame of its own making, since the client may
// not have an address yet.
func (u *User) answerDHCP(payload []byte) {
	r := u.dhcp.handle(payload)
	if r == nil {
		return
	}
	mac := tcpip.LinkAddress(r.mac[:])
	if r.to == broadcastAddr {
		mac = header.EthernetBroadcastAddress
	}
	const headers = header.EthernetMinimumSize + header.IPv4MinimumSize + header.UDPMinimumSize
	b := make([]byte, headers, headers+len(r.payload))
	b = append(b, r.payload...)
	src, dst := toTCPIP(u.cfg.Gateway), toTCPIP(r.to)
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: u.link.mac, DstAddr: mac, Type: header.IPv4ProtocolNumber})
	ip := header.IPv4(b[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber), SrcAddr: src, DstAddr: dst})
	ip.SetChecksum(^ip.CalculateChecksum())
	up := header.UDP(ip[header.IPv4MinimumSize:])
	up.Encode(&header.UDPFields{SrcPort: dhcpServerPort, DstPort: dhcpClientPort, Length: uint16(len(up))})
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, src, dst, uint16(len(up)))
	sum = ^checksum.Checksum(up, sum)
	if sum == 0 {
		sum = 0xFFFF
	}
	up.SetChecksum(sum)
	u.link.enqueue(stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(buffer.NewViewWithData(b))}))
}
