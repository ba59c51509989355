package network

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// resolver is a DNS server on the loopback, by UDP and TCP on one port. It
// answers A with 192.0.2.7; "silent." gets nothing, "tc." is truncated by UDP, and
// "forged." gets wrong answers before the right one.
func resolver(t *testing.T) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		t.Skipf("the TCP port beside UDP port %v is taken: %v", pc.LocalAddr(), err)
	}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		_, overTCP := w.RemoteAddr().(*net.TCPAddr)
		switch {
		case name == "silent.":
			return
		case name == "tc." && !overTCP:
			m.Truncated = true
			_ = w.WriteMsg(m)
			return
		case name == "forged.":
			bad := m.Copy()
			bad.Id++
			_ = w.WriteMsg(bad)
			bad = m.Copy()
			bad.Question[0].Name = "other."
			_ = w.WriteMsg(bad)
		}
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(192, 0, 2, 7)}}
		_ = w.WriteMsg(m)
	})
	servers := []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}}
	for _, s := range servers {
		done := make(chan struct{})
		go func() { defer close(done); _ = s.ActivateAndServe() }()
		t.Cleanup(func() { _ = s.Shutdown(); <-done })
	}
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

func (g *guest) lookup(u *User, network, name string, qtype uint16) (*dns.Msg, error) {
	to := netip.AddrPortFrom(u.cfg.DNS, dnsPort)
	var c net.Conn
	if network == "tcp" {
		tc, err := g.dialTCP(to)
		if err != nil {
			return nil, err
		}
		defer tc.Close()
		c = tc
	} else {
		c = g.dialUDP(to)
	}
	_ = c.SetDeadline(time.Now().Add(testTimeout))
	co := &dns.Conn{Conn: c}
	if network == "tcp" {
		co = &dns.Conn{Conn: tcpOnly{c}}
	}
	if err := co.WriteMsg(new(dns.Msg).SetQuestion(name, qtype)); err != nil {
		return nil, err
	}
	return co.ReadMsg()
}

// tcpOnly hides that a connection of the guest's stack is packet oriented or not:
// package dns asks for the type.
type tcpOnly struct{ net.Conn }

func TestDNS(t *testing.T) {
	u, g := rig(t, UserConfig{Resolvers: []netip.AddrPort{resolver(t)}})
	for _, c := range []struct {
		network, name string
		qtype         uint16
		rcode         int
		want          string
	}{
		{"udp", "example.org.", dns.TypeA, dns.RcodeSuccess, "192.0.2.7"},
		{"udp", "forged.", dns.TypeA, dns.RcodeSuccess, "192.0.2.7"},
		{"udp", "GateWay.peervisor.internal.", dns.TypeA, dns.RcodeSuccess, "10.0.2.2"},
		{"udp", "guest.peervisor.internal.", dns.TypeA, dns.RcodeSuccess, "10.0.2.15"},
		{"udp", "gateway.peervisor.internal.", dns.TypeAAAA, dns.RcodeSuccess, ""},
		{"udp", "nobody.peervisor.internal.", dns.TypeA, dns.RcodeNameError, ""},
		{"tcp", "example.org.", dns.TypeA, dns.RcodeSuccess, "192.0.2.7"},
		{"tcp", "tc.", dns.TypeA, dns.RcodeSuccess, "192.0.2.7"},
		{"tcp", "host.peervisor.internal.", dns.TypeA, dns.RcodeSuccess, "10.0.2.2"},
	} {
		m, err := g.lookup(u, c.network, c.name, c.qtype)
		if err != nil {
			t.Errorf("%s %s: %v", c.network, c.name, err)
			continue
		}
		got := ""
		if len(m.Answer) == 1 {
			got = m.Answer[0].(*dns.A).A.String()
		}
		if m.Rcode != c.rcode || got != c.want || !m.Response {
			t.Errorf("%s %s: rcode %d, %q", c.network, c.name, m.Rcode, got)
		}
	}
	if m, err := g.lookup(u, "udp", "tc.", dns.TypeA); err != nil || !m.Truncated {
		t.Errorf("truncated answer: %v, %v", m, err)
	}
}

