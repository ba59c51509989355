package network

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	vnet "github.com/peervisor/peervisor/virtio/net"
)

// nicID is the stack's only interface.
const nicID tcpip.NICID = 1

// User is a user-mode network. It implements the Backend of package virtio/net and
// lives across activations: connections survive a driver's reset and, where the
// device half stays behind, a guest that moves.
type User struct {
	cfg    UserConfig
	link   *link
	stack  *stack.Stack
	policy *policy
	routes *kernelRoutes
	stats  userCounters

	buffers datagrams

	tcp   tcpTable
	flows flows
	dhcp  *dhcpServer
	dns   *dnsServer
	fwd   []forward

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup // every goroutine of ours
}

var _ vnet.Backend = (*User)(nil)

// NewUser makes a user network and binds its forwards.
func NewUser(cfg UserConfig) (*User, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("configure user network: %w", err)
	}
	// gVisor logs to standard error, for the whole process; what a guest can provoke
	// is below this level.
	log.SetLevel(log.Warning)
	u := &User{cfg: cfg}
	u.ctx, u.cancel = context.WithCancel(context.Background())
	if u.routes, err = openKernelRoutes(); err != nil {
		u.cancel()
		return nil, fmt.Errorf("start user network: %w", err)
	}
	u.policy = &policy{network: cfg.Network, gateway: cfg.Gateway, dns: cfg.DNS,
		hostAccess: cfg.HostAccess, restrict: cfg.Restrict, routeType: u.routes.typeOf}
	u.link = &link{mac: gatewayMAC(cfg.Gateway), mtu: uint32(cfg.MTU), own: [2]netip.Addr{cfg.Gateway, cfg.DNS}, stats: &u.stats, learned: u.learned}
	u.dhcp = newDHCPServer(&u.cfg, time.Now)
	u.dns = newDNSServer(u)
	u.flows.init(u)
	u.tcp.init(cfg.MaxTCP)
	if err := u.startStack(); err != nil {
		_ = u.Close()
		return nil, fmt.Errorf("start user network: %w", err)
	}
	for _, f := range cfg.Forwards {
		if err := u.listen(f); err != nil {
			_ = u.Close()
			return nil, fmt.Errorf("start user network: %w", err)
		}
	}
	return u, nil
}

// gatewayMAC is a locally administered address made of the IPv4 one, as QEMU's is.
func gatewayMAC(a netip.Addr) tcpip.LinkAddress {
	b := a.As4()
	return tcpip.LinkAddress([]byte{0x52, 0x55, b[0], b[1], b[2], b[3]})
}

// Sizes of each TCP connection's buffers towards the guest, in bytes: what a
// connection may hold at most in each direction.
const (
	tcpReceiveBytes = 1 << 20
	tcpSendBytes    = 1 << 20
)

func (u *User) startStack() error {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	u.stack = s
	recv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: tcpReceiveBytes, Max: tcpReceiveBytes}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: tcpSendBytes, Max: tcpSendBytes}
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(false)
	// The link loses nothing but on overflow: timers for reordering only cost.
	recovery := tcpip.TCPRecovery(0)
	timeWait := tcpip.TCPTimeWaitTimeoutOption(time.Second)
	for _, o := range []tcpip.SettableTransportProtocolOption{&recv, &send, &sack, &moderate, &recovery, &timeWait} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set TCP option %T: %v", o, err)
		}
	}
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, u.tcpHandler())
	s.SetTransportProtocolHandler(udp.ProtocolNumber, u.handleUDP)
	s.SetTransportProtocolHandler(icmp.ProtocolNumber4, u.handlePing)
	if err := s.CreateNIC(nicID, u.link); err != nil {
		return fmt.Errorf("create interface: %v", err)
	}
	for _, a := range []netip.Addr{u.cfg.Gateway, u.cfg.DNS} {
		pa := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: toTCPIP(a), PrefixLen: u.cfg.Network.Bits()}}
		if err := s.AddProtocolAddress(nicID, pa, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("add address %v: %v", a, err)
		}
	}
	// Every destination is taken in (promiscuous) and answered for (spoofing).
	if err := s.SetPromiscuousMode(nicID, true); err != nil {
		return fmt.Errorf("set promiscuous mode: %v", err)
	}
	if err := s.SetSpoofing(nicID, true); err != nil {
		return fmt.Errorf("set spoofing: %v", err)
	}
	subnet, err := tcpip.NewSubnet(toTCPIP(u.cfg.Network.Addr()), tcpip.MaskFromBytes(maskOf(u.cfg.Network)))
	if err != nil {
		return fmt.Errorf("make subnet of %v: %w", u.cfg.Network, err)
	}
	s.SetRouteTable([]tcpip.Route{{Destination: subnet, NIC: nicID}})
	return nil
}

