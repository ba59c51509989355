package network

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	vnet "github.com/peervisor/peervisor/virtio/net"
)

// rig is a user network with a configured guest on it.
func rig(t testing.TB, cfg UserConfig) (*User, *guest) {
	t.Helper()
	u := newUser(t, cfg)
	return u, newGuest(t, u, allRx).configure(u)
}

func hostAt(u *User, port uint16) netip.AddrPort { return netip.AddrPortFrom(u.cfg.Gateway, port) }

// eventually waits for a condition without a signal of its own.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(testTimeout)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within %v: %s", testTimeout, what)
		}
	}
}

func TestUserConfigIsChecked(t *testing.T) {
	a := netip.MustParseAddr
	for name, c := range map[string]UserConfig{
		"IPv6":              {Network: netip.MustParsePrefix("fd00::/64")},
		"too small":         {Network: netip.MustParsePrefix("10.0.0.0/29")},
		"gateway elsewhere": {Gateway: a("10.0.3.2")},
		"gateway broadcast": {Gateway: a("10.0.2.255")},
		"twice the same":    {DNS: a("10.0.2.2")},
		"MTU":               {MTU: 100},
		"negative":          {MaxTCP: -1},
		"forward to DNS":    {Forwards: []HostForward{{Proto: "tcp", Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: netip.MustParseAddrPort("10.0.2.3:1")}}},
		"forward of sctp":   {Forwards: []HostForward{{Proto: "sctp", Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: netip.MustParseAddrPort("10.0.2.15:1")}}},
	} {
		if u, err := NewUser(c); err == nil {
			t.Errorf("%s: accepted", name)
			_ = u.Close()
		}
	}
	u := newUser(t, UserConfig{Network: netip.MustParsePrefix("192.168.7.33/28")})
	if u.cfg.Gateway != a("192.168.7.34") || u.cfg.Guest != a("192.168.7.46") {
		t.Errorf("gateway %v, guest %v", u.cfg.Gateway, u.cfg.Guest)
	}
}

// Bulk data arrives equal in both directions at once, whatever was negotiated.
func TestTCPBothWays(t *testing.T) {
	for name, off := range map[string]vnet.Offload{
		"everything": allRx, "nothing": 0, "checksums": vnet.TxChecksum | vnet.RxChecksum,
		"only transmit": vnet.TxChecksum | vnet.TxTSO4,
	} {
		t.Run(name, func(t *testing.T) {
			u := newUser(t, UserConfig{HostAccess: true})
			g := newGuest(t, u, off).configure(u)
			const total = 8 << 20
			addr := listenHost(t, func(c *net.TCPConn) { // echoes
				defer c.Close()
				_, _ = io.Copy(c, c)
				_ = c.CloseWrite()
			})
			c, err := g.dialTCP(hostAt(u, addr.Port()))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			sent := sha256.New()
			werr := make(chan error, 1)
			go func() {
				src := io.LimitReader(rand.NewChaCha8([32]byte{1}), total)
				_, err := io.Copy(io.MultiWriter(c, sent), src)
				werr <- errors.Join(err, c.CloseWrite())
			}()
			got := sha256.New()
			n, err := io.Copy(got, c)
			if err != nil || n != total {
				t.Fatalf("received %d of %d bytes: %v", n, total, err)
			}
			if err := <-werr; err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
				t.Error("bytes differ")
			}
		})
	}
}

// Each side can end its own direction and go on in the other.
func TestTCPHalfClose(t *testing.T) {
	u, g := rig(t, UserConfig{HostAccess: true})
	gotFIN := make(chan string, 1)
	addr := listenHost(t, func(c *net.TCPConn) {
		defer c.Close()
		_, _ = c.Write([]byte("hello"))
		_ = c.CloseWrite()
		b, _ := io.ReadAll(c)
		gotFIN <- string(b)
	})
	c, err := g.dialTCP(hostAt(u, addr.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
		t.Fatalf("read %q, %v", b, err)
	}
	if _, err := c.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if s := <-gotFIN; s != "still here" {
		t.Errorf("host got %q", s)
	}
	eventually(t, "connection's slot free", func() bool { return u.Stats().TCPOpen == 0 })
}

// A reset on one side is a reset on the other.
func TestTCPResets(t *testing.T) {
	t.Run("by host", func(t *testing.T) {
		u, g := rig(t, UserConfig{HostAccess: true})
		addr := listenHost(t, func(c *net.TCPConn) {
			var b [1]byte
			_, _ = c.Read(b[:])
			abortHost(c)
		})
		c, err := g.dialTCP(hostAt(u, addr.Port()))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF || !strings.Contains(err.Error(), "reset") {
			t.Errorf("read: %v", err)
		}
		eventually(t, "slot free", func() bool { return u.Stats().TCPOpen == 0 })
	})
	for name, afterFIN := range map[string]bool{"by guest": false, "by guest after its FIN": true} {
		t.Run(name, func(t *testing.T) {
			u, g := rig(t, UserConfig{HostAccess: true})
			result, ready := make(chan error, 1), make(chan struct{})
			addr := listenHost(t, func(c *net.TCPConn) {
				defer c.Close()
				if afterFIN {
					_, _ = io.Copy(io.Discard, c)
				}
				close(ready)
				for {
					if _, err := c.Write([]byte("x")); err != nil {
						result <- err
						return
					}
				}
			})
			c, ep := g.dialEndpoint(t, hostAt(u, addr.Port()))
			defer c.Close()
			if afterFIN {
				_ = c.CloseWrite()
			}
			<-ready
			ep.Abort()
			if err := <-result; !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
				t.Errorf("host's write: %v", err)
			}
			eventually(t, "slot free", func() bool { return u.Stats().TCPOpen == 0 })
		})
	}
}

