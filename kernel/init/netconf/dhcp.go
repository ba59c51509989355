package netconf

import (
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// RFC 2131, figure 1 and table 3; RFC 2132 for options.
const (
	bootRequest = 1
	bootReply   = 2

	flagBroadcast = 0x8000

	dhcpDiscover = 1
	dhcpOffer    = 2
	dhcpRequest  = 3
	dhcpAck      = 5
	dhcpNak      = 6

	optPad         = 0
	optMask        = 1
	optRouter      = 3
	optDNS         = 6
	optDomain      = 15
	optMTU         = 26
	optRequestedIP = 50
	optLeaseTime   = 51
	optType        = 53
	optServerID    = 54
	optParameters  = 55
	optMaxSize     = 57
	optClientID    = 61
	optEnd         = 255

	magicCookie = 0x63825363

	headerBytes  = 240 // with the cookie
	minimumBytes = 300 // BOOTP's, which some servers insist on

	clientPort = 68
	serverPort = 67
)

// Retransmission: quick at first, as the servers of guests are near.
const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = 8 * time.Second
	// requestTries bounds how often a NAK or a silent server sends us back to DISCOVER.
	requestTries = 3
)

const (
	minLease     = time.Minute
	defaultLease = time.Hour // if the server does not say
	maxDNS       = 3         // as many as a resolver reads
	minMTU       = 576
)

// Conn carries DHCP messages, without their IP and UDP headers, on one interface.
type Conn interface {
	// Send broadcasts a message.
	Send(message []byte) error
	// Receive waits for one until the deadline; then, or when it was stopped, it
	// returns an error. The bytes are good until the next call.
	Receive(deadline time.Time) ([]byte, error)
}

// message is a DHCP message, parsed.
type message struct {
	xid      uint32
	mac      [6]byte
	kind     byte
	your     Addr
	server   Addr
	mask     Addr
	routers  []Addr
	dns      []Addr
	domain   string
	mtu      int
	lease    time.Duration
	hasLease bool
}

// compose makes a client's message. requested and server are not valid where the
// message has none; ciaddr is valid when a lease is renewed.
func compose(kind byte, xid uint32, mac [6]byte, requested, server, ciaddr Addr) []byte {
	b := make([]byte, headerBytes, minimumBytes)
	b[0], b[1], b[2] = bootRequest, 1, 6 // Ethernet, six bytes
	binary.BigEndian.PutUint32(b[4:], xid)
	binary.BigEndian.PutUint16(b[10:], flagBroadcast)
	if ciaddr.Is() {
		copy(b[12:16], ciaddr[:])
	}
	copy(b[28:], mac[:])
	binary.BigEndian.PutUint32(b[236:], magicCookie)
	b = append(b, optType, 1, kind)
	b = append(b, optClientID, 7, 1)
	b = append(b, mac[:]...)
	b = append(b, optMaxSize, 2, 1500>>8, 1500&0xFF)
	if requested.Is() {
		b = append(append(b, optRequestedIP, 4), requested[:]...)
	}
	if server.Is() {
		b = append(append(b, optServerID, 4), server[:]...)
	}
	b = append(b, optParameters, 5, optMask, optRouter, optDNS, optDomain, optMTU, optEnd)
	for len(b) < minimumBytes {
		b = append(b, optPad)
	}
	return b
}

// parseReply reads a server's message; ok is false for anything that is none.
func parseReply(b []byte) (m message, ok bool) {
	if len(b) < headerBytes || b[0] != bootReply || b[1] != 1 || b[2] != 6 ||
		binary.BigEndian.Uint32(b[236:]) != magicCookie {
		return m, false
	}
	m.xid = binary.BigEndian.Uint32(b[4:])
	m.your = Addr(b[16:20])
	copy(m.mac[:], b[28:34])
	options := b[headerBytes:]
	for len(options) > 0 {
		code := options[0]
		if code == optPad {
			options = options[1:]
			continue
		}
		if code == optEnd {
			break
		}
		if len(options) < 2 || len(options) < 2+int(options[1]) {
			return m, false
		}
		m.option(code, options[2:2+int(options[1])])
		options = options[2+int(options[1]):]
	}
	return m, m.kind != 0
}

func (m *message) option(code byte, v []byte) {
	switch code {
	case optType:
		if len(v) == 1 {
			m.kind = v[0]
		}
	case optServerID:
		if len(v) == 4 {
			m.server = Addr(v[:4])
		}
	case optMask:
		if len(v) == 4 {
			m.mask = Addr(v[:4])
		}
	case optRouter:
		m.routers = addresses(v)
	case optDNS:
		m.dns = addresses(v)
	case optDomain:
		m.domain = domainName(v)
	case optMTU:
		if len(v) == 2 {
			m.mtu = int(binary.BigEndian.Uint16(v))
		}
	case optLeaseTime:
		if len(v) == 4 {
			m.lease, m.hasLease = time.Duration(binary.BigEndian.Uint32(v))*time.Second, true
		}
	}
}

