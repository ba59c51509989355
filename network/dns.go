package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	dnsPort = 53
	// localZone holds the names that the forwarder itself answers: gateway and host for
	// the gateway, dns, guest. DHCP makes it the search domain. The top level is
	// reserved for private use.
	localZone = "peervisor.internal."

	// maxQueries bounds the queries under way; the guest repeats others.
	maxQueries = 128
	// maxResolvers are tried in turn, each for resolverTimeout.
	maxResolvers    = 3
	resolverTimeout = 3 * time.Second
	// tcpQueryIdle ends a DNS connection of the guest without queries.
	tcpQueryIdle = 10 * time.Second
	maxDNSBytes  = 65535
)

// dnsServer is the guest's name server. It answers for localZone and passes other
// queries on unread, to the machine's resolvers, by the transport that the
// guest used.
type dnsServer struct {
	u         *User
	slots     chan struct{}
	resolvers func() []netip.AddrPort
	local     map[string]netip.Addr
}

func newDNSServer(u *User) *dnsServer {
	s := &dnsServer{u: u, slots: make(chan struct{}, maxQueries), local: map[string]netip.Addr{
		"gateway." + localZone: u.cfg.Gateway, "host." + localZone: u.cfg.Gateway,
		"dns." + localZone: u.cfg.DNS, "guest." + localZone: u.cfg.Guest,
	}}
	fixed := u.cfg.Resolvers
	if fixed != nil {
		s.resolvers = func() []netip.AddrPort { return fixed }
	} else {
		s.resolvers = (&resolvConf{path: "/etc/resolv.conf"}).servers
	}
	return s
}

// serveUDP answers a datagram of the guest later, from a goroutine.
func (s *dnsServer) serveUDP(guest netip.AddrPort, payload []byte) {
	select {
	case s.slots <- struct{}{}:
	default:
		s.u.stats.limitDrops.Add(1)
		return
	}
	query := append([]byte(nil), payload...)
	started := s.u.start(func() {
		defer func() { <-s.slots }()
		answer := s.answer(s.u.ctx, query, "udp")
		if answer == nil {
			return
		}
		r, err := s.u.route(s.u.cfg.DNS, guest.Addr())
		if err != nil {
			return
		}
		defer r.Release()
		s.u.sendDatagram(r, dnsPort, guest.Port(), answer)
	})
	if !started {
		<-s.slots
	}
}