func TestTCPRefused(t *testing.T) {
	u, g := rig(t, UserConfig{HostAccess: true})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	_ = l.Close()
	if _, err := g.dialTCP(hostAt(u, port)); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("dial: %v", err)
	}
	// An address of the guest's network that nobody has.
	if s := u.Stats(); s.TCPFailed != 1 || s.Forbidden != 0 {
		t.Errorf("%+v", s)
	}
}

// A destination without a route is unreachable to the guest too, at once.
func TestTCPUnreachable(t *testing.T) {
	u, g := rig(t, UserConfig{})
	u.policy.routeType = func(netip.Addr) (int, error) { return 0, unix.ENETUNREACH }
	_, err := g.dialTCP(netip.MustParseAddrPort("192.0.2.1:80"))
	if err == nil || !strings.Contains(err.Error(), "no route") && !strings.Contains(err.Error(), "unreachable") {
		t.Errorf("dial: %v", err)
	}
}

// Without HostAccess the guest cannot reach this machine by any address.
func TestHostIsOutOfReach(t *testing.T) {
	u, g := rig(t, UserConfig{})
	reached := make(chan struct{}, 16)
	addr := listenHost(t, func(c *net.TCPConn) { reached <- struct{}{}; _ = c.Close() })
	dsts := []netip.Addr{u.cfg.Gateway, u.cfg.DNS, netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("169.254.169.254")}
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range own {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			dsts = append(dsts, p.Addr())
		}
	}
	for _, d := range dsts {
		if d.IsLoopback() || d.IsUnspecified() {
			// The guest's own stack sends no such packets; the policy test covers them.
			if _, err := u.policy.target(d); !errors.Is(err, errRefused) {
				t.Errorf("%v: %v", d, err)
			}
			continue
		}
		if c, err := g.dialTCP(netip.AddrPortFrom(d, addr.Port())); err == nil {
			t.Errorf("%v: connected", d)
			_ = c.Close()
		}
		uc := g.dialUDP(netip.AddrPortFrom(d, addr.Port()))
		_, _ = uc.Write([]byte("x"))
		if err := udpError(t, uc); !strings.Contains(err.Error(), "refused") {
			t.Errorf("%v: UDP read: %v", d, err)
		}
	}
	if len(reached) != 0 {
		t.Error("the machine's loopback was reached")
	}
}

// Raw packets to 127.0.0.1 from a guest without manners go nowhere.
func TestLoopbackDestinationIsDropped(t *testing.T) {
	u, g := rig(t, UserConfig{HostAccess: true})
	uc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer uc.Close()
	port := uc.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	g.send(make(vnet.Header, vnet.HeaderBytes), udpFrame(u, netip.AddrPortFrom(u.cfg.Guest, 1000), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), []byte("evil")))
	// A frame that does arrive shows that the first had its chance.
	g.send(make(vnet.Header, vnet.HeaderBytes), udpFrame(u, netip.AddrPortFrom(u.cfg.Guest, 1000), hostAt(u, port), []byte("good")))
	b := make([]byte, 16)
	_ = uc.SetReadDeadline(time.Now().Add(testTimeout))
	n, _, err := uc.ReadFromUDP(b)
	if err != nil || string(b[:n]) != "good" {
		t.Errorf("host got %q, %v", b[:n], err)
	}
}

