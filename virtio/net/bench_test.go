package net_test

import (
	stdnet "net"
	"testing"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/net"
)

// flood is a backend that takes everything and has a frame whenever it is told
// to, without allocating.
type flood struct {
	frame []byte // header and bytes
	ready chan int
	left  int
	done  chan struct{}
}

func (f *flood) Offloads() net.Offload                { return allOffloads }
func (f *flood) Attach(net.Offload) (net.Conn, error) { return f, nil }
func (f *flood) Send(net.Header, [][]byte) error      { return nil }
func (f *flood) Close() error                         { close(f.done); return nil }

func (f *flood) Recv(room [][]byte) (int, error) {
	if f.left == 0 {
		return 0, nil
	}
	f.left--
	p := f.frame
	for _, s := range room {
		if p = p[copy(s, p):]; len(p) == 0 {
			break
		}
	}
	return len(f.frame), nil
}

func (f *flood) Wait() error {
	select {
	case f.left = <-f.ready:
		return nil
	case <-f.done:
		return stdnet.ErrClosed
	}
}

// sink is a channel that only counts completed receive buffers.
type sink struct {
	want int
	done chan struct{}
}

func (s *sink) Return([]*virtio.Request) {}
func (s *sink) ConfigChanged([]byte)     {}
func (s *sink) NeedsReset(error)         {}
func (s *sink) Complete(reqs []*virtio.Request) {
	if reqs[0].Queue != 0 {
		return
	}
	if s.want -= len(reqs); s.want == 0 {
		s.done <- struct{}{}
	}
}

// benchRig is an active device with n receive buffers of the given size.
func benchRig(b *testing.B, f *flood, s *sink, n, size int) (*net.Device, []*virtio.Request, func()) {
	dev, err := net.New(net.Config{MAC: []byte{2, 0, 0, 0, 0, 1}, Backend: f})
	if err != nil {
		b.Fatal(err)
	}
	all := bit(net.VIRTIO_NET_F_MRG_RXBUF) | bit(net.VIRTIO_NET_F_CSUM) | bit(net.VIRTIO_NET_F_GUEST_CSUM) | bit(net.VIRTIO_NET_F_GUEST_TSO4) | bit(net.VIRTIO_NET_F_HOST_TSO4)
	if err := dev.Activate(virtio.Activation{Features: all, QueueSizes: []uint16{512, 512, 0}, Channel: s}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(dev.Reset)
	reqs, bufs := make([]*virtio.Request, n), make([][][]byte, n)
	for i := range reqs {
		reqs[i], bufs[i] = &virtio.Request{}, [][]byte{make([]byte, size)}
	}
	renew := func() {
		for i, r := range reqs {
			r.Init(s, 0, 0, 0, nil, bufs[i])
		}
	}
	renew()
	return dev, reqs, renew
}

// BenchmarkReceive fills the ring with frames again and again; an operation is a frame.
func BenchmarkReceive(b *testing.B) {
	for _, c := range []struct {
		name            string
		frame, perFrame int
	}{{"64", 64, 1}, {"1514", 1514, 1}, {"64KiB", 65226, 44}} {
		b.Run(c.name, func(b *testing.B) {
			const size, frames = 1526, 8
			f := &flood{frame: make([]byte, net.HeaderBytes+c.frame), ready: make(chan int, 1), done: make(chan struct{})}
			s := &sink{done: make(chan struct{}, 1)}
			c.perFrame = (net.HeaderBytes + c.frame + size - 1) / size
			dev, reqs, renew := benchRig(b, f, s, frames*c.perFrame, size)
			b.SetBytes(int64(c.frame))
			b.ReportAllocs()
			for b.Loop() {
				s.want = len(reqs)
				renew()
				dev.Submit(0, reqs)
				f.ready <- frames
				<-s.done
			}
			b.ReportMetric(b.Elapsed().Seconds()*1e9/float64(b.N*frames), "ns/frame")
		})
	}
}

// BenchmarkTransmit sends batches of 16 segments of 64 KiB; an operation is a batch.
func BenchmarkTransmit(b *testing.B) {
	f := &flood{ready: make(chan int), done: make(chan struct{})}
	s := &sink{}
	dev, _, _ := benchRig(b, f, s, 1, 1526)
	h := header()
	h.SetPartialChecksum(34, 16)
	h.SetGSO(net.VIRTIO_NET_HDR_GSO_TCPV4, 54, 1448)
	segs := [][]byte{h, make([]byte, 54)}
	for range 16 {
		segs = append(segs, make([]byte, 4096))
	}
	reqs := make([]*virtio.Request, 16)
	for i := range reqs {
		reqs[i] = &virtio.Request{}
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, r := range reqs {
			r.Init(s, 1, 0, 0, segs, nil)
		}
		dev.Submit(1, reqs)
	}
}
