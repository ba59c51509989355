package network

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/virtio"
	vnet "github.com/peervisor/peervisor/virtio/net"
	"github.com/peervisor/peervisor/virtio/net/nettest"
)

// privateNetns moves the test's goroutine into a network namespace of its own,
// for good: the thread ends with the test.
func privateNetns(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no private network namespace (needs CAP_SYS_ADMIN): %v", err)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("no tun driver: %v", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
}

func openTap(t *testing.T, cfg TapConfig) *Tap {
	t.Helper()
	tap, err := OpenTap(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tap.Close() })
	return tap
}

func mustLink(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("interface %s: %v", name, err)
	}
	return l
}

func hasLink(name string) bool { _, err := netlink.LinkByName(name); return err == nil }

func addAddr(t *testing.T, link, cidr string) {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(mustLink(t, link), a); err != nil {
		t.Fatal(err)
	}
}

var tapNet = netip.MustParsePrefix("192.0.2.0/24")

func TestTapConfigIsChecked(t *testing.T) {
	for name, c := range map[string]TapConfig{
		"long": {Name: "sixteen-bytes-ab"}, "slash": {Name: "a/b"}, "template": {Name: "tap%d"}, "dot": {Name: ".."},
		"bridge": {Bridge: "a b"}, "MTU": {MTU: 67}, "no bridge to create": {CreateBridge: true},
	} {
		if tap, err := OpenTap(c); err == nil {
			t.Errorf("%s: accepted", name)
			_ = tap.Close()
		}
	}
	if _, err := OpenTap(TapConfig{Name: "sixteen-bytes-ab"}); err == nil || !strings.Contains(err.Error(), "at most 15") || !strings.Contains(err.Error(), "sixteen-bytes-ab") {
		t.Errorf("%v", err)
	}
}

// What OpenTap made is gone after Close, and what was there is as it was.
func TestTapLifecycle(t *testing.T) {
	privateNetns(t)
	tap := openTap(t, TapConfig{Bridge: "br9", CreateBridge: true, MTU: 9000})
	l := mustLink(t, tap.Name())
	if l.Attrs().MTU != 9000 || l.Attrs().Flags&net.FlagUp == 0 || l.Attrs().MasterIndex != mustLink(t, "br9").Attrs().Index {
		t.Errorf("tap %+v", l.Attrs())
	}
	if _, err := OpenTap(TapConfig{Name: tap.Name()}); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "another program") {
		t.Errorf("second opening: %v", err)
	}
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	if hasLink(tap.Name()) || hasLink("br9") {
		t.Error("tap or bridge left behind")
	}
}

func TestTapPersistent(t *testing.T) {
	privateNetns(t)
	tap := openTap(t, TapConfig{Name: "pt0", Persist: true, Bridge: "br0", CreateBridge: true})
	_ = tap.Close()
	if !hasLink("pt0") || !hasLink("br0") {
		t.Fatal("persistent tap or its bridge is gone")
	}
	if err := netlink.LinkSetNoMaster(mustLink(t, "pt0")); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetDown(mustLink(t, "pt0")); err != nil {
		t.Fatal(err)
	}
	tap = openTap(t, TapConfig{Name: "pt0", Bridge: "br0"})
	if mustLink(t, "pt0").Attrs().MasterIndex == 0 {
		t.Error("not attached")
	}
	_ = tap.Close()
	if a := mustLink(t, "pt0").Attrs(); a.MasterIndex != 0 || a.Flags&net.FlagUp != 0 {
		t.Errorf("left attached (%d) or up (%v)", a.MasterIndex, a.Flags)
	}
}

func TestTapErrorsSayWhatToDo(t *testing.T) {
	privateNetns(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "dummy0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "dummy1"}); err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]TapConfig{
		"there is no bridge nobr":     {Name: "t0", Bridge: "nobr"},
		"dummy0 is not a bridge":      {Name: "t0", Bridge: "dummy0"},
		"dummy1 is there already and": {Name: "dummy1"},
	} {
		_, err := OpenTap(c)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "tap "+c.Name) {
			t.Errorf("%+v: %v", c, err)
		}
		if hasLink("t0") {
			t.Errorf("%+v: tap left behind", c)
		}
	}
}

// Frames pass both ways between the kernel and a driver's buffers.
func TestTapThroughDevice(t *testing.T) {
	privateNetns(t)
	tap := openTap(t, TapConfig{Name: "t0"})
	addAddr(t, "t0", "192.0.2.1/24")
	host, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 7})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	mac := mustLink(t, "t0").Attrs().HardwareAddr
	if err := netlink.NeighAdd(&netlink.Neigh{LinkIndex: mustLink(t, "t0").Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: net.IPv4(192, 0, 2, 15), HardwareAddr: net.HardwareAddr(guestMAC)}); err != nil {
		t.Fatal(err)
	}
	dev, err := vnet.New(vnet.Config{MAC: net.HardwareAddr(guestMAC), Backend: tap})
	if err != nil {
		t.Fatal(err)
	}
	ch := nettest.NewChannel(t)
	if err := dev.Activate(virtio.Activation{Features: 1 << vnet.VIRTIO_NET_F_MRG_RXBUF, QueueSizes: []uint16{256, 256, 0}, Channel: ch}); err != nil {
		t.Fatal(err)
	}
	defer dev.Reset()
	u := &User{link: &link{mac: ""}}
	frame := udpFrame(u, netip.MustParseAddrPort("192.0.2.15:9"), netip.MustParseAddrPort("192.0.2.1:7"), []byte("to host"))
	copy(frame, mac)
	dev.Submit(1, []*virtio.Request{ch.Request(1, [][]byte{make([]byte, vnet.HeaderBytes), frame}, nil)})
	b := make([]byte, 64)
	_ = host.SetReadDeadline(time.Now().Add(testTimeout))
	n, from, err := host.ReadFromUDPAddrPort(b)
	if err != nil || string(b[:n]) != "to host" {
		t.Fatalf("host got %q, %v", b[:n], err)
	}
	msg := bytes.Repeat([]byte("guest"), 280) // 1400 bytes over buffers of 512
	if _, err := host.WriteToUDPAddrPort(msg, from); err != nil {
		t.Fatal(err)
	}
	if got := receiveFrame(t, dev, ch, len(msg)+42); !bytes.HasSuffix(got, msg) {
		t.Errorf("guest got %d bytes", len(got))
	}
}

