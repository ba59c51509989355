package network

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	vnet "github.com/peervisor/peervisor/virtio/net"
)

const (
	// maxQueued bounds the packets on their way to the guest. A full window of a
	// connection without segmentation offload (1 MiB in pieces of 1448) fits several
	// times; payloads are shared with the senders' buffers, not copied.
	maxQueued = 4096
	// gsoBytes is the largest segment that the stack hands over, before headers: it keeps
	// the IPv4 packet below 65536 with the 160 bytes that gVisor sets aside.
	gsoBytes = 65535
	// maxNeighbors bounds the guest's addresses that are remembered.
	maxNeighbors = 256
)

// userOffloads is all that the stack can do, for IPv4.
const userOffloads = vnet.TxChecksum | vnet.TxTSO4 | vnet.TxTSO6 | vnet.TxECN | vnet.RxChecksum | vnet.RxTSO4

// link is the Ethernet between the gVisor stack and the guest: a
// stack.LinkEndpoint on one side, through userConn a vnet.Conn on the other.
type link struct {
	mac   tcpip.LinkAddress
	mtu   uint32
	own   [2]netip.Addr // gateway and DNS
	stats *userCounters

	dispatcher atomic.Pointer[stack.NetworkDispatcher]
	// learned is called for each address of the guest that is new or has moved.
	learned func(addr netip.Addr, mac tcpip.LinkAddress)

	offload atomic.Uint32 // of the open conn, 0 without one

	mu      sync.Mutex
	conn    *userConn
	queue   ring
	waiting bool // the conn's Wait sleeps
}

// ring is a bounded FIFO of packets, each with a reference of its own.
type ring struct {
	buf     []*stack.PacketBuffer // length: a power of two
	head, n int
}

func (r *ring) push(p *stack.PacketBuffer) bool {
	if r.n == maxQueued {
		return false
	}
	if r.n == len(r.buf) {
		grown := make([]*stack.PacketBuffer, max(64, 2*len(r.buf)))
		for i := range r.n {
			grown[i] = r.buf[(r.head+i)&(len(r.buf)-1)]
		}
		r.buf, r.head = grown, 0
	}
	r.buf[(r.head+r.n)&(len(r.buf)-1)] = p
	r.n++
	return true
}

func (r *ring) pop() *stack.PacketBuffer {
	if r.n == 0 {
		return nil
	}
	p := r.buf[r.head]
	r.buf[r.head] = nil
	r.head = (r.head + 1) & (len(r.buf) - 1)
	r.n--
	return p
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// MTU implements stack.LinkEndpoint.
func (l *link) MTU() uint32 { return l.mtu }

// SetMTU implements stack.LinkEndpoint. The MTU was told to the guest and stays.
func (l *link) SetMTU(uint32) {}

// MaxHeaderLength implements stack.LinkEndpoint.
func (l *link) MaxHeaderLength() uint16 { return header.EthernetMinimumSize }

// LinkAddress implements stack.LinkEndpoint.
func (l *link) LinkAddress() tcpip.LinkAddress { return l.mac }

// SetLinkAddress implements stack.LinkEndpoint. The address stays.
func (l *link) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.LinkEndpoint. What the stack leaves out, Recv
// puts in if the driver did not negotiate it.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired | stack.CapabilityTXChecksumOffload | stack.CapabilityRXChecksumOffload
}

// Attach implements stack.LinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&d)
}

// IsAttached implements stack.LinkEndpoint.
func (l *link) IsAttached() bool { return l.dispatcher.Load() != nil }

// Wait implements stack.LinkEndpoint: there are no goroutines.
func (l *link) Wait() {}

// ARPHardwareType implements stack.LinkEndpoint.
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// AddHeader implements stack.LinkEndpoint.
func (l *link) AddHeader(p *stack.PacketBuffer) {
	header.Ethernet(p.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: p.EgressRoute.LocalLinkAddress,
		DstAddr: p.EgressRoute.RemoteLinkAddress,
		Type:    p.NetworkProtocolNumber,
	})
}

// ParseHeader implements stack.LinkEndpoint: Send has taken it off.
func (l *link) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close implements stack.LinkEndpoint.
func (l *link) Close() {}

// SetOnCloseAction implements stack.LinkEndpoint.
func (l *link) SetOnCloseAction(func()) {}

// GSOMaxSize implements stack.GSOEndpoint.
func (l *link) GSOMaxSize() uint32 { return gsoBytes }

// SupportedGSO implements stack.GSOEndpoint.
func (l *link) SupportedGSO() stack.SupportedGSO {
	if vnet.Offload(l.offload.Load())&vnet.RxTSO4 != 0 {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

var errQueueFull tcpip.Error = &tcpip.ErrNoBufferSpace{}

// WritePackets implements stack.LinkWriter: it queues packets for the guest.
// Without a driver they go nowhere, as on a cable with nothing at its end.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for i, p := range pkts.AsSlice() {
		if !l.enqueue(p.IncRef()) {
			return i, errQueueFull
		}
	}
	return pkts.Len(), nil
}

