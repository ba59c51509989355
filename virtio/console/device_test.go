package console_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/console"
)

func newConsole(t testing.TB, cfg console.Config) (*console.Device, *driver) {
	t.Helper()
	dev, err := console.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	d := newDriver(t, dev)
	d.activate()
	return dev, d
}

func closeConsole(t testing.TB, dev *console.Device) {
	t.Helper()
	if err := errors.Join(dev.Close(), dev.Close()); err != nil {
		t.Error(err)
	}
}

// 5.3.2, 5.3.3, 5.3.4: queues, features and configuration space.
func TestInfo_5_3(t *testing.T) {
	plain, err := console.New(console.Config{Ports: []console.Port{{Console: true}}, Cols: 80, Rows: 25})
	if err != nil {
		t.Fatal(err)
	}
	in := plain.Info()
	if in.ID != virtio.VIRTIO_ID_CONSOLE || len(in.Queues) != 2 || in.Features != 1<<0|1<<2 ||
		!bytes.Equal(in.Config, []byte{80, 0, 25, 0, 0, 0, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("plain: %+v", in)
	}
	multi, err := console.New(console.Config{Ports: []console.Port{{Name: "a"}, {Name: "b"}}, MaxPorts: 31})
	if err != nil {
		t.Fatal(err)
	}
	if in = multi.Info(); len(in.Queues) != 64 || in.Features != 1<<0|1<<1|1<<2 || in.Config[4] != 31 {
		t.Errorf("multiport: %d queues, %#x, %v", len(in.Queues), in.Features, in.Config)
	}
	for q, want := range map[int]virtio.QueueInfo{
		0: {MaxSize: 256, Replay: virtio.ReplayStream},
		1: {MaxSize: 256, Replay: virtio.ReplayStream, Failure: virtio.Failure{Form: virtio.FailDrop}},
		2: {MaxSize: 256, Replay: virtio.ReplayRetain},
		3: {MaxSize: 256, Replay: virtio.ReplayRetain},
		5: {MaxSize: 256, Replay: virtio.ReplayStream, Failure: virtio.Failure{Form: virtio.FailDrop}},
	} {
		if in.Queues[q] != want {
			t.Errorf("queue %d: %+v", q, in.Queues[q])
		}
	}
}

// A driver without multiport uses port 0 at once.
func TestPlainConsole(t *testing.T) {
	var out bytes.Buffer
	dev, d := newConsole(t, console.Config{Ports: []console.Port{{Console: true, In: bytes.NewReader([]byte("typed")), Out: &out}}})
	d.post(0, 64)
	d.until("input", func() bool { return len(d.done[0]) == 1 })
	if p, _ := d.take(0); string(p) != "typed" {
		t.Errorf("got %q", p)
	}
	d.send(1, []byte("shown"))
	dev.WriteConfig(8, []byte{'!', 0, 0, 0}) // 5.3.5.1
	if err := dev.Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	closeConsole(t, dev)
	if out.String() != "shown!" {
		t.Errorf("wrote %q", out.String())
	}
}

// 5.3.6.2: the control messages, in the order that Linux needs.
func TestControl_5_3_6_2(t *testing.T) {
	var mu sync.Mutex
	var events []console.Event
	pr, pw := io.Pipe()
	dev, d := newConsole(t, console.Config{
		Ports:    []console.Port{{Name: "tty", Console: true, In: pr}, {Name: "out", Out: io.Discard}},
		MaxPorts: 4, Cols: 80, Rows: 25,
		Events: func(e console.Event) { mu.Lock(); events = append(events, e); mu.Unlock() },
	})
	d.control(0, console.VIRTIO_CONSOLE_DEVICE_READY, 1)
	d.control(0, console.VIRTIO_CONSOLE_DEVICE_READY, 1) // again changes nothing
	d.control(1, console.VIRTIO_CONSOLE_PORT_READY, 1)   // before it was added: ignored
	for range 40 {
		d.post(2, 64)
	}
	d.expect("0 add", "1 add")
	d.control(0, console.VIRTIO_CONSOLE_PORT_READY, 1)
	d.expect("0 console", "0 name tty", "0 resize 80 25", "0 open 1")
	d.control(1, console.VIRTIO_CONSOLE_PORT_READY, 1)
	d.expect("1 name out", "1 open 1")
	d.control(1, console.VIRTIO_CONSOLE_PORT_READY, 1) // again
	d.control(77, console.VIRTIO_CONSOLE_PORT_OPEN, 1) // no such port
	d.control(3, console.VIRTIO_CONSOLE_PORT_OPEN, 1)  // not plugged
	d.control(0, 99, 1)                                // no such event
	d.send(3, []byte{1, 2, 3})                         // no message at all
	d.control(0, console.VIRTIO_CONSOLE_PORT_OPEN, 1)

	if err := errors.Join(dev.Resize(0, 132, 50), dev.Resize(0, 132, 50)); err != nil {
		t.Fatal(err)
	}
	d.expect("0 resize 132 50")
	if in := dev.Info(); in.Config[0] != 132 || in.Config[2] != 50 || d.configs != 1 {
		t.Errorf("%v after Resize, %d changes", in.Config, d.configs)
	}
	id, err := dev.Plug(console.Port{Name: "late"})
	if err != nil || id != 2 {
		t.Fatalf("port %d, %v", id, err)
	}
	d.expect("2 add")
	d.control(2, console.VIRTIO_CONSOLE_PORT_READY, 1)
	d.expect("2 name late", "2 open 1")
	if err := dev.Unplug(2); err != nil {
		t.Fatal(err)
	}
	d.expect("2 remove")
	if dev.Unplug(2) == nil || dev.Unplug(9) == nil || dev.Resize(-1, 1, 1) == nil {
		t.Error("a port that is not there was unplugged or resized")
	}
	d.control(2, console.VIRTIO_CONSOLE_PORT_READY, 1)

	if _, err := pw.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	d.post(0, 4)
	d.post(0, 4)
	d.until("two buffers", func() bool { return len(d.done[0]) == 2 })
	if len(d.done[2]) != 0 {
		t.Fatal("the port was closed before all input was delivered")
	}
	d.post(0, 4)
	d.expect("0 open 0")
	if p, _ := d.take(0); string(p) != "last words" {
		t.Errorf("received %q", p)
	}
	closeConsole(t, dev)
	want := []console.Event{
		{Port: 0, Name: "tty", Kind: console.GuestOpened},
		{Port: 0, Name: "tty", Kind: console.InputEnded, Err: io.EOF},
		{Port: 0, Name: "tty", Kind: console.GuestClosed},
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(events, want) {
		t.Errorf("events %+v", events)
	}
}

func TestResizeRowsFirst(t *testing.T) {
	dev, d := newConsole(t, console.Config{Ports: []console.Port{{Name: "tty", Console: true}}, Cols: 80, Rows: 25, ResizeRowsFirst: true})
	defer closeConsole(t, dev)
	d.bringUp(0)
	d.expect("0 console", "0 name tty", "0 resize 25 80")
}

// Input waits until the guest has the port open: Linux throws away the rest.
func TestInputWaitsForOpen(t *testing.T) {
	dev, d := newConsole(t, console.Config{Ports: []console.Port{{Name: "in", In: bytes.NewReader([]byte("x")), KeepOpen: true}}})
	defer closeConsole(t, dev)
	d.post(0, 8)
	for range 8 {
		d.post(2, 64)
	}
	d.control(0, console.VIRTIO_CONSOLE_DEVICE_READY, 1)
	d.expect("0 add")
	d.control(0, console.VIRTIO_CONSOLE_PORT_READY, 1)
	d.expect("0 name in", "0 open 1")
	if p, n := d.take(0); n != 0 {
		t.Fatalf("delivered %q to a closed port", p)
	}
	d.control(0, console.VIRTIO_CONSOLE_PORT_OPEN, 1)
	d.until("input", func() bool { return len(d.done[0]) == 1 })
}

// An output that fails is reported once, and the guest goes on.
func TestOutputFails(t *testing.T) {
	events := make(chan console.Event, 8)
	pr, pw := io.Pipe()
	dev, d := newConsole(t, console.Config{
		Ports: []console.Port{{Console: true, Out: pw}}, BufferBytes: 4096,
		Events: func(e console.Event) { events <- e },
	})
	broken := errors.New("broken pipe")
	for range 4 {
		d.send(1, make([]byte, 4096))
	}
	pr.CloseWithError(broken)
	d.until("all requests", func() bool { return len(d.done[1]) == 4 })
	if e := <-events; e.Kind != console.OutputFailed || !errors.Is(e.Err, broken) {
		t.Errorf("%+v", e)
	}
	d.send(1, make([]byte, 1<<20))
	d.until("the next request", func() bool { return len(d.done[1]) == 5 })
	closeConsole(t, dev)
}

// stuck is a writer that does not return before it is let go.
type stuck struct {
	in, free chan struct{}
	mu       sync.Mutex
	got      bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) {
	select {
	case s.in <- struct{}{}:
	default:
	}
	<-s.free
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.Write(p)
}

// Neither Quiesce nor Reset waits for a writer that does not return; what was
// accepted is written later, once; what was not is returned or forgotten.
func TestStuckWriter(t *testing.T) {
	w := &stuck{in: make(chan struct{}, 1), free: make(chan struct{})}
	dev, d := newConsole(t, console.Config{Ports: []console.Port{{Console: true, Out: w}}, BufferBytes: 4096})
	d.send(1, bytes.Repeat([]byte("a"), 4000))
	<-w.in
	d.send(1, bytes.Repeat([]byte("b"), 200)) // no room: waits
	if _, n := d.take(1); n != 1 {
		t.Fatalf("%d requests were accepted", n)
	}
	d.drain(1) // returned and handed in again
	d.reset()
	d.clear()
	d.activate()
	d.send(1, bytes.Repeat([]byte("c"), 50))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := dev.Drain(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Drain: %v", err)
	}
	close(w.free)
	if err := dev.Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	closeConsole(t, dev)
	if got := w.got.String(); got != string(bytes.Repeat([]byte("a"), 4000))+string(bytes.Repeat([]byte("c"), 50)) {
		t.Errorf("%d bytes were written", len(got))
	}
}

// A request that is larger than the buffer, returned in the middle of it.
func TestHugeOutputAndQuiesce(t *testing.T) {
	w := &stuck{in: make(chan struct{}, 1), free: make(chan struct{})}
	dev, d := newConsole(t, console.Config{Ports: []console.Port{{Console: true, Out: w}}, BufferBytes: 4096})
	data := make([]byte, 100_000)
	for i := range data {
		data[i] = byte(i * i >> 3)
	}
	d.send(1, data)
	<-w.in
	for range 5 {
		d.drain(1)
	}
	close(w.free)
	d.until("the request", func() bool { return len(d.done[1]) == 1 })
	if err := dev.Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	closeConsole(t, dev)
	if !bytes.Equal(w.got.Bytes(), data) {
		t.Errorf("%d bytes were written, or wrong ones", w.got.Len())
	}
}

// deadlined is a stuck writer that a deadline lets go.
type deadlined struct{ stuck }

func (w *deadlined) SetWriteDeadline(time.Time) error { close(w.free); return nil }

// Close ends a writer that can be given a deadline, and says what was lost.
func TestCloseLosesOutput(t *testing.T) {
	w := &deadlined{stuck{in: make(chan struct{}, 1), free: make(chan struct{})}}
	dev, d := newConsole(t, console.Config{Ports: []console.Port{{Console: true, Out: w}}, BufferBytes: 4096})
	d.send(1, make([]byte, 4000))
	<-w.in
	if err := dev.Close(); err == nil || !strings.Contains(err.Error(), "2976 bytes of output were not written") {
		t.Errorf("error %v", err)
	}
}

// source gives n pseudo-random bytes in pieces of random size.
type source struct {
	rng, sizes *rand.Rand
	left       int
}

func newSource(n int) *source {
	return &source{rand.New(rand.NewPCG(7, 7)), rand.New(rand.NewPCG(8, 8)), n}
}

func (s *source) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(len(p), 1+s.sizes.IntN(9000), s.left)]
	for i := range p {
		p[i] = byte(s.rng.Uint32())
	}
	s.left -= len(p)
	return len(p), nil
}

