package network

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	vnet "github.com/peervisor/peervisor/virtio/net"
)

// udpFrame is a frame from the guest to the gateway's link address.
func udpFrame(u *User, src, dst netip.AddrPort, payload []byte) []byte {
	b := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize+header.UDPMinimumSize, 2048)
	b = append(b, payload...)
	mac := u.link.mac
	if dst.Addr() == broadcastAddr {
		mac = header.EthernetBroadcastAddress
	}
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: mac, Type: header.IPv4ProtocolNumber})
	ip := header.IPv4(b[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber),
		SrcAddr: toTCPIP(src.Addr()), DstAddr: toTCPIP(dst.Addr())})
	ip.SetChecksum(^ip.CalculateChecksum())
	h := header.UDP(ip[header.IPv4MinimumSize:])
	h.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(len(h))})
	return b
}

// arpFrame asks who has an address.
func arpFrame(sender, target netip.Addr, mac tcpip.LinkAddress) []byte {
	b := make([]byte, header.EthernetMinimumSize+header.ARPSize)
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: mac, DstAddr: header.EthernetBroadcastAddress, Type: header.ARPProtocolNumber})
	a := header.ARP(b[header.EthernetMinimumSize:])
	a.SetIPv4OverEthernet()
	a.SetOp(header.ARPRequest)
	copy(a.HardwareAddressSender(), mac)
	s, d := sender.As4(), target.As4()
	copy(a.ProtocolAddressSender(), s[:])
	copy(a.ProtocolAddressTarget(), d[:])
	return b
}

// recvFrame waits for the next frame of a bare Conn.
func recvFrame(t testing.TB, c vnet.Conn) (vnet.Header, []byte) {
	t.Helper()
	room := make([]byte, vnet.HeaderBytes+vnet.MaxFrameBytes)
	for {
		n, err := c.Recv([][]byte{room[:5], room[5:9], room[9:70], room[70:]})
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			return vnet.Header(room[:vnet.HeaderBytes]), room[vnet.HeaderBytes:n]
		}
		if err := c.Wait(); err != nil {
			t.Fatal(err)
		}
	}
}

// bare attaches without a guest stack.
func bare(t testing.TB, u *User, off vnet.Offload) vnet.Conn {
	t.Helper()
	c, err := u.Attach(off)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

var noHeader = make(vnet.Header, vnet.HeaderBytes)

func TestARPOnlyForOwnAddresses(t *testing.T) {
	u := newUser(t, UserConfig{})
	c := bare(t, u, 0)
	for _, a := range []netip.Addr{u.cfg.Guest, nthAddr(u.cfg.Network, 77), netip.MustParseAddr("8.8.8.8")} {
		_ = c.Send(noHeader, [][]byte{arpFrame(u.cfg.Guest, a, guestMAC)})
	}
	for _, a := range []netip.Addr{u.cfg.Gateway, u.cfg.DNS} {
		_ = c.Send(noHeader, [][]byte{arpFrame(u.cfg.Guest, a, guestMAC)})
		h, f := recvFrame(t, c)
		e, r := header.Ethernet(f), header.ARP(f[header.EthernetMinimumSize:])
		if h.Flags() != 0 || e.DestinationAddress() != guestMAC || r.Op() != header.ARPReply ||
			[4]byte(r.ProtocolAddressSender()) != a.As4() || tcpip.LinkAddress(r.HardwareAddressSender()) != u.link.mac {
			t.Errorf("answer for %v: %x", a, f)
		}
	}
}

// What leaves the stack carries a partial checksum with the offload, and a whole
// one without.
func TestChecksumsTowardsTheGuest(t *testing.T) {
	for _, off := range []vnet.Offload{0, vnet.RxChecksum} {
		u := newUser(t, UserConfig{})
		c := bare(t, u, off)
		syn := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize+header.TCPMinimumSize)
		header.Ethernet(syn).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: u.link.mac, Type: header.IPv4ProtocolNumber})
		ip := header.IPv4(syn[header.EthernetMinimumSize:])
		ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
			SrcAddr: toTCPIP(u.cfg.Guest), DstAddr: toTCPIP(u.cfg.Gateway)})
		header.TCP(ip[header.IPv4MinimumSize:]).Encode(&header.TCPFields{SrcPort: 1, DstPort: 2, SeqNum: 3, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 1000})
		_ = c.Send(noHeader, [][]byte{syn})
		h, f := recvFrame(t, c)
		ip = header.IPv4(f[header.EthernetMinimumSize:])
		tcp := header.TCP(ip.Payload())
		if !tcp.Flags().Contains(header.TCPFlagRst) || !ip.IsChecksumValid() {
			t.Fatalf("not a reset: %x", f)
		}
		pseudo := header.PseudoHeaderChecksum(header.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(tcp)))
		if off == 0 {
			if h.Flags() != 0 || checksum.Checksum(tcp, pseudo) != 0xFFFF {
				t.Errorf("flags %#x, checksum %#x", h.Flags(), tcp.Checksum())
			}
		} else if h.Flags() != vnet.VIRTIO_NET_HDR_F_NEEDS_CSUM || h.CsumStart() != 34 || h.CsumOffset() != 16 || tcp.Checksum() != pseudo {
			t.Errorf("header %x, checksum %#x, want %#x", h, tcp.Checksum(), pseudo)
		}
	}
}

// The queue towards a guest that does not receive is bounded.
func TestQueueIsBounded(t *testing.T) {
	u := newUser(t, UserConfig{})
	c := bare(t, u, 0)
	for range maxQueued + 100 {
		_ = c.Send(noHeader, [][]byte{arpFrame(u.cfg.Guest, u.cfg.Gateway, guestMAC)})
	}
	if d := u.Stats().QueueDrops; d != 100 {
		t.Errorf("%d drops", d)
	}
	_ = c.Close()
	if u.link.queue.n != 0 {
		t.Error("packets left in the queue")
	}
	// Without a driver nothing is kept.
	u.answerDHCP(dhcpQuery(dhcpDiscover, nil))
	if u.link.queue.n != 0 {
		t.Error("packet queued for nobody")
	}
	bare(t, u, 0)
	if _, err := u.Attach(0); err == nil {
		t.Error("attached twice")
	}
}

// FuzzFrame throws frames at the whole stack.
func FuzzFrame(f *testing.F) {
	u, err := NewUser(UserConfig{MaxTCP: 8, MaxUDP: 8, MaxPing: 8, Resolvers: []netip.AddrPort{}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = u.Close() })
	u.policy.routeType = func(netip.Addr) (int, error) { return 0, errRefused } // nothing leaves
	c := bare(f, u, userOffloads)
	f.Add(udpFrame(u, netip.AddrPortFrom(u.cfg.Guest, 1000), netip.AddrPortFrom(u.cfg.DNS, dnsPort), []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01")))
	f.Add(udpFrame(u, netip.AddrPortFrom(netip.AddrFrom4([4]byte{}), 68), netip.AddrPortFrom(broadcastAddr, 67), dhcpQuery(dhcpDiscover, nil)))
	f.Add(arpFrame(u.cfg.Guest, u.cfg.Gateway, guestMAC))
	room := [][]byte{make([]byte, vnet.HeaderBytes+vnet.MaxFrameBytes)}
	f.Fuzz(func(t *testing.T, frame []byte) {
		_ = c.Send(noHeader, [][]byte{frame})
		for {
			n, err := c.Recv(room)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				return
			}
		}
	})
}