// receiveFrame posts small buffers until a frame of n bytes came: the kernel sends
// others by itself (IPv6).
func receiveFrame(t *testing.T, dev *vnet.Device, ch *nettest.Channel, n int) []byte {
	t.Helper()
	mem := map[*virtio.Request][]byte{}
	for {
		var reqs []*virtio.Request
		for range 4 {
			b := make([]byte, 512)
			r := ch.Request(0, nil, [][]byte{b})
			mem[r], reqs = b, append(reqs, r)
		}
		dev.Submit(0, reqs)
		for _, call := range ch.WaitCompleted(0, 1) {
			for len(call) > 0 {
				k := int(vnet.Header(mem[call[0]]).NumBuffers())
				var f []byte
				for _, r := range call[:k] {
					f = append(f, mem[r][:r.Used()]...)
				}
				if len(f) == n+vnet.HeaderBytes {
					return f[vnet.HeaderBytes:]
				}
				call = call[k:]
			}
		}
	}
}

// bridgeRig is a guest on a tap on a bridge, and the kernel behind a veth on it.
func bridgeRig(t *testing.T, off vnet.Offload) *guest {
	t.Helper()
	privateNetns(t)
	tap := openTap(t, TapConfig{Name: "t0", Bridge: "br0", CreateBridge: true})
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "v0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "v1"}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMaster(mustLink(t, "v1"), mustLink(t, "br0")); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"v0", "v1"} {
		if err := netlink.LinkSetUp(mustLink(t, n)); err != nil {
			t.Fatal(err)
		}
	}
	addAddr(t, "v0", "192.0.2.1/24")
	return newGuest(t, tap, off).address(netip.MustParseAddr("192.0.2.15"), netip.MustParseAddr("192.0.2.1"), tapNet)
}

// Bulk data both ways over tap, bridge and veth, with and without segments.
func TestTapBridgeTCP(t *testing.T) {
	for name, off := range map[string]vnet.Offload{"offload": allRx, "plain": 0} {
		t.Run(name, func(t *testing.T) {
			g := bridgeRig(t, off)
			var longest, segmented atomic.Int64
			g.tapMu.Lock()
			g.tap = func(h vnet.Header, f []byte) {
				longest.Store(max(longest.Load(), int64(len(f))))
				if h.GSOType() == vnet.VIRTIO_NET_HDR_GSO_TCPV4 && h.GSOSize() > 0 {
					segmented.Add(1)
				}
			}
			g.tapMu.Unlock()
			l, err := net.Listen("tcp", "192.0.2.1:7") // a socket of this thread's namespace
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			const total = 4 << 20
			go func() {
				c, err := l.Accept()
				if err == nil {
					_, _ = io.Copy(c, c)
					_ = c.Close()
				}
			}()
			c, err := g.dialTCP(netip.MustParseAddrPort("192.0.2.1:7"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			msg := bytes.Repeat([]byte("peervisor!"), total/10)
			go func() { _, _ = c.Write(msg); _ = c.CloseWrite() }()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, msg) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			if off == 0 && (longest.Load() > 1514 || segmented.Load() != 0) {
				t.Errorf("frame of %d bytes, %d with segments, though nothing was negotiated", longest.Load(), segmented.Load())
			}
			if off != 0 && (longest.Load() <= 1514 || segmented.Load() == 0) {
				t.Errorf("longest frame %d bytes, %d with segments", longest.Load(), segmented.Load())
			}
		})
	}
}

// The interface vanishes under the device: it says so, and nothing hangs.
func TestTapRemoved(t *testing.T) {
	privateNetns(t)
	tap := openTap(t, TapConfig{Name: "t0"})
	c, err := tap.Attach(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(mustLink(t, "t0")); err != nil {
		t.Fatal(err)
	}
	room := [][]byte{make([]byte, vnet.HeaderBytes+vnet.MaxFrameBytes)}
	for err == nil {
		if _, err = c.Recv(room); err == nil {
			err = c.Wait()
		}
	}
	if !strings.Contains(err.Error(), "removed") || !strings.Contains(err.Error(), "t0") {
		t.Errorf("%v", err)
	}
}

func TestTapConnClose(t *testing.T) {
	privateNetns(t)
	tap := openTap(t, TapConfig{Name: "t0"})
	for range 3 {
		c, err := tap.Attach(allRx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tap.Attach(0); err == nil {
			t.Fatal("attached twice")
		}
		done := make(chan error, 1)
		go func() {
			var err error
			room := [][]byte{make([]byte, vnet.HeaderBytes+vnet.MaxFrameBytes)}
			for err == nil {
				if _, err = c.Recv(room); err == nil {
					err = c.Wait()
				}
			}
			done <- err
		}()
		_ = c.Close()
		_ = c.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Wait: %v", err)
		}
	}
}
