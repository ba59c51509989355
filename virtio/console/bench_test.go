package console_test

import (
	"context"
	"io"
	"testing"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/console"
)

// benchChannel gives what ended to the driver's goroutine; it allocates nothing.
type benchChannel struct{ ended chan *virtio.Request }

func (c *benchChannel) Complete(reqs []*virtio.Request) {
	for _, r := range reqs {
		c.ended <- r
	}
}
func (c *benchChannel) Return([]*virtio.Request) {}
func (c *benchChannel) ConfigChanged([]byte)     {}
func (c *benchChannel) NeedsReset(error)         {}

// endless reads zeroes, as many as are asked for.
type endless struct{ left int }

func (e *endless) Read(p []byte) (int, error) {
	if e.left <= 0 {
		return 0, io.EOF
	}
	n := min(len(p), e.left, 64<<10)
	e.left -= n
	return n, nil
}

// BenchmarkInput receives into buffers of 4 KiB, as Linux posts them.
func BenchmarkInput(b *testing.B) {
	const size, depth = 4096, 128
	ch := &benchChannel{make(chan *virtio.Request, depth)}
	dev, err := console.New(console.Config{Ports: []console.Port{{Console: true, In: &endless{left: b.N * size}}}})
	if err != nil {
		b.Fatal(err)
	}
	defer dev.Close()
	if err := dev.Activate(virtio.Activation{Channel: ch}); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	b.ReportAllocs()
	segs := make(map[*virtio.Request][][]byte, depth)
	seq := uint64(0)
	one := make([]*virtio.Request, 0, depth)
	for range depth {
		r := new(virtio.Request)
		segs[r] = [][]byte{make([]byte, size)}
		one = append(one, r)
	}
	b.ResetTimer()
	for got := 0; got < b.N*size; {
		for _, r := range one {
			r.Init(ch, 0, seq, 0, nil, segs[r])
			seq++
		}
		dev.Submit(0, one)
		one = one[:0]
		for more := true; more; {
			r := <-ch.ended
			got += int(r.Used())
			one = append(one, r)
			more = len(ch.ended) > 0
		}
	}
}

// BenchmarkOutput sends requests of 32 KiB, as Linux makes them.
func BenchmarkOutput(b *testing.B) {
	const size, depth = 32 << 10, 16
	ch := &benchChannel{make(chan *virtio.Request, depth)}
	dev, err := console.New(console.Config{Ports: []console.Port{{Console: true, Out: io.Discard}}})
	if err != nil {
		b.Fatal(err)
	}
	defer dev.Close()
	if err := dev.Activate(virtio.Activation{Channel: ch}); err != nil {
		b.Fatal(err)
	}
	reqs := make([]*virtio.Request, depth)
	segs := make([][][]byte, depth)
	for i := range reqs {
		reqs[i], segs[i] = new(virtio.Request), [][]byte{make([]byte, size)}
	}
	b.SetBytes(size)
	b.ReportAllocs()
	b.ResetTimer()
	seq := uint64(0)
	for n := 0; n < b.N; n += depth {
		for i, r := range reqs {
			r.Init(ch, 1, seq, 0, segs[i], nil)
			seq++
		}
		dev.Submit(1, reqs)
		for range depth {
			<-ch.ended
		}
	}
	if err := dev.Drain(context.Background()); err != nil {
		b.Fatal(err)
	}
}