// enqueue takes over one reference of p. false: the queue is full.
func (l *link) enqueue(p *stack.PacketBuffer) bool {
	l.mu.Lock()
	c := l.conn
	ok := c == nil || l.queue.push(p)
	wake := c != nil && ok && l.waiting
	if wake {
		l.waiting = false
	}
	l.mu.Unlock()
	switch {
	case c == nil:
		p.DecRef()
	case !ok:
		p.DecRef()
		l.stats.queueDrops.Add(1)
	case wake:
		c.kick()
	}
	return ok
}

// attach opens the one conn.
func (l *link) attach(o vnet.Offload) (*userConn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		return nil, errors.New("user network has a device attached already")
	}
	l.conn = &userConn{l: l, offload: o, wake: make(chan struct{}, 1), done: make(chan struct{})}
	l.offload.Store(uint32(o))
	return l.conn, nil
}

// userConn is one activation of the device on a link. It implements vnet.Conn.
type userConn struct {
	l       *link
	offload vnet.Offload
	wake    chan struct{} // capacity 1
	done    chan struct{} // closed by Close

	// What was learned last, so that most frames need no table. Used by Send.
	lastAddr [4]byte
	lastMAC  [6]byte
	known    map[netip.Addr]tcpip.LinkAddress
}

func (c *userConn) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Wait implements vnet.Conn.
func (c *userConn) Wait() error {
	c.l.mu.Lock()
	ready := c.l.queue.n > 0
	c.l.waiting = !ready
	c.l.mu.Unlock()
	select {
	case <-c.done:
		return net.ErrClosed
	default:
	}
	if ready {
		return nil
	}
	select {
	case <-c.wake:
		return nil
	case <-c.done:
		return net.ErrClosed
	}
}

// Close implements vnet.Conn.
func (c *userConn) Close() error {
	c.l.mu.Lock()
	if c.l.conn != c {
		c.l.mu.Unlock()
		return nil
	}
	c.l.conn = nil
	c.l.offload.Store(0)
	c.l.waiting = false
	var rest []*stack.PacketBuffer
	for p := c.l.queue.pop(); p != nil; p = c.l.queue.pop() {
		rest = append(rest, p)
	}
	c.l.mu.Unlock()
	close(c.done)
	for _, p := range rest {
		p.DecRef()
	}
	return nil
}

// Recv implements vnet.Conn.
func (c *userConn) Recv(room [][]byte) (int, error) {
	for {
		c.l.mu.Lock()
		if c.l.conn != c {
			c.l.mu.Unlock()
			return 0, net.ErrClosed
		}
		p := c.l.queue.pop()
		c.l.mu.Unlock()
		if p == nil {
			return 0, nil
		}
		n := c.render(room, p)
		p.DecRef()
		if n > 0 {
			return n, nil
		}
	}
}

// render writes header and packet to room; 0: the driver cannot take it.
func (c *userConn) render(room [][]byte, p *stack.PacketBuffer) int {
	var hdr [vnet.HeaderBytes]byte
	if !c.finish(vnet.Header(hdr[:]), p) {
		c.l.stats.queueDrops.Add(1)
		return 0
	}
	w := cursor{room: room}
	w.write(hdr[:])
	views, skip := p.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		k := min(skip, len(b))
		skip -= k
		w.write(b[k:])
	}
	return w.n
}

// finish fills in h for p, and in p what the stack left to the link.
func (c *userConn) finish(h vnet.Header, p *stack.PacketBuffer) bool {
	ip := header.IPv4(p.NetworkHeader().Slice())
	t := p.TransportHeader().Slice()
	if p.NetworkProtocolNumber != header.IPv4ProtocolNumber || len(ip) < header.IPv4MinimumSize ||
		ip.More() || ip.FragmentOffset() != 0 {
		return true // ARP, or a fragment, whose datagram is summed already
	}
	var at int
	switch proto := p.TransportProtocolNumber; {
	case proto == header.TCPProtocolNumber && len(t) >= header.TCPMinimumSize:
		at = header.TCPChecksumOffset
	case proto == header.UDPProtocolNumber && len(t) >= header.UDPMinimumSize:
		at = udpChecksumOffset
	default:
		return true
	}
	if !p.GSOOptions.NeedsCsum { // else the stack has put it there
		sum := header.PseudoHeaderChecksum(p.TransportProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(t)+p.Data().Size()))
		checksum.Put(t[at:], sum)
	}
	start := header.EthernetMinimumSize + len(ip)
	if mss := int(p.GSOOptions.MSS); p.GSOOptions.Type == stack.GSOTCPv4 && p.Data().Size() > mss {
		if c.offload&vnet.RxTSO4 == 0 || mss == 0 {
			return false // made for an earlier driver
		}
		h.SetGSO(vnet.VIRTIO_NET_HDR_GSO_TCPV4, start+len(t), mss)
	}
	if c.offload&vnet.RxChecksum != 0 {
		h.SetPartialChecksum(start, at)
		return true
	}
	sum := ^checksum.Combine(checksum.Checksum(t, 0), p.Data().Checksum())
	if sum == 0 && at == udpChecksumOffset {
		sum = 0xFFFF // 0 means none (RFC 768)
	}
	checksum.Put(t[at:], sum)
	return true
}