// sink collects, in pieces that take a while now and then.
type sink struct {
	mu  sync.Mutex
	got []byte
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, p...)
	return len(p), nil
}

// Both streams are exact with random sizes, quiesces and resets in the middle.
func TestStreamsAreExact(t *testing.T) {
	const total = 1 << 20
	want, err := io.ReadAll(newSource(total))
	if err != nil {
		t.Fatal(err)
	}
	out := &sink{}
	dev, d := newConsole(t, console.Config{
		Ports:       []console.Port{{Name: "ctl"}, {Name: "data", In: newSource(total), Out: out}},
		BufferBytes: 16 << 10,
	})
	rng := rand.New(rand.NewPCG(5, 6))
	var received []byte
	accepted, sent := 0, 0
	var sizes []int // of the transmit requests in flight
	collect := func() {
		p, _ := d.take(4)
		received = append(received, p...)
		_, n := d.take(5)
		for _, k := range sizes[:n] {
			accepted += k
		}
		sizes = sizes[n:]
	}
	d.bringUp(0, 1)
	for step := 0; len(received) < total || accepted < total; step++ {
		switch x := rng.IntN(1000); {
		case x == 0:
			d.reset()
			collect()
			sent, sizes = accepted, nil
			d.clear()
			d.activate()
			d.bringUp(0, 1)
		case x < 20:
			d.drain(4 + rng.IntN(2))
		case x < 500:
			d.post(4, 1+rng.IntN(6000))
		default:
			if n := min(rng.IntN(6000), total-sent); n > 0 {
				d.send(5, want[sent:][:n])
				sent, sizes = sent+n, append(sizes, n)
			}
		}
		collect()
		if len(d.bufs) > 200 { // let the other side work
			left := total - len(received)
			d.until("progress", func() bool { return len(d.done[4]) > 0 || len(d.done[5]) > 0 || left == 0 })
			if left == 0 {
				d.reset()
				collect()
				sent, sizes = accepted, nil
				d.clear()
				d.activate()
				d.bringUp(0, 1)
			}
		}
	}
	if err := dev.Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	closeConsole(t, dev)
	if !bytes.Equal(received, want) {
		t.Errorf("received %d of %d bytes, or wrong ones", len(received), total)
	}
	if !bytes.Equal(out.got, want) {
		t.Errorf("sent %d of %d bytes, or wrong ones", len(out.got), total)
	}
}

