package blk_test

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/blk"
)

// channel is the transport half of these tests: it collects what ends.
type channel struct {
	mu       sync.Mutex
	cond     *sync.Cond
	done     []*virtio.Request
	returned []*virtio.Request
	configs  [][]byte
	resets   []error
	closed   bool // no call may come any more
	late     bool // one came
}

func newChannel() *channel {
	c := &channel{}
	c.cond = sync.NewCond(&c.mu)
	return c
}

func (c *channel) Complete(reqs []*virtio.Request) { c.take(&c.done, reqs) }
func (c *channel) Return(reqs []*virtio.Request)   { c.take(&c.returned, reqs) }

func (c *channel) take(dst *[]*virtio.Request, reqs []*virtio.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.late = c.late || c.closed
	*dst = append(*dst, reqs...)
	c.cond.Broadcast()
}

func (c *channel) ConfigChanged(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.configs = append(c.configs, append([]byte(nil), p...))
}

func (c *channel) NeedsReset(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resets = append(c.resets, err)
}

// wait returns when n requests in all have ended.
func (c *channel) wait(t testing.TB, n int) {
	t.Helper()
	timer := time.AfterFunc(20*time.Second, func() { c.cond.Broadcast() })
	defer timer.Stop()
	deadline := time.Now().Add(20 * time.Second)
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.done) < n {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d requests ended", len(c.done), n)
		}
		c.cond.Wait()
	}
}

// driver makes requests as a driver would lay them out.
type driver struct {
	t   testing.TB
	dev *blk.Device
	ch  *channel
	seq uint64
	// cuts makes odd descriptor boundaries; nil leaves one slice for each part.
	cuts *rand.Rand
}

func activate(t testing.TB, dev *blk.Device, features uint64) *driver {
	t.Helper()
	d := &driver{t: t, dev: dev, ch: newChannel()}
	in := dev.Info()
	sizes := make([]uint16, len(in.Queues))
	for i := range sizes {
		sizes[i] = in.Queues[i].MaxSize
	}
	if err := dev.Activate(virtio.Activation{Features: features | 1<<virtio.VIRTIO_F_VERSION_1, QueueSizes: sizes, Channel: d.ch}); err != nil {
		t.Fatal(err)
	}
	return d
}

func header(typ uint32, sector uint64) []byte {
	h := make([]byte, 16)
	binary.LittleEndian.PutUint32(h, typ)
	binary.LittleEndian.PutUint64(h[8:], sector)
	return h
}

func ranges(segs ...[3]uint64) []byte { // sector, count, flags
	var p []byte
	for _, s := range segs {
		p = binary.LittleEndian.AppendUint64(p, s[0])
		p = binary.LittleEndian.AppendUint32(p, uint32(s[1]))
		p = binary.LittleEndian.AppendUint32(p, uint32(s[2]))
	}
	return p
}

func (d *driver) cut(p []byte) [][]byte {
	if d.cuts == nil || len(p) == 0 {
		return [][]byte{p}
	}
	var out [][]byte
	for len(p) > 0 && len(out) < 20 {
		n := 1 + d.cuts.IntN(len(p))
		out, p = append(out, p[:n]), p[n:]
	}
	return append(out, p)
}

// request is one in flight: what the driver gave and got.
type request struct {
	*virtio.Request
	in []byte // the device-writable room
}

// status is what the driver reads after completion.
func (r request) status() int {
	if len(r.in) == 0 {
		return -1
	}
	return int(r.in[len(r.in)-1])
}

func (r request) data() []byte { return r.in[:len(r.in)-1] }

// make builds a request with room for n bytes and the status, poisoned.
func (d *driver) make(queue int, out []byte, n int) request {
	in := make([]byte, n+1)
	for i := range in {
		in[i] = 0xEE
	}
	return d.raw(queue, out, in)
}

func (d *driver) raw(queue int, out, in []byte) request {
	r := request{Request: new(virtio.Request), in: in}
	r.Init(d.ch, queue, d.seq, 0, d.cut(out), d.cut(in))
	d.seq++
	return r
}

// do submits one request and waits for it.
func (d *driver) do(out []byte, n int) request {
	d.t.Helper()
	r := d.make(0, out, n)
	d.submit(r)
	return r
}

func (d *driver) submit(rs ...request) {
	d.t.Helper()
	d.ch.mu.Lock()
	want := len(d.ch.done) + len(rs)
	d.ch.mu.Unlock()
	d.send(rs...)
	d.ch.wait(d.t, want)
}

func (d *driver) send(rs ...request) {
	reqs := make([]*virtio.Request, len(rs))
	for i := range rs {
		reqs[i] = rs[i].Request
	}
	d.dev.Submit(rs[0].Queue, reqs)
}

func (d *driver) read(sector uint64, n int) request {
	return d.do(header(blk.VIRTIO_BLK_T_IN, sector), n)
}
func (d *driver) write(sector uint64, p []byte) request {
	return d.do(append(header(blk.VIRTIO_BLK_T_OUT, sector), p...), 0)
}
func (d *driver) flush() request { return d.do(header(blk.VIRTIO_BLK_T_FLUSH, 0), 0) }

func pattern(seed byte, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i)*7 ^ byte(i>>8) ^ seed
	}
	return p
}