// udpChecksumOffset is where the checksum stands in a UDP header (RFC 768).
const udpChecksumOffset = 6

// cursor writes over a vector.
type cursor struct {
	room [][]byte
	off  int // in room[0]
	n    int
}

func (w *cursor) write(p []byte) {
	for len(p) > 0 && len(w.room) > 0 {
		k := copy(w.room[0][w.off:], p)
		p = p[k:]
		w.off += k
		w.n += k
		if w.off == len(w.room[0]) {
			w.room, w.off = w.room[1:], 0
		}
	}
}

// Send implements vnet.Conn. The frame is copied once, and only the copy is
// looked at; the stack works on it before Send returns, or queues it.
func (c *userConn) Send(_ vnet.Header, frame [][]byte) error {
	dp := c.l.dispatcher.Load()
	if dp == nil {
		return net.ErrClosed
	}
	var eth [header.EthernetMinimumSize]byte
	total, got := 0, 0
	for _, s := range frame {
		total += len(s)
		got += copy(eth[got:], s)
	}
	if total <= len(eth) {
		return nil
	}
	e := header.Ethernet(eth[:])
	var kind tcpip.PacketType
	switch dst := e.DestinationAddress(); {
	case dst == c.l.mac:
		kind = tcpip.PacketHost
	case dst == header.EthernetBroadcastAddress:
		kind = tcpip.PacketBroadcast
	case header.IsMulticastEthernetAddress(dst):
		kind = tcpip.PacketMulticast
	default:
		return nil // for somebody who is not there
	}
	proto := e.Type()
	if proto != header.IPv4ProtocolNumber && proto != header.ARPProtocolNumber {
		return nil // IPv6 is not spoken here
	}
	v := buffer.NewView(total - len(eth))
	skip := len(eth)
	for _, s := range frame {
		k := min(skip, len(s))
		skip -= k
		_, _ = v.Write(s[k:])
	}
	if proto == header.ARPProtocolNumber {
		c.sendARP(*dp, kind, eth[6:12], v)
		return nil
	}
	c.learn(eth[6:12], v.AsSlice(), ipv4Source)
	c.deliver(*dp, proto, kind, v)
	return nil
}

func (c *userConn) deliver(d stack.NetworkDispatcher, proto tcpip.NetworkProtocolNumber, kind tcpip.PacketType, v *buffer.View) {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	p.PktType = kind
	d.DeliverNetworkPacket(proto, p)
	p.DecRef()
}

// sendARP delivers an ARP packet if it is for the stack, and learns from it
// afterwards: an entry that is put in while it is being asked for counts as a failure.
func (c *userConn) sendARP(d stack.NetworkDispatcher, kind tcpip.PacketType, mac []byte, v *buffer.View) {
	packet := append(make([]byte, 0, header.ARPSize), v.AsSlice()[:min(header.ARPSize, v.Size())]...)
	if c.l.answersARP(packet) {
		c.deliver(d, header.ARPProtocolNumber, kind, v)
	} else {
		v.Release()
	}
	c.learn(mac, packet, arpSource)
}

// answersARP says whether an ARP packet is for the stack. Being promiscuous, it
// would claim every address that is asked for, the guest's own among them.
func (l *link) answersARP(packet []byte) bool {
	if len(packet) < header.ARPSize {
		return false
	}
	a := header.ARP(packet)
	target := netip.AddrFrom4([4]byte(a.ProtocolAddressTarget()))
	return a.Op() == header.ARPReply || target == l.own[0] || target == l.own[1]
}

// Where the sender's IPv4 address stands in a packet.
const (
	ipv4Source = 12
	arpSource  = 14
)

// learn notes the address that the frame came from, so that answers need no ARP:
// a guest that is paused for a while must not become unreachable.
func (c *userConn) learn(mac, packet []byte, at int) {
	if len(packet) < at+4 {
		return
	}
	addr := [4]byte(packet[at:])
	if addr == c.lastAddr && [6]byte(mac) == c.lastMAC {
		return
	}
	c.lastAddr, c.lastMAC = addr, [6]byte(mac)
	a, m := netip.AddrFrom4(addr), tcpip.LinkAddress(mac)
	if c.known[a] == m || m[0]&1 != 0 || len(c.known) >= maxNeighbors {
		return
	}
	if c.known == nil {
		c.known = make(map[netip.Addr]tcpip.LinkAddress)
	}
	c.known[a] = m
	c.l.learned(a, m)
}