// maskOf is the network mask as four bytes.
func maskOf(p netip.Prefix) []byte {
	m := fromUint32(^uint32(0) << (32 - p.Bits())).As4()
	return m[:]
}

func toTCPIP(a netip.Addr) tcpip.Address   { return tcpip.AddrFrom4(a.As4()) }
func fromTCPIP(a tcpip.Address) netip.Addr { return netip.AddrFrom4(a.As4()) }

// learned pins an address of the guest in the stack's neighbor table.
func (u *User) learned(a netip.Addr, mac tcpip.LinkAddress) {
	if u.cfg.isHost(a) && a != u.cfg.Gateway && a != u.cfg.DNS {
		_ = u.stack.AddStaticNeighbor(nicID, ipv4.ProtocolNumber, toTCPIP(a), mac)
	}
}

// Offloads implements the Backend of package virtio/net.
func (u *User) Offloads() vnet.Offload { return userOffloads }

// Attach implements the Backend of package virtio/net.
func (u *User) Attach(o vnet.Offload) (vnet.Conn, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil, fmt.Errorf("attach to user network: %w", io.ErrClosedPipe)
	}
	return u.link.attach(o)
}

// MTU is the largest packet of the network in bytes: Config.MTU for the device.
func (u *User) MTU() int { return u.cfg.MTU }

// start runs f as a goroutine that Close waits for. false: it is too late.
func (u *User) start(f func()) bool {
	if !u.begin() {
		return false
	}
	go func() {
		defer u.wg.Done()
		f()
	}()
	return true
}

// begin registers work that ends with u.wg.Done.
func (u *User) begin() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return false
	}
	u.wg.Add(1)
	return true
}

// abortEvery is how often Close looks for connections that were just being made.
const abortEvery = 10 * time.Millisecond

// Close ends all connections and flows and waits for them. The device half must
// have let go (Reset). A second Close does nothing.
func (u *User) Close() error {
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		return nil
	}
	u.closed = true
	u.mu.Unlock()
	u.cancel()
	for _, f := range u.fwd {
		f.close()
	}
	u.flows.closeAll()
	done := make(chan struct{})
	go func() {
		u.wg.Wait()
		close(done)
	}()
	// A handshake that began before closed was set may register after the first
	// sweep, and waits for packets that will not come: sweep until all have left.
	t := time.NewTicker(abortEvery)
	defer t.Stop()
	for {
		if u.stack != nil {
			u.stack.Close()
		}
		select {
		case <-done:
			if u.stack != nil {
				u.stack.Destroy()
			}
			u.routes.close()
			return nil
		case <-t.C:
		}
	}
}

// UserStats counts since NewUser.
type UserStats struct {
	// TCPOpen, UDPOpen and PingOpen are connections and flows at this moment.
	TCPOpen, UDPOpen, PingOpen int
	// TCPMade counts connections in both directions, TCPFailed attempts that were
	// refused or not answered, UDPMade flows.
	TCPMade, TCPFailed, UDPMade uint64
	// Forbidden counts connections, flows and pings to places that the guest may not reach.
	Forbidden uint64
	// QueueDrops counts packets for the guest that its driver was too slow for, or
	// could not take; FlowDrops datagrams that a socket did not take; LimitDrops what was
	// refused since a table was full.
	QueueDrops, FlowDrops, LimitDrops uint64
	// DNSQueries counts all, DNSFailed those that no resolver answered.
	DNSQueries, DNSFailed uint64
}

type userCounters struct {
	tcpMade, tcpFailed, udpMade, forbidden, queueDrops, flowDrops, limitDrops, dnsQueries, dnsFailed atomic.Uint64
}

// Stats returns the counters. It may be called from any goroutine.
func (u *User) Stats() UserStats {
	c := &u.stats
	udpOpen, pingOpen := u.flows.count()
	return UserStats{
		TCPOpen: u.tcp.open(), UDPOpen: udpOpen, PingOpen: pingOpen,
		TCPMade: c.tcpMade.Load(), TCPFailed: c.tcpFailed.Load(), UDPMade: c.udpMade.Load(),
		Forbidden: c.forbidden.Load(), QueueDrops: c.queueDrops.Load(), FlowDrops: c.flowDrops.Load(),
		LimitDrops: c.limitDrops.Load(), DNSQueries: c.dnsQueries.Load(), DNSFailed: c.dnsFailed.Load(),
	}
}

// route finds the way to the guest with a source address of our choice.
func (u *User) route(from, guest netip.Addr) (*stack.Route, error) {
	r, err := u.stack.FindRoute(nicID, toTCPIP(from), toTCPIP(guest), header.IPv4ProtocolNumber, false)
	if err != nil {
		return nil, fmt.Errorf("route from %v to %v: %v", from, guest, err)
	}
	return r, nil
}