func addresses(v []byte) []Addr {
	var list []Addr
	for ; len(v) >= 4 && len(list) < maxDNS; v = v[4:] {
		list = append(list, Addr(v[:4]))
	}
	return list
}

// domainName keeps what is a domain name: it goes into a file that programs parse.
func domainName(v []byte) string {
	s := strings.TrimRight(string(v), "\x00.")
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.') {
			return ""
		}
	}
	return s
}

// toLease checks an ACK.
func (m *message) toLease() (*Lease, error) {
	bits := 24 // the address alone does not say; most networks are this
	if m.mask.Is() {
		mask := binary.BigEndian.Uint32(m.mask[:])
		bits = 0
		for bits < 32 && mask&(1<<(31-bits)) != 0 {
			bits++
		}
		if bits < 32 && mask<<bits != 0 {
			return nil, errors.New("DHCP: the mask has holes")
		}
	}
	if first := m.your[0]; first == 0 || first == 127 || first >= 224 { // this network, loopback, multicast and above
		return nil, errors.New("DHCP: the address is none")
	}
	l := &Lease{Address: m.your, PrefixBits: bits, Server: m.server, DNS: m.dns, Domain: m.domain, For: defaultLease}
	if len(m.routers) > 0 {
		l.Router = m.routers[0]
	}
	if m.hasLease {
		l.For = max(m.lease, minLease)
	}
	if m.mtu >= minMTU {
		l.MTU = m.mtu
	}
	return l, nil
}

// Client asks for leases on one interface. Not for concurrent use.
type Client struct {
	Conn Conn
	MAC  [6]byte
	xid  uint32
}

// transaction makes a number that tells our exchange from others on the wire; a
// guess at it wins nothing that a neighbour on the link does not have anyway.
func transaction() uint32 {
	var b [4]byte
	if _, err := unix.Getrandom(b[:], unix.GRND_NONBLOCK|unix.GRND_INSECURE); err != nil {
		return uint32(time.Now().UnixNano())
	}
	return binary.LittleEndian.Uint32(b[:])
}

// Acquire gets a lease: DISCOVER, OFFER, REQUEST, ACK, with retransmission, until
// the deadline.
func (c *Client) Acquire(deadline time.Time) (*Lease, error) {
	for {
		c.xid = transaction()
		var none Addr
		discover := compose(dhcpDiscover, c.xid, c.MAC, none, none, none)
		offer, err := c.exchange(discover, deadline, -1, func(m *message) bool { return m.kind == dhcpOffer && m.server.Is() })
		if err != nil {
			return nil, err
		}
		request := compose(dhcpRequest, c.xid, c.MAC, offer.your, offer.server, none)
		lease, err := c.request(request, deadline, requestTries)
		if err == nil {
			return lease, nil
		}
		if !time.Now().Before(deadline) {
			return nil, err
		}
	}
}

// Renew asks for more of a lease; it is good until the lease ends.
func (c *Client) Renew(l *Lease, deadline time.Time) (*Lease, error) {
	c.xid = transaction()
	var none Addr
	return c.request(compose(dhcpRequest, c.xid, c.MAC, none, none, l.Address), deadline, -1)
}

var errNak = errors.New("DHCP: the server refused")

func (c *Client) request(request []byte, deadline time.Time, tries int) (*Lease, error) {
	m, err := c.exchange(request, deadline, tries, func(m *message) bool { return m.kind == dhcpAck || m.kind == dhcpNak })
	if err != nil {
		return nil, err
	}
	if m.kind == dhcpNak {
		return nil, errNak
	}
	return m.toLease()
}

// exchange sends until a message comes that wanted accepts; tries < 0 is no bound
// but the deadline.
func (c *Client) exchange(out []byte, deadline time.Time, tries int, wanted func(*message) bool) (*message, error) {
	wait := firstRetry
	for ; tries != 0; tries-- {
		if !time.Now().Before(deadline) {
			break
		}
		if err := c.Conn.Send(out); err != nil {
			return nil, err
		}
		until := time.Now().Add(wait)
		if until.After(deadline) {
			until = deadline
		}
		for {
			in, err := c.Conn.Receive(until)
			if err != nil {
				if time.Now().Before(until) {
					return nil, err // not for the time
				}
				break
			}
			if m, ok := parseReply(in); ok && m.xid == c.xid && m.mac == c.MAC && wanted(&m) {
				return &m, nil
			}
		}
		wait = min(2*wait, lastRetry)
	}
	return nil, ErrNoAnswer
}
