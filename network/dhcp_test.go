package network

import (
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// dhcpQuery is a client's message with options after its type.
func dhcpQuery(kind byte, change func(b []byte) []byte) []byte {
	b := make([]byte, dhcpHeaderBytes)
	b[0], b[1], b[2] = bootRequest, 1, 6
	copy(b[4:], "\xDE\xAD\xBE\xEF")
	copy(b[28:], guestMAC)
	b = append(b, dhcpCookie[:]...)
	b = append(b, optMessageType, 1, kind)
	if change != nil {
		b = change(b)
	}
	return append(b, optEnd)
}

func withAddr(code byte, a netip.Addr) func([]byte) []byte {
	return func(b []byte) []byte { return appendAddr(b, code, a) }
}

func dhcpRig(t *testing.T) (*dhcpServer, *time.Time, UserConfig) {
	t.Helper()
	cfg, err := UserConfig{MTU: 1400, Hostname: "vm"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_000_000, 0)
	return newDHCPServer(&cfg, func() time.Time { return now }), &now, cfg
}

// options maps the options of a reply.
func options(t *testing.T, r *dhcpReply) map[byte]string {
	t.Helper()
	if r == nil {
		t.Fatal("no reply")
	}
	out := map[byte]string{}
	for o := r.payload[dhcpHeaderBytes+4:]; len(o) > 0 && o[0] != optEnd; o = o[2+int(o[1]):] {
		out[o[0]] = string(o[2 : 2+int(o[1])])
	}
	return out
}

func yiaddr(r *dhcpReply) netip.Addr { return netip.AddrFrom4([4]byte(r.payload[16:20])) }

// RFC 2131, section 4.3: the four messages, and what they carry.
func TestDHCPLease(t *testing.T) {
	s, _, cfg := dhcpRig(t)
	offer := s.handle(dhcpQuery(dhcpDiscover, nil))
	o := options(t, offer)
	if o[optMessageType] != string(rune(dhcpOffer)) || yiaddr(offer) != cfg.Guest || offer.to != cfg.Guest {
		t.Fatalf("offer %v to %v", o, offer.to)
	}
	ack := s.handle(dhcpQuery(dhcpRequest, func(b []byte) []byte {
		return withAddr(optServerID, cfg.Gateway)(withAddr(optRequestedIP, cfg.Guest)(b))
	}))
	o = options(t, ack)
	for code, want := range map[byte]string{
		optMessageType: "\x05", optServerID: "\x0a\x00\x02\x02", optMask: "\xff\xff\xff\x00", optRouter: "\x0a\x00\x02\x02",
		optDNS: "\x0a\x00\x02\x03", optMTU: "\x05\x78", optLease: "\x00\x01\x51\x80", optRenewal: "\x00\x00\xa8\xc0",
		optBroadcast: "\x0a\x00\x02\xff", optHostname: "vm", optDomain: "peervisor.internal",
	} {
		if o[code] != want {
			t.Errorf("option %d is %q, want %q", code, o[code], want)
		}
	}
	if len(ack.payload) < dhcpMinBytes || string(ack.payload[4:8]) != "\xDE\xAD\xBE\xEF" || ack.payload[0] != bootReply {
		t.Errorf("header %x", ack.payload[:44])
	}
}

func TestDHCPRequests(t *testing.T) {
	s, now, cfg := dhcpRig(t)
	other := netip.MustParseAddr("10.0.2.200")
	ack, nak := string(rune(dhcpAck)), string(rune(dhcpNak))
	ciaddr := func(a netip.Addr) func([]byte) []byte {
		return func(b []byte) []byte { put4(b[12:], a); return b }
	}
	mac2 := func(f func([]byte) []byte) func([]byte) []byte {
		return func(b []byte) []byte { b[33] ^= 1; return f(b) }
	}
	same := func(b []byte) []byte { return b }
	for i, c := range []struct {
		name   string
		kind   byte
		change func([]byte) []byte
		want   string // message type, "" for silence
		addr   netip.Addr
	}{
		{"another server's", dhcpRequest, withAddr(optServerID, other), "", netip.Addr{}},
		{"wrong network", dhcpRequest, withAddr(optRequestedIP, netip.MustParseAddr("192.168.1.5")), nak, netip.Addr{}},
		{"the gateway's address", dhcpRequest, withAddr(optRequestedIP, cfg.Gateway), nak, netip.Addr{}},
		{"nothing", dhcpRequest, nil, nak, netip.Addr{}},
		{"init-reboot", dhcpRequest, withAddr(optRequestedIP, cfg.Guest), ack, cfg.Guest},
		{"renewal", dhcpRequest, ciaddr(cfg.Guest), ack, cfg.Guest},
		{"somebody else's", dhcpRequest, mac2(withAddr(optRequestedIP, cfg.Guest)), nak, netip.Addr{}},
		{"second client", dhcpDiscover, mac2(same), string(rune(dhcpOffer)), cfg.Guest.Next()},
		{"second client again", dhcpDiscover, mac2(same), string(rune(dhcpOffer)), cfg.Guest.Next()},
		{"inform", dhcpInform, ciaddr(other), ack, netip.AddrFrom4([4]byte{})},
		{"release", dhcpRelease, ciaddr(cfg.Guest), "", netip.Addr{}},
		{"now free for the second", dhcpRequest, mac2(withAddr(optRequestedIP, cfg.Guest)), ack, cfg.Guest},
		{"decline", dhcpDecline, mac2(withAddr(optRequestedIP, cfg.Guest)), "", netip.Addr{}},
		{"declined for all", dhcpRequest, mac2(withAddr(optRequestedIP, cfg.Guest)), nak, netip.Addr{}},
	} {
		r := s.handle(dhcpQuery(c.kind, c.change))
		if c.want == "" {
			if r != nil {
				t.Errorf("%d %s: answered", i, c.name)
			}
			continue
		}
		if o := options(t, r); o[optMessageType] != c.want || c.addr.IsValid() && yiaddr(r) != c.addr {
			t.Errorf("%d %s: type %q, address %v", i, c.name, o[optMessageType], yiaddr(r))
		}
		if c.want == nak && r.to != broadcastAddr {
			t.Errorf("%d %s: NAK to %v", i, c.name, r.to)
		}
	}
	*now = now.Add(25 * time.Hour)
	if r := s.handle(dhcpQuery(dhcpDiscover, nil)); yiaddr(r) != cfg.Guest {
		t.Errorf("after all leases ended: %v", yiaddr(r))
	}
}

func TestDHCPAddressing(t *testing.T) {
	s, _, cfg := dhcpRig(t)
	if r := s.handle(dhcpQuery(dhcpDiscover, func(b []byte) []byte { b[10] = 0x80; return b })); r.to != broadcastAddr {
		t.Errorf("broadcast flag: to %v", r.to)
	}
	if r := s.handle(dhcpQuery(dhcpDiscover, func(b []byte) []byte { b[24] = 10; return b })); r != nil {
		t.Error("relayed message answered")
	}
	for i := range 2 * maxLeases {
		s.handle(dhcpQuery(dhcpDiscover, func(b []byte) []byte { b[30], b[31] = 9, byte(i); return b }))
	}
	if n := len(s.leases); n > maxLeases {
		t.Errorf("%d leases", n)
	}
	_ = cfg
}

// DHCP through the link, before the client has an address.
func TestDHCPOnTheLink(t *testing.T) {
	u := newUser(t, UserConfig{})
	c := bare(t, u, 0)
	_ = c.Send(noHeader, [][]byte{udpFrame(u, netip.AddrPortFrom(netip.AddrFrom4([4]byte{}), dhcpClientPort),
		netip.AddrPortFrom(broadcastAddr, dhcpServerPort), dhcpQuery(dhcpDiscover, nil))})
	_, f := recvFrame(t, c)
	ip := header.IPv4(f[header.EthernetMinimumSize:])
	up := header.UDP(ip.Payload())
	pseudo := header.PseudoHeaderChecksum(header.UDPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(up)))
	if header.Ethernet(f).DestinationAddress() != guestMAC || !ip.IsChecksumValid() || up.DestinationPort() != dhcpClientPort ||
		checksum.Checksum(up, pseudo) != 0xFFFF {
		t.Errorf("frame %x", f[:60])
	}
}

func FuzzDHCP(f *testing.F) {
	f.Add(dhcpQuery(dhcpDiscover, nil))
	f.Add(dhcpQuery(dhcpRequest, withAddr(optRequestedIP, netip.MustParseAddr("10.0.2.15"))))
	f.Add(dhcpQuery(dhcpDecline, withAddr(optRequestedIP, netip.MustParseAddr("10.0.2.15"))))
	f.Add([]byte{})
	cfg, err := UserConfig{}.withDefaults()
	if err != nil {
		f.Fatal(err)
	}
	s := newDHCPServer(&cfg, time.Now)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := s.handle(b)
		if len(s.leases) > maxLeases+1 {
			t.Errorf("%d leases", len(s.leases))
		}
		if r != nil && (len(r.payload) < dhcpMinBytes || !cfg.isHost(r.to) && r.to != broadcastAddr) {
			t.Errorf("%d bytes to %v", len(r.payload), r.to)
		}
	})
}
