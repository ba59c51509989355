package network

import (
	"io"
	"net"
	"net/netip"
	"testing"

	vnet "github.com/peervisor/peervisor/virtio/net"
)

// benchChunk is what the far side writes and reads at a time.
const benchChunk = 128 << 10

// listenHost accepts one connection on the loopback and serves it.
func listenHost(t testing.TB, serve func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c.(*net.TCPConn))
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// BenchmarkUserTCP moves bulk data between the guest's stack and a socket of this
// machine through the user network, in both directions. The guest's stack runs in
// the same process and takes its share of the time.
func BenchmarkUserTCP(b *testing.B) {
	for _, m := range []struct {
		name string
		off  vnet.Offload
	}{{"offload", allRx}, {"plain", 0}} {
		b.Run("upload/"+m.name, func(b *testing.B) { benchTCP(b, m.off, true) })
		b.Run("download/"+m.name, func(b *testing.B) { benchTCP(b, m.off, false) })
	}
}

func benchTCP(b *testing.B, off vnet.Offload, upload bool) {
	u := newUser(b, UserConfig{HostAccess: true})
	g := newGuest(b, u, off).configure(u)
	total := int64(b.N) * benchChunk
	finished := make(chan error, 1)
	addr := listenHost(b, func(c *net.TCPConn) {
		defer c.Close()
		finished <- move(c, total, upload)
	})
	c, err := g.dialTCP(netip.AddrPortFrom(u.cfg.Gateway, addr.Port()))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.SetBytes(benchChunk)
	b.ReportAllocs()
	b.ResetTimer()
	if err := move(c, total, !upload); err != nil {
		b.Fatal(err)
	}
	if err := <-finished; err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(total)*8/b.Elapsed().Seconds()/1e9, "Gbit/s")
}

// move receives or sends total bytes.
func move(c net.Conn, total int64, receive bool) error {
	buf := make([]byte, benchChunk)
	for total > 0 {
		p := buf[:min(total, benchChunk)]
		var n int
		var err error
		if receive {
			n, err = c.Read(p)
		} else {
			n, err = c.Write(p)
		}
		total -= int64(n)
		if err != nil && (total > 0 || err != io.EOF) {
			return err
		}
	}
	return nil
}
