package blk_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/blk"
)

// benchChannel counts what ends; it allocates nothing.
type benchChannel struct{ done chan int }

func (c *benchChannel) Complete(reqs []*virtio.Request) { c.done <- len(reqs) }
func (c *benchChannel) Return(reqs []*virtio.Request)   {}
func (c *benchChannel) ConfigChanged([]byte)            {}
func (c *benchChannel) NeedsReset(error)                {}

// bench moves size bytes with each request, depth of them at a time, over a
// file of 256 MiB in the page cache.
func bench(b *testing.B, o blk.Options, typ uint32, size, depth int, random bool) {
	const total = 256 << 20
	o.Path = filepath.Join(b.TempDir(), "disk.img")
	chunk := pattern(1, 1<<20)
	f, err := os.Create(o.Path)
	if err != nil {
		b.Fatal(err)
	}
	for range total >> 20 {
		if _, err := f.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	back, err := blk.Open(o)
	if err != nil {
		b.Fatal(err)
	}
	dev, err := blk.New(blk.Config{Backend: back})
	if err != nil {
		b.Fatal(err)
	}
	defer dev.Close()
	ch := &benchChannel{done: make(chan int, depth)}
	if err := dev.Activate(virtio.Activation{Features: all, QueueSizes: []uint16{256}, Channel: ch}); err != nil {
		b.Fatal(err)
	}
	reqs := make([]*virtio.Request, depth)
	heads, data, status := make([][]byte, depth), make([][]byte, depth), make([][]byte, depth)
	readable, writable := make([][][]byte, depth), make([][][]byte, depth)
	for i := range reqs {
		reqs[i] = new(virtio.Request)
		heads[i], data[i], status[i] = header(typ, 0), make([]byte, size), make([]byte, 1)
		readable[i], writable[i] = [][]byte{heads[i]}, [][]byte{data[i], status[i]}
		if typ == blk.VIRTIO_BLK_T_OUT {
			readable[i], writable[i] = [][]byte{heads[i], data[i]}, [][]byte{status[i]}
		}
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	blocks, next := total/size, 0
	for n := 0; n < b.N; n += depth {
		for i, r := range reqs {
			at := next
			if next++; next == blocks {
				next = 0
			}
			if random {
				at = rand.IntN(blocks)
			}
			putSector(heads[i], uint64(at)*uint64(size/512))
			r.Init(ch, 0, uint64(n+i), 0, readable[i], writable[i])
		}
		dev.Submit(0, reqs)
		for left := depth; left > 0; {
			left -= <-ch.done
		}
	}
	b.StopTimer()
	for _, s := range status {
		if s[0] != 0 {
			b.Fatalf("status %d", s[0])
		}
	}
	st := dev.Stats()
	b.ReportMetric(float64(st.Deferred)/float64(b.N), "deferred/op")
}

func putSector(h []byte, s uint64) {
	for i := range 8 {
		h[8+i] = byte(s >> (8 * i))
	}
}

func BenchmarkCached(b *testing.B) {
	for _, c := range []struct {
		name        string
		typ         uint32
		size, depth int
		random      bool
	}{
		{"rand-read-4k", blk.VIRTIO_BLK_T_IN, 4 << 10, 1, true},
		{"rand-read-4k", blk.VIRTIO_BLK_T_IN, 4 << 10, 32, true},
		{"seq-read-4k", blk.VIRTIO_BLK_T_IN, 4 << 10, 32, false},
		{"seq-read-256k", blk.VIRTIO_BLK_T_IN, 256 << 10, 1, false},
		{"seq-read-256k", blk.VIRTIO_BLK_T_IN, 256 << 10, 32, false},
		{"rand-write-4k", blk.VIRTIO_BLK_T_OUT, 4 << 10, 1, true},
		{"rand-write-4k", blk.VIRTIO_BLK_T_OUT, 4 << 10, 32, true},
	} {
		for _, snap := range []bool{false, true} {
			name := fmt.Sprintf("%s/depth-%d", c.name, c.depth)
			if snap {
				name += "/snapshot"
			}
			b.Run(name, func(b *testing.B) {
				bench(b, blk.Options{Snapshot: snap}, c.typ, c.size, c.depth, c.random)
			})
		}
	}
}

func BenchmarkDirect(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("rand-read-4k/depth-%d", depth), func(b *testing.B) {
			bench(b, blk.Options{Direct: true}, blk.VIRTIO_BLK_T_IN, 4<<10, depth, true)
		})
	}
}