func TestDNSFailures(t *testing.T) {
	u, g := rig(t, UserConfig{Resolvers: []netip.AddrPort{}})
	if m, err := g.lookup(u, "udp", "example.org.", dns.TypeA); err != nil || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("no resolver: %v, %v", m, err)
	}
	u, g = rig(t, UserConfig{Restrict: true, Resolvers: []netip.AddrPort{resolver(t)}})
	if m, err := g.lookup(u, "udp", "example.org.", dns.TypeA); err != nil || m.Rcode != dns.RcodeRefused {
		t.Errorf("restricted: %v, %v", m, err)
	}
	if m, err := g.lookup(u, "udp", "gateway.peervisor.internal.", dns.TypeA); err != nil || m.Rcode != dns.RcodeSuccess {
		t.Errorf("restricted, own name: %v, %v", m, err)
	}
}

// A resolver that refuses connections is passed over for the next.
func TestDNSNextResolver(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	_ = pc.Close()
	u, g := rig(t, UserConfig{Resolvers: []netip.AddrPort{dead, resolver(t)}})
	if m, err := g.lookup(u, "udp", "example.org.", dns.TypeA); err != nil || len(m.Answer) != 1 {
		t.Errorf("%v, %v", m, err)
	}
}

// Close does not wait for a resolver that is silent.
func TestDNSCloseInFlight(t *testing.T) {
	u, g := rig(t, UserConfig{Resolvers: []netip.AddrPort{resolver(t)}})
	c := &dns.Conn{Conn: g.dialUDP(netip.AddrPortFrom(u.cfg.DNS, dnsPort))}
	if err := c.WriteMsg(new(dns.Msg).SetQuestion("silent.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "query under way", func() bool { return u.Stats().DNSQueries == 1 })
	start := time.Now()
	_ = u.Close()
	if d := time.Since(start); d > resolverTimeout/2 {
		t.Errorf("Close took %v", d)
	}
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	r := &resolvConf{path: path}
	if s := r.servers(); s != nil {
		t.Errorf("no file: %v", s)
	}
	write := func(text string, at int64) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Unix(at, 0)); err != nil {
			t.Fatal(err)
		}
		r.checked = time.Time{}
	}
	write("# c\nnameserver 127.0.0.53\nnameserver fd00::1\nnameserver nonsense\nsearch x\n", 1)
	if s := r.servers(); len(s) != 2 || s[0].String() != "127.0.0.53:53" || s[1].String() != "[fd00::1]:53" {
		t.Errorf("%v", s)
	}
	write("nameserver 9.9.9.9\n", 2)
	if s := r.servers(); len(s) != 1 || s[0].String() != "9.9.9.9:53" {
		t.Errorf("changed: %v", s)
	}
	write(strings.Repeat("nameserver 1.1.1.1\n", 10000), 3)
	if s := r.servers(); len(s) != 1 {
		t.Errorf("huge file read: %d servers", len(s))
	}
}

func FuzzDNS(f *testing.F) {
	for _, q := range []*dns.Msg{new(dns.Msg).SetQuestion("a.b.", dns.TypeA), new(dns.Msg).SetQuestion("gateway."+localZone, dns.TypeANY), new(dns.Msg).SetUpdate("z.")} {
		if b, err := q.Pack(); err == nil {
			f.Add(b)
		}
	}
	f.Add([]byte("\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xC0\x0C\x00\x01\x00\x01"))
	f.Add([]byte{})
	u, err := NewUser(UserConfig{Resolvers: []netip.AddrPort{}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = u.Close() })
	f.Fuzz(func(t *testing.T, b []byte) {
		a := u.dns.answer(context.Background(), b, "udp")
		if a != nil && (len(a) < 12 || a[2]&0x80 == 0 || a[0] != b[0] || a[1] != b[1]) {
			t.Errorf("answer %x to %x", a, b)
		}
		if end := questionEnd(b); end > len(b) || end != 0 && end < 17 {
			t.Errorf("question of %x ends at %d", b, end)
		}
		answers(b, b)
		answers(b, append([]byte{}, "\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01"...))
	})
}
