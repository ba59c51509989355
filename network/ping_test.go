package network

import (
	"bytes"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	vnet "github.com/peervisor/peervisor/virtio/net"
)

// echoFrame is a ping from the guest.
func echoFrame(u *User, dst netip.Addr, ident, seq uint16, data []byte) []byte {
	b := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize+header.ICMPv4MinimumSize, 2048)
	b = append(b, data...)
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: u.link.mac, Type: header.IPv4ProtocolNumber})
	ip := header.IPv4(b[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(header.ICMPv4ProtocolNumber),
		SrcAddr: toTCPIP(u.cfg.Guest), DstAddr: toTCPIP(dst)})
	ip.SetChecksum(^ip.CalculateChecksum())
	h := header.ICMPv4(ip[header.IPv4MinimumSize:])
	h.SetType(header.ICMPv4Echo)
	h.SetIdent(ident)
	h.SetSequence(seq)
	h.SetChecksum(^checksum.Checksum(h, 0))
	return b
}

// recvICMP waits for an ICMP message to the guest, and checks what all have.
func recvICMP(t *testing.T, u *User, c vnet.Conn) (from netip.Addr, msg header.ICMPv4) {
	t.Helper()
	for {
		_, f := recvFrame(t, c)
		ip := header.IPv4(f[header.EthernetMinimumSize:])
		if header.Ethernet(f).Type() != header.IPv4ProtocolNumber || ip.TransportProtocol() != header.ICMPv4ProtocolNumber {
			continue
		}
		msg = header.ICMPv4(bytes.Clone(ip.Payload()))
		if fromTCPIP(ip.DestinationAddress()) != u.cfg.Guest || !ip.IsChecksumValid() || checksum.Checksum(msg, 0) != 0xFFFF {
			t.Errorf("ICMP %x", f)
		}
		return fromTCPIP(ip.SourceAddress()), msg
	}
}

func TestPingGateway(t *testing.T) {
	u := newUser(t, UserConfig{})
	c := bare(t, u, 0)
	for _, a := range []netip.Addr{u.cfg.Gateway, u.cfg.DNS} {
		_ = c.Send(noHeader, [][]byte{echoFrame(u, a, 77, 5, []byte("data"))})
		from, m := recvICMP(t, u, c)
		if from != a || m.Type() != header.ICMPv4EchoReply || m.Ident() != 77 || m.Sequence() != 5 || !bytes.HasSuffix(m, []byte("data")) {
			t.Errorf("from %v: %x", from, m)
		}
	}
}

// pingRange permits ping sockets in the thread's network namespace, or forbids them.
func pingRange(t *testing.T, r string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(r), 0o600); err != nil {
		t.Skipf("cannot set who may ping: %v", err)
	}
}

// Pings go out by a ping socket. Frames are sent by this goroutine, so that the
// socket is one of its namespace.
func TestPingOut(t *testing.T) {
	privateNetns(t)
	u := newUser(t, UserConfig{HostAccess: true})
	addAddr(t, "lo", "192.0.2.1/32")
	if _, err := netlink.LinkByName("lo"); err != nil {
		t.Fatal(err)
	}
	dst := netip.MustParseAddr("192.0.2.1")
	c := bare(t, u, 0)
	pingRange(t, "1 0")
	_ = c.Send(noHeader, [][]byte{echoFrame(u, dst, 1, 1, nil)})
	if _, m := recvICMP(t, u, c); m.Type() != header.ICMPv4DstUnreachable || m.Code() != header.ICMPv4AdminProhibited {
		t.Errorf("not permitted: %x", m)
	}
	pingRange(t, "0 2147483647")
	for seq := range uint16(3) {
		_ = c.Send(noHeader, [][]byte{echoFrame(u, dst, 99, seq, bytes.Repeat([]byte("x"), 100))})
		from, m := recvICMP(t, u, c)
		if from != dst || m.Type() != header.ICMPv4EchoReply || m.Ident() != 99 || m.Sequence() != seq || len(m) != 108 {
			t.Errorf("from %v: %x", from, m)
		}
	}
	if s := u.Stats(); s.PingOpen != 1 || s.FlowDrops != 0 {
		t.Errorf("%+v", s)
	}
	_ = c.Send(noHeader, [][]byte{echoFrame(u, netip.MustParseAddr("198.51.100.1"), 1, 1, nil)})
	if _, m := recvICMP(t, u, c); m.Type() != header.ICMPv4DstUnreachable || m.Code() != header.ICMPv4HostUnreachable {
		t.Errorf("no route: %x", m)
	}
}
