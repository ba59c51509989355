package network

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	vnet "github.com/peervisor/peervisor/virtio/net"
)

const testTimeout = 20 * time.Second

const guestMAC = tcpip.LinkAddress("\x52\x54\x00\x12\x34\x56")

// guest is a second TCP/IP stack in the place of a guest's: its link is a Conn
// of the network under test.
type guest struct {
	t     testing.TB
	conn  vnet.Conn
	off   vnet.Offload
	stack *stack.Stack
	done  chan struct{}
	once  sync.Once

	sendMu     sync.Mutex
	dispatcher stack.NetworkDispatcher
	tap        func(h vnet.Header, frame []byte) // sees received frames, if set
	tapMu      sync.Mutex
}

// allRx is what a Linux driver negotiates.
const allRx = userOffloads

func newGuest(t testing.TB, be vnet.Backend, off vnet.Offload) *guest {
	t.Helper()
	conn, err := be.Attach(off)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, conn: conn, off: off, done: make(chan struct{})}
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	recv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 4 << 20, Max: 8 << 20}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: 4 << 20, Max: 8 << 20}
	recovery := tcpip.TCPRecovery(0)
	sack := tcpip.TCPSACKEnabled(true)
	for _, o := range []tcpip.SettableTransportProtocolOption{&recv, &send, &recovery, &sack} {
		if err := g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.stack.CreateNIC(1, &guestLink{g}); err != nil {
		t.Fatal(err)
	}
	go g.receive()
	t.Cleanup(g.close)
	return g
}

// configure gives the guest its address and routes, as DHCP would.
func (g *guest) configure(u *User) *guest {
	g.t.Helper()
	return g.address(u.cfg.Guest, u.cfg.Gateway, u.cfg.Network)
}

func (g *guest) address(own, gateway netip.Addr, network netip.Prefix) *guest {
	g.t.Helper()
	addr := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: toTCPIP(own), PrefixLen: network.Bits()}}
	if err := g.stack.AddProtocolAddress(1, addr, stack.AddressProperties{}); err != nil {
		g.t.Fatal(err)
	}
	subnet, err := tcpip.NewSubnet(toTCPIP(network.Addr()), tcpip.MaskFromBytes(maskOf(network)))
	if err != nil {
		g.t.Fatal(err)
	}
	g.stack.SetRouteTable([]tcpip.Route{
		{Destination: subnet, NIC: 1},
		{Destination: header.IPv4EmptySubnet, Gateway: toTCPIP(gateway), NIC: 1},
	})
	return g
}

func (g *guest) close() {
	g.once.Do(func() {
		_ = g.conn.Close()
		<-g.done
		g.stack.Destroy()
	})
}

func (g *guest) receive() {
	defer close(g.done)
	room := make([]byte, vnet.HeaderBytes+vnet.MaxFrameBytes)
	for {
		n, err := g.conn.Recv([][]byte{room})
		if err != nil {
			return
		}
		if n == 0 {
			if g.conn.Wait() != nil {
				return
			}
			continue
		}
		frame := room[vnet.HeaderBytes:n]
		g.tapMu.Lock()
		if g.tap != nil {
			g.tap(room[:vnet.HeaderBytes], frame)
		}
		g.tapMu.Unlock()
		e := header.Ethernet(frame)
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(buffer.NewViewWithData(frame[header.EthernetMinimumSize:]))})
		p.PktType = tcpip.PacketHost
		g.dispatcher.DeliverNetworkPacket(e.Type(), p)
		p.DecRef()
	}
}

// send puts a raw frame on the link.
func (g *guest) send(h vnet.Header, frame ...[]byte) {
	g.sendMu.Lock()
	defer g.sendMu.Unlock()
	_ = g.conn.Send(h, frame)
}

func (g *guest) dialTCP(to netip.AddrPort) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	return gonet.DialContextTCP(ctx, g.stack, tcpip.FullAddress{NIC: 1, Addr: toTCPIP(to.Addr()), Port: to.Port()}, ipv4.ProtocolNumber)
}

func (g *guest) dialUDP(to netip.AddrPort) *gonet.UDPConn {
	g.t.Helper()
	c, err := gonet.DialUDP(g.stack, nil, &tcpip.FullAddress{NIC: 1, Addr: toTCPIP(to.Addr()), Port: to.Port()}, ipv4.ProtocolNumber)
	if err != nil {
		g.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(testTimeout))
	g.t.Cleanup(func() { _ = c.Close() })
	return c
}

// guestLink is the guest's end of the link. Checksums are verified by the stack
// unless they were left out by agreement.
type guestLink struct{ g *guest }

func (l *guestLink) MTU() uint32                      { return 1500 }
func (l *guestLink) SetMTU(uint32)                    {}
func (l *guestLink) MaxHeaderLength() uint16          { return header.EthernetMinimumSize }
func (l *guestLink) LinkAddress() tcpip.LinkAddress   { return guestMAC }
func (l *guestLink) SetLinkAddress(tcpip.LinkAddress) {}
func (l *guestLink) Capabilities() stack.LinkEndpointCapabilities {
	c := stack.CapabilityResolutionRequired
	if l.g.off&vnet.TxChecksum != 0 {
		c |= stack.CapabilityTXChecksumOffload
	}
	if l.g.off&vnet.RxChecksum != 0 {
		c |= stack.CapabilityRXChecksumOffload
	}
	return c
}
func (l *guestLink) Attach(d stack.NetworkDispatcher)        { l.g.dispatcher = d }
func (l *guestLink) IsAttached() bool                        { return l.g.dispatcher != nil }
func (l *guestLink) Wait()                                   {}
func (l *guestLink) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (l *guestLink) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *guestLink) Close()                                  {}
func (l *guestLink) SetOnCloseAction(func())                 {}
func (l *guestLink) GSOMaxSize() uint32                      { return gsoBytes }
func (l *guestLink) SupportedGSO() stack.SupportedGSO {
	if l.g.off&vnet.TxTSO4 != 0 {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}
func (l *guestLink) AddHeader(p *stack.PacketBuffer) {
	header.Ethernet(p.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: p.EgressRoute.LocalLinkAddress, DstAddr: p.EgressRoute.RemoteLinkAddress, Type: p.NetworkProtocolNumber,
	})
}

func (l *guestLink) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	l.g.sendMu.Lock()
	defer l.g.sendMu.Unlock()
	var hdr [vnet.HeaderBytes]byte
	var frame [64][]byte
	for _, p := range pkts.AsSlice() {
		f := frame[:0]
		// What the stack under test does for packets to a guest serves here for those
		// from one.
		as := userConn{}
		if l.g.off&vnet.TxChecksum != 0 {
			as.offload |= vnet.RxChecksum
		}
		if l.g.off&vnet.TxTSO4 != 0 {
			as.offload |= vnet.RxTSO4
		}
		clear(hdr[:])
		as.finish(hdr[:], p)
		views, skip := p.AsViewList()
		for v := views.Front(); v != nil; v = v.Next() {
			b := v.AsSlice()
			k := min(skip, len(b))
			skip -= k
			f = append(f, b[k:])
		}
		_ = l.g.conn.Send(hdr[:], f)
	}
	return pkts.Len(), nil
}

func newUser(t testing.TB, cfg UserConfig) *User {
	t.Helper()
	u, err := NewUser(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	return u
}