func TestRestrict(t *testing.T) {
	u, g := rig(t, UserConfig{Restrict: true, HostAccess: true})
	addr := listenHost(t, func(c *net.TCPConn) { _ = c.Close() })
	if _, err := g.dialTCP(hostAt(u, addr.Port())); err == nil {
		t.Error("restricted guest connected")
	}
	if u.Stats().Forbidden != 1 {
		t.Errorf("%+v", u.Stats())
	}
}

func TestUDPEcho(t *testing.T) {
	u, g := rig(t, UserConfig{HostAccess: true})
	addr := udpEcho(t)
	c := g.dialUDP(hostAt(u, addr.Port()))
	for _, n := range []int{0, 1, 1000, 1472, 1473, 9000, maxDatagram} {
		msg := bytes.Repeat([]byte{byte(n)}, n)
		if _, err := c.Write(msg); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 65536)
		k, err := c.Read(b)
		if err != nil || !bytes.Equal(b[:k], msg) {
			t.Fatalf("%d bytes: got %d, %v", n, k, err)
		}
	}
	if s := u.Stats(); s.UDPMade != 1 || s.UDPOpen != 1 {
		t.Errorf("%+v", s)
	}
}

// Without checksum offload the guest's stack verifies what it gets.
func TestUDPChecksums(t *testing.T) {
	u := newUser(t, UserConfig{HostAccess: true})
	g := newGuest(t, u, 0).configure(u)
	c := g.dialUDP(hostAt(u, udpEcho(t).Port()))
	for _, n := range []int{0, 1, 33, 1472, 4000} {
		msg := bytes.Repeat([]byte{0xFF}, n)
		_, _ = c.Write(msg)
		b := make([]byte, 65536)
		if k, err := c.Read(b); err != nil || !bytes.Equal(b[:k], msg) {
			t.Fatalf("%d bytes: got %d, %v", n, k, err)
		}
	}
}

func TestUDPRefused(t *testing.T) {
	u, g := rig(t, UserConfig{HostAccess: true})
	uc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	port := uc.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	_ = uc.Close()
	c := g.dialUDP(hostAt(u, port))
	_, _ = c.Write([]byte("x"))
	if err := udpError(t, c); !strings.Contains(err.Error(), "refused") {
		t.Errorf("read: %v", err)
	}
}

// udpError waits for an ICMP error to surface. The guest's stack does not wake a
// reader for one, so it is asked again.
func udpError(t *testing.T, c *gonet.UDPConn) error {
	t.Helper()
	var err error
	eventually(t, "an error on the socket", func() bool {
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err = c.Read(make([]byte, 1))
		var to net.Error
		return err != nil && !(errors.As(err, &to) && to.Timeout())
	})
	return err
}

func TestUDPFlowsEndAndAreBounded(t *testing.T) {
	u, g := rig(t, UserConfig{HostAccess: true, MaxUDP: 4, UDPIdle: 30 * time.Millisecond})
	addr := udpEcho(t)
	b := make([]byte, 16)
	for range 10 {
		c := g.dialUDP(hostAt(u, addr.Port()))
		_, _ = c.Write([]byte("x"))
		if _, err := c.Read(b); err != nil {
			t.Fatal(err)
		}
		if n := u.Stats().UDPOpen; n > 4 {
			t.Fatalf("%d flows", n)
		}
	}
	eventually(t, "idle flows gone", func() bool { return u.Stats().UDPOpen == 0 })
}

func TestHostForwardTCP(t *testing.T) {
	fwd := HostForward{Proto: "tcp", Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: netip.AddrPortFrom(netip.Addr{}, 22)}
	u, g := rig(t, UserConfig{Forwards: []HostForward{fwd}, Restrict: true})
	l, err := gonet.ListenTCP(g.stack, tcpip.FullAddress{NIC: 1, Port: 22}, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	c, err := net.Dial("tcp", u.Forwards()[0].Host.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	msg := bytes.Repeat([]byte("0123456789"), 100_000)
	go func() { _, _ = c.Write(msg); _ = c.(*net.TCPConn).CloseWrite() }()
	_ = c.SetDeadline(time.Now().Add(testTimeout))
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, msg) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// A guest that does not listen, or is not there, resets the visitor.
func TestHostForwardRefused(t *testing.T) {
	fwd := HostForward{Proto: "tcp", Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: netip.AddrPortFrom(netip.Addr{}, 22)}
	u, _ := rig(t, UserConfig{Forwards: []HostForward{fwd}})
	c, err := net.Dial("tcp", u.Forwards()[0].Host.String())
	if err == nil { // else the reset was faster than Dial
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(testTimeout))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("connect and read: %v", err)
	}
}

func TestHostForwardUDP(t *testing.T) {
	fwd := HostForward{Proto: "udp", Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: netip.AddrPortFrom(netip.Addr{}, 53)}
	u, g := rig(t, UserConfig{Forwards: []HostForward{fwd}, UDPIdle: 200 * time.Millisecond})
	s, err := gonet.DialUDP(g.stack, &tcpip.FullAddress{NIC: 1, Port: 53}, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := s.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = s.WriteTo(append([]byte("re:"), b[:n]...), from)
		}
	}()
	for _, name := range []string{"a", "b"} { // two peers get their own answers
		c, err := net.Dial("udp", u.Forwards()[0].Host.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(testTimeout))
		for range 3 {
			_, _ = c.Write([]byte(name))
			b := make([]byte, 64)
			n, err := c.Read(b)
			if err != nil || string(b[:n]) != "re:"+name {
				t.Fatalf("got %q, %v", b[:n], err)
			}
		}
	}
	eventually(t, "idle flows gone", func() bool { return u.Stats().UDPOpen == 0 })
}

func TestHostForwardPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f := HostForward{Proto: "tcp", Host: l.Addr().(*net.TCPAddr).AddrPort(), Guest: netip.AddrPortFrom(netip.Addr{}, 22)}
	_, err = NewUser(UserConfig{Forwards: []HostForward{f}})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), f.String()) || !strings.Contains(err.Error(), "choose another port") {
		t.Errorf("error %v", err)
	}
}

// At most MaxTCP connections; one more gets its turn when one ends.
func TestTCPLimit(t *testing.T) {
	u, g := rig(t, UserConfig{HostAccess: true, MaxTCP: 1})
	addr := listenHost(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c); _ = c.Close() })
	first, err := g.dialTCP(hostAt(u, addr.Port()))
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		c, err := g.dialTCP(hostAt(u, addr.Port()))
		if err == nil {
			_ = c.Close()
		}
		second <- err
	}()
	eventually(t, "second connection held off", func() bool { return u.Stats().LimitDrops > 0 })
	if n := u.Stats().TCPOpen; n != 1 {
		t.Errorf("%d connections", n)
	}
	_ = first.Close()
	if err := <-second; err != nil {
		t.Errorf("second connection: %v", err)
	}
}

// Close ends everything and leaves no goroutine and no descriptor.
func TestCloseLeavesNothing(t *testing.T) {
	fds := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(d)
	}
	addr, uaddr := listenHost(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c); _ = c.Close() }), udpEcho(t)
	once := func() {
		u, err := NewUser(UserConfig{HostAccess: true, Forwards: []HostForward{
			{Proto: "tcp", Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: netip.AddrPortFrom(netip.Addr{}, 1)},
			{Proto: "udp", Host: netip.MustParseAddrPort("127.0.0.1:0"), Guest: netip.AddrPortFrom(netip.Addr{}, 1)}}})
		if err != nil {
			t.Fatal(err)
		}
		g := newGuest(t, u, allRx).configure(u)
		c, err := g.dialTCP(hostAt(u, addr.Port()))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("x"))
		_, _ = c.Read(make([]byte, 1))
		uc := g.dialUDP(hostAt(u, uaddr.Port()))
		_, _ = uc.Write([]byte("x"))
		_, _ = uc.Read(make([]byte, 1))
		_ = u.Close()
		_ = u.Close()
		if _, err := u.Attach(0); err == nil {
			t.Error("attached to a closed network")
		}
		_ = c.Close()
		_ = uc.Close()
		g.close()
	}
	once()
	eventually(t, "first round over", func() bool { return runtime.NumGoroutine() < 40 })
	g0, f0 := runtime.NumGoroutine(), fds()
	for range 5 {
		once()
	}
	eventually(t, "goroutines gone", func() bool { return runtime.NumGoroutine() <= g0 })
	eventually(t, "descriptors gone", func() bool { return fds() <= f0 })
}

func (g *guest) dialEndpoint(t *testing.T, to netip.AddrPort) (*gonet.TCPConn, tcpip.Endpoint) {
	t.Helper()
	before := map[tcpip.Endpoint]bool{}
	for _, e := range g.stack.RegisteredEndpoints() {
		if ep, ok := e.(tcpip.Endpoint); ok {
			before[ep] = true
		}
	}
	c, err := g.dialTCP(to)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range g.stack.RegisteredEndpoints() {
		if ep, ok := e.(tcpip.Endpoint); ok && !before[ep] {
			return c, ep
		}
	}
	t.Fatal("connection without an endpoint")
	return nil, nil
}

// udpEcho answers every datagram with itself.
func udpEcho(t testing.TB) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 65536)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}