// Saved in the middle of both streams and restored into another half.
func TestSaveRestore(t *testing.T) {
	w := &stuck{in: make(chan struct{}, 1), free: make(chan struct{})}
	pr, pw := io.Pipe()
	ended := make(chan struct{}, 2)
	ports := func(in io.Reader, out io.Writer) console.Config {
		return console.Config{Events: func(e console.Event) {
			if e.Kind == console.InputEnded {
				ended <- struct{}{}
			}
		}, Ports: []console.Port{{Name: "tty", Console: true}, {Name: "data", In: in, Out: out}}, MaxPorts: 5, BufferBytes: 4096}
	}
	dev, d := newConsole(t, ports(pr, w))
	d.bringUp(0, 1)
	if _, err := pw.Write([]byte("undelivered")); err != nil {
		t.Fatal(err)
	}
	huge := bytes.Repeat([]byte("0123456789"), 1000)
	d.send(5, huge)
	<-w.in
	d.dev.Quiesce(5)
	d.until("the huge request", func() bool { return len(d.returned[5]) == 1 })
	if err := dev.Resize(0, 90, 30); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	<-ended
	state, err := dev.SaveState()
	if err != nil {
		t.Fatal(err)
	}
	close(w.free)
	out := &sink{}
	second, err := console.New(ports(nil, out))
	if err != nil {
		t.Fatal(err)
	}
	if err := second.RestoreState(console.StateVersion, state); err != nil {
		t.Fatal(err)
	}
	again, err := second.SaveState()
	if err != nil || !bytes.Equal(state, again) {
		t.Fatalf("save, restore, save is not equal: %v\n%x\n%x", err, state, again)
	}
	if second.RestoreState(console.StateVersion, state) == nil {
		t.Error("restored over a half with bytes in it")
	}
	d2 := newDriver(t, second)
	d2.seq[5] = 0
	d2.activate()
	d2.post(4, 64)
	d2.until("input", func() bool { return len(d2.done[4]) == 1 })
	if p, _ := d2.take(4); string(p) != "undelivered" {
		t.Errorf("received %q", p)
	}
	d2.send(5, huge) // the same request, by sequence number
	d2.until("the huge request", func() bool { return len(d2.done[5]) == 1 })
	if err := second.Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	closeConsole(t, second)
	if !bytes.Equal(out.got, huge) {
		t.Errorf("%d bytes of output, want %d", len(out.got), len(huge))
	}
	if err := dev.Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	closeConsole(t, dev)
}

func TestBadConfig(t *testing.T) {
	one := []console.Port{{}}
	for name, c := range map[string]console.Config{
		"no port":         {},
		"too many":        {Ports: make([]console.Port, 32)},
		"room too small":  {Ports: make([]console.Port, 2), MaxPorts: 1},
		"odd queue":       {Ports: one, QueueSize: 3},
		"tiny buffer":     {Ports: one, BufferBytes: 10},
		"binary name":     {Ports: []console.Port{{Name: "a\xff"}}},
		"name with a NUL": {Ports: []console.Port{{Name: "a\x00"}}},
		"long name":       {Ports: []console.Port{{Name: string(make([]byte, 300))}}},
	} {
		if _, err := console.New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

var _ virtio.Device = (*console.Device)(nil)