// serveTCP answers the queries of one connection of the guest (RFC 1035,
// section 4.2.2), one after the other, and closes it.
func (s *dnsServer) serveTCP(ep tcpip.Endpoint, wq *waiter.Queue) {
	c := gonet.NewTCPConn(wq, ep)
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(s.u.ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for s.u.ctx.Err() == nil {
		_ = c.SetDeadline(time.Now().Add(tcpQueryIdle))
		query, err := readDNS(c)
		if err != nil {
			return
		}
		answer := s.answer(s.u.ctx, query, "tcp")
		if answer == nil || writeDNS(c, answer) != nil {
			return
		}
	}
}

// readDNS reads a message after its two bytes of length.
func readDNS(r io.Reader) ([]byte, error) {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(n[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeDNS(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

// answer is the response to a query; nil: it deserves none.
func (s *dnsServer) answer(ctx context.Context, query []byte, network string) []byte {
	s.u.stats.dnsQueries.Add(1)
	q, rcode, ok := parseQuery(query)
	if !ok {
		return nil
	}
	if rcode != dns.RcodeSuccess {
		return pack(new(dns.Msg).SetRcode(q, rcode))
	}
	if m := s.localAnswer(q); m != nil {
		return pack(m)
	}
	if s.u.cfg.Restrict {
		return pack(new(dns.Msg).SetRcode(q, dns.RcodeRefused))
	}
	answer, err := s.forward(ctx, query, network)
	if err != nil {
		s.u.stats.dnsFailed.Add(1)
		s.u.cfg.Log.Debug("DNS query failed", "error", err.Error())
		return pack(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
	}
	return answer
}

// parseQuery reads a query as far as it can be answered. ok is false for what is
// not a query at all; an rcode other than success is the whole answer.
func parseQuery(b []byte) (q *dns.Msg, rcode int, ok bool) {
	q = new(dns.Msg)
	if len(b) < 12 || b[2]&0x80 != 0 { // QR: a response
		return nil, 0, false
	}
	if err := q.Unpack(b); err != nil {
		q = new(dns.Msg)
		q.Id = binary.BigEndian.Uint16(b)
		return q, dns.RcodeFormatError, true
	}
	switch {
	case q.Opcode != dns.OpcodeQuery:
		return q, dns.RcodeNotImplemented, true
	case len(q.Question) != 1:
		return q, dns.RcodeFormatError, true
	}
	return q, dns.RcodeSuccess, true
}

// pack renders a message; nil if it cannot be.
func pack(m *dns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

// localAnswer answers for names of localZone; nil: another's.
func (s *dnsServer) localAnswer(q *dns.Msg) *dns.Msg {
	question := q.Question[0]
	name := strings.ToLower(question.Name)
	if name != localZone && !strings.HasSuffix(name, "."+localZone) {
		return nil
	}
	m := new(dns.Msg).SetReply(q)
	m.Authoritative, m.RecursionAvailable = true, true
	addr, ok := s.local[name]
	switch {
	case !ok && name != localZone:
		m.Rcode = dns.RcodeNameError
	case ok && question.Qclass == dns.ClassINET && (question.Qtype == dns.TypeA || question.Qtype == dns.TypeANY):
		m.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
			A:   addr.AsSlice(),
		}}
	}
	return m
}

var errNoResolver = errors.New("this machine names no DNS resolver")

// forward asks the resolvers in turn.
func (s *dnsServer) forward(ctx context.Context, query []byte, network string) ([]byte, error) {
	servers := s.resolvers()
	if len(servers) > maxResolvers {
		servers = servers[:maxResolvers]
	}
	err := errNoResolver
	for _, server := range servers {
		var answer []byte
		if answer, err = exchange(ctx, network, server, query); err == nil {
			return answer, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// exchange sends the query under an identifier of our own, from a port that the
// kernel chose, and takes only what answers it.
func exchange(ctx context.Context, network string, server netip.AddrPort, query []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, resolverTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, fmt.Errorf("ask resolver %v: %w", server, err)
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	ours := append([]byte(nil), query...)
	binary.BigEndian.PutUint16(ours, dns.Id())
	if network == "tcp" {
		err = writeDNS(c, ours)
	} else {
		_, err = c.Write(ours)
	}
	for err == nil {
		var b []byte
		if b, err = readAnswer(c, network); err == nil && answers(b, ours) {
			copy(b, query[:2])
			return b, nil
		}
	}
	return nil, fmt.Errorf("ask resolver %v: %w", server, err)
}

func readAnswer(c net.Conn, network string) ([]byte, error) {
	if network == "tcp" {
		return readDNS(c)
	}
	b := make([]byte, maxDNSBytes)
	n, err := c.Read(b)
	return b[:max(n, 0)], err
}

// answers says whether b is a response to the query: same identifier, same
// question but for case.
func answers(b, query []byte) bool {
	if len(b) < 12 || b[2]&0x80 == 0 || b[0] != query[0] || b[1] != query[1] {
		return false
	}
	end := questionEnd(query)
	if binary.BigEndian.Uint16(b[4:]) == 0 {
		return true // an error without a question
	}
	return end > 0 && len(b) >= end && equalFold(b[12:end], query[12:end])
}

// equalFold compares bytes but for the case of ASCII letters.
func equalFold(a, b []byte) bool {
	lower := func(c byte) byte {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		return c
	}
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

// questionEnd is where the first question of a message ends, 0 if it does not.
func questionEnd(b []byte) int {
	for i := 12; i < len(b); {
		switch n := int(b[i]); {
		case n == 0 && i+5 <= len(b):
			return i + 5
		case n == 0 || n > 63:
			return 0
		default:
			i += 1 + n
		}
	}
	return 0
}
