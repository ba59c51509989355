package rng_test

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/rng"
)

// channel is the transport half of these tests.
type channel struct {
	ended    chan *virtio.Request
	returned chan *virtio.Request
	resets   chan error
}

func newChannel() *channel {
	return &channel{make(chan *virtio.Request, 64), make(chan *virtio.Request, 64), make(chan error, 64)}
}

func (c *channel) Complete(reqs []*virtio.Request) {
	for _, r := range reqs {
		c.ended <- r
	}
}
func (c *channel) Return(reqs []*virtio.Request) {
	for _, r := range reqs {
		c.returned <- r
	}
}
func (c *channel) ConfigChanged([]byte)    {}
func (c *channel) NeedsReset(reason error) { c.resets <- reason }

func within[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func start(t *testing.T, cfg rng.Config) (*rng.Device, *channel) {
	t.Helper()
	d, err := rng.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ch := newChannel()
	if err := d.Activate(virtio.Activation{Features: 1 << virtio.VIRTIO_F_VERSION_1, QueueSizes: []uint16{64}, Channel: ch}); err != nil {
		t.Fatal(err)
	}
	return d, ch
}

func post(d *rng.Device, ch *channel, seq uint64, room int) (*virtio.Request, []byte) {
	r, p := new(virtio.Request), make([]byte, room)
	r.Init(ch, 0, seq, 0, nil, [][]byte{p[:room/2], p[room/2:]})
	d.Submit(0, []*virtio.Request{r})
	return r, p
}

// 5.4.6: one or more random bytes for each request, and no more than its room.
func TestFills_5_4_6(t *testing.T) {
	d, ch := start(t, rng.Config{MaxBytes: 100})
	defer d.Close()
	for _, room := range []int{1, 16, 100, 4096} {
		r, p := post(d, ch, 0, room)
		if got := within(t, ch.ended); got != r || int(r.Used()) != min(room, 100) {
			t.Fatalf("room %d: used %d", room, r.Used())
		}
		if room >= 16 && bytes.Equal(p[:16], make([]byte, 16)) {
			t.Error("16 zeroes")
		}
		if room > 100 && !bytes.Equal(p[100:], make([]byte, room-100)) {
			t.Error("more than the bound was written")
		}
	}
	// A request without room ends as well.
	if r, _ := post(d, ch, 0, 0); within(t, ch.ended) != r || r.Used() != 0 {
		t.Error("a request without room did not end with 0")
	}
	if s := d.Stats(); s.Requests != 5 || s.Bytes != 1+16+100+100 {
		t.Errorf("%+v", s)
	}
}

// gated is a source whose Read tells that it was entered and waits for bytes.
type gated struct {
	entered chan struct{}
	bytes   chan string
}

func (g *gated) Read(p []byte) (int, error) {
	g.entered <- struct{}{}
	s, ok := <-g.bytes
	if !ok {
		return 0, io.EOF
	}
	return copy(p, s), nil
}

// A source that blocks holds up neither Quiesce nor Reset, and what it gives
// late touches no request from before.
func TestBlockedSource(t *testing.T) {
	src := &gated{make(chan struct{}, 8), make(chan string)}
	d, ch := start(t, rng.Config{Source: src})
	r, p := post(d, ch, 0, 8)
	within(t, src.entered)
	d.Quiesce(0)
	if within(t, ch.returned) != r {
		t.Fatal("not returned")
	}
	_, p1 := post(d, ch, 1, 8)
	d.Reset()
	ch = newChannel()
	if err := d.Activate(virtio.Activation{Channel: ch}); err != nil {
		t.Fatal(err)
	}
	r, p2 := post(d, ch, 0, 8)
	src.bytes <- "old data"
	within(t, src.entered)
	src.bytes <- "new data"
	if within(t, ch.ended) != r || string(p2) != "new data" {
		t.Errorf("used %d, %q", r.Used(), p2)
	}
	if !bytes.Equal(append(p, p1...), make([]byte, 16)) {
		t.Error("a request was written to that had been taken back")
	}
	close(src.bytes)
	d.Close()
	d.Close()
}

// A failed source is DEVICE_NEEDS_RESET, and requests can still be drained.
func TestFailedSource(t *testing.T) {
	var reported error
	d, ch := start(t, rng.Config{Source: bytes.NewReader(nil), Report: func(err error) { reported = err }})
	defer d.Close()
	post(d, ch, 0, 8)
	if err := within(t, ch.resets); !errors.Is(err, io.EOF) || !errors.Is(reported, io.EOF) {
		t.Errorf("%v, reported %v", err, reported)
	}
	post(d, ch, 1, 8)
	d.Quiesce(0)
	within(t, ch.returned)
	within(t, ch.returned)
}

// clock is a test's time: it moves when somebody waits for it.
type clock struct {
	mu    sync.Mutex
	now   time.Time
	slept time.Duration
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *clock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now, c.slept = c.now.Add(d), c.slept+d
	ch := make(chan time.Time, 1)
	ch <- c.now
	return ch
}

func TestRateLimit(t *testing.T) {
	c := &clock{now: time.Unix(1, 0)}
	d, ch := start(t, rng.Config{BytesPerSecond: 1000, BurstBytes: 500, Clock: c})
	defer d.Close()
	total := 0
	for range 100 {
		r, _ := post(d, ch, 0, 100)
		within(t, ch.ended)
		if r.Used() == 0 {
			t.Fatal("no byte")
		}
		total += int(r.Used())
	}
	allowed := 500 + c.slept.Seconds()*1000
	if f := float64(total); f > allowed+1 || f < allowed*0.9-1 {
		t.Errorf("%d bytes in %v, expected about %.0f", total, c.slept, allowed)
	}
	if d.Stats().Throttled == 0 {
		t.Error("the limit was never met")
	}
}

func TestBadConfig(t *testing.T) {
	for _, c := range []rng.Config{{MaxBytes: -1}, {MaxBytes: 2 << 20}, {QueueSize: 3}, {BytesPerSecond: -1}, {BurstBytes: -1}} {
		if _, err := rng.New(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

var _ virtio.Device = (*rng.Device)(nil)

func BenchmarkRequest(b *testing.B) {
	d, err := rng.New(rng.Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	ch := newChannel()
	if err := d.Activate(virtio.Activation{Channel: ch}); err != nil {
		b.Fatal(err)
	}
	r, p := new(virtio.Request), make([]byte, 64)
	segs, reqs := [][]byte{p}, []*virtio.Request{r}
	b.SetBytes(64)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		r.Init(ch, 0, uint64(n), 0, nil, segs)
		d.Submit(0, reqs)
		<-ch.ended
	}
}
