package netconf

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// enterNamespace gives the test a network namespace of its own. Its thread is never
// unlocked: it ends with the test's goroutine, and the namespace with it.
func enterNamespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs the right to make a network namespace: %v", err)
	}
}

func TestApply(t *testing.T) {
	enterNamespace(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "guest"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "host"}); err != nil {
		t.Skipf("needs veth: %v", err)
	}
	link, err := net.InterfaceByName("guest")
	if err != nil {
		t.Error(err)
		return
	}
	i := Interface{Name: link.Name, Index: link.Index}
	if err := UpLoopback(); err != nil {
		t.Error(err)
	}
	if err := i.Up(); err != nil {
		t.Error(err)
	}
	l := &Lease{Address: Addr{10, 9, 8, 7}, PrefixBits: 24, Router: Addr{10, 9, 8, 1}, MTU: 1400}
	for range 2 { // as after a renewal
		if err := i.Apply(l); err != nil {
			t.Error(err)
			return
		}
	}
	if link, err = net.InterfaceByName("guest"); err != nil || link.MTU != 1400 || link.Flags&net.FlagUp == 0 {
		t.Errorf("link %+v, %v", link, err)
	}
	addrs, err := link.Addrs()
	if err != nil || len(addrs) == 0 || addrs[0].String() != "10.9.8.7/24" {
		t.Errorf("addresses %v, %v", addrs, err)
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Gw: net.IPv4(10, 9, 8, 1)}, netlink.RT_FILTER_GW)
	if err != nil || len(routes) != 1 || routes[0].LinkIndex != i.Index {
		t.Errorf("routes %v, %v", routes, err)
	}
	if err := (Interface{Index: 9999}).Up(); err != unix.ENODEV {
		t.Errorf("an interface that is not there: %v", err)
	}
}

// The client and a small server on the two ends of a wire.
func TestPacketConn(t *testing.T) {
	enterNamespace(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "guest"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "host"}); err != nil {
		t.Skipf("needs veth: %v", err)
	}
	var index [2]int
	for n, name := range []string{"guest", "host"} {
		link, err := net.InterfaceByName(name)
		if err != nil {
			t.Error(err)
			return
		}
		index[n] = link.Index
		if err := (Interface{Index: link.Index}).Up(); err != nil {
			t.Error(err)
		}
	}
	client, err := Listen(index[0])
	if err != nil {
		t.Skipf("needs packet sockets: %v", err)
	}
	defer func() { _ = client.Close() }()
	host, err := Listen(index[1])
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = host.Close() }()
	if err := client.Send([]byte("question")); err != nil {
		t.Error(err)
	}
	// The host's end sees it as a packet to a server, which unwrap does not take.
	fds := []unix.PollFd{{Fd: int32(host.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 10_000); n != 1 || err != nil {
		t.Errorf("nothing came: %d, %v", n, err)
	}
	answer := wrap([]byte("answer"))
	copy(answer[ipHeaderBytes:], []byte{0, serverPort, 0, clientPort})
	to := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: index[1], Halen: 6, Addr: [8]uint8{255, 255, 255, 255, 255, 255}}
	if err := unix.Sendto(host.fd, answer, 0, to); err != nil {
		t.Error(err)
	}
	if got, err := client.Receive(time.Now().Add(10 * time.Second)); err != nil || string(got) != "answer" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := client.Receive(time.Now().Add(10 * time.Millisecond)); err != ErrNoAnswer {
		t.Errorf("silence: %v", err)
	}
}

func TestInterfaces(t *testing.T) {
	sys := t.TempDir()
	for name, files := range map[string]map[string]string{
		"eth0": {"type": "1\n", "address": "52:54:00:01:0a:ff\n", "ifindex": "2\n", "carrier": "1\n"},
		"lo":   {"type": "772\n", "address": "00:00:00:00:00:00\n", "ifindex": "1\n"},
		"bad":  {"type": "1\n", "address": "52-54\n", "ifindex": "3\n"},
	} {
		dir := filepath.Join(sys, "class/net", name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for file, data := range files {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(data), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	list, err := Interfaces(sys)
	want := Interface{Name: "eth0", Index: 2, MAC: [6]byte{0x52, 0x54, 0, 1, 0x0a, 0xff}}
	if err != nil || len(list) != 1 || list[0] != want {
		t.Errorf("%+v, %v", list, err)
	}
	if !list[0].Carrier(sys) || (Interface{Name: "lo"}).Carrier(sys) {
		t.Error("carrier")
	}
}
