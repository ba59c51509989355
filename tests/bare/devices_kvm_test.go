package bare

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/console"
	virtionet "github.com/peervisor/peervisor/virtio/net"
	"github.com/peervisor/peervisor/virtio/rng"
)

func TestRngGivesRandomBytes(t *testing.T) {
	d, err := rng.New(rng.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if r := run(t, spec{cmdline: "bare.test=rng bytes=256K", halves: []virtio.Device{d}}); r.Bytes != 256<<10 {
		t.Errorf("%d bytes", r.Bytes)
	}
}

// wire is a network backend that a test holds the other end of.
type wire struct {
	mu     sync.Mutex
	change *sync.Cond
	toVM   [][]byte // frames without header
	fromVM [][]byte
	closed bool
}

func newWire() *wire {
	w := &wire{}
	w.change = sync.NewCond(&w.mu)
	return w
}

func (w *wire) Offloads() virtionet.Offload { return 0 }

func (w *wire) Attach(virtionet.Offload) (virtionet.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = false
	return w, nil
}

func (w *wire) Send(_ virtionet.Header, frame [][]byte) error {
	var f []byte
	for _, s := range frame {
		f = append(f, s...)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fromVM = append(w.fromVM, f)
	w.change.Broadcast()
	return nil
}

func (w *wire) Recv(room [][]byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, net.ErrClosed
	}
	if len(w.toVM) == 0 {
		return 0, nil
	}
	f := append(make([]byte, virtionet.HeaderBytes), w.toVM[0]...)
	w.toVM = w.toVM[1:]
	n := len(f)
	for _, s := range room {
		f = f[copy(s, f):]
	}
	return n, nil
}

func (w *wire) Wait() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.toVM) == 0 && !w.closed {
		w.change.Wait()
	}
	if w.closed {
		return net.ErrClosed
	}
	return nil
}

func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.change.Broadcast()
	return nil
}

// push gives the guest a frame; take waits for n from it.
func (w *wire) push(f []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.toVM = append(w.toVM, f)
	w.change.Broadcast()
}

func (w *wire) take(n int) [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.fromVM) < n {
		w.change.Wait()
	}
	f := w.fromVM[:n]
	w.fromVM = w.fromVM[n:]
	return f
}

// frame is what the guest's net test numbers and checks.
func frame(n uint64, size int) []byte {
	f := make([]byte, size)
	copy(f, mac)
	copy(f[6:], []byte{2, 0, 0, 0, 0, 9})
	f[12], f[13] = 0x88, 0xb5
	for i := range 8 {
		f[14+i] = byte(n >> (8 * i))
	}
	for i := 22; i < size; i++ {
		f[i] = byte(n) + byte(i)
	}
	return f
}

func netDevice(t *testing.T, w *wire) *virtionet.Device {
	t.Helper()
	d, err := virtionet.New(virtionet.Config{MAC: mac, Backend: w})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestNetEchoReturnsEveryFrame(t *testing.T) {
	for _, wait := range []string{"poll", "irq"} {
		t.Run(wait, func(t *testing.T) {
			const frames = 2000
			w := newWire()
			g := start(t, spec{cmdline: fmt.Sprintf("bare.test=net op=echo frames=%d seconds=30 wait=%s", frames, wait),
				halves: []virtio.Device{netDevice(t, w)}})
			size := func(n int) int { return 60 + n*37%1455 } // 60..1514
			for n := range frames {
				w.push(frame(uint64(n), size(n)))
			}
			for n, f := range w.take(frames) {
				want := frame(uint64(n), size(n))
				copy(want, []byte{2, 0, 0, 0, 0, 9})
				copy(want[6:], mac)
				if string(f) != string(want) {
					t.Fatalf("frame %d came back as %x, want %x", n, f, want)
				}
			}
			g.wait()
		})
	}
}

func TestNetSendsInOrder(t *testing.T) {
	const frames = 3000
	w := newWire()
	run(t, spec{cmdline: fmt.Sprintf("bare.test=net op=send frames=%d size=200 seconds=30", frames), halves: []virtio.Device{netDevice(t, w)}})
	for n, f := range w.take(frames) {
		want := frame(uint64(n), 200)
		if string(f[12:]) != string(want[12:]) {
			t.Fatalf("frame %d is %x", n, f)
		}
	}
}

// endless gives bytes for ever: a console's input that does not end under the guest.
type endless struct{ n uint64 }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e.n * 7 >> 2)
		e.n++
	}
	return len(p), nil
}

func TestConsoleCarriesBytesBothWays(t *testing.T) {
	const size = 300_001
	sent := make([]byte, size) // what the guest's op=bulk sends
	for i := range sent {
		sent[i] = byte(i * 31 >> 3)
	}
	echoed := make([]byte, size)
	if _, err := io.ReadFull(&endless{}, echoed); err != nil {
		t.Fatal(err)
	}
	for op, want := range map[string][]byte{"bulk": sent, "echo": echoed} {
		t.Run(op, func(t *testing.T) {
			var out bytes.Buffer // written by one goroutine of the device, read after Drain
			d, err := console.New(console.Config{Ports: []console.Port{{Console: true, In: &endless{}, Out: &out}}})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = d.Close() }()
			// With echo the guest counts what it got, which may be a buffer more.
			run(t, spec{cmdline: fmt.Sprintf("bare.test=console op=%s bytes=%d", op, size), halves: []virtio.Device{d}})
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			if err := d.Drain(ctx); err != nil {
				t.Fatal(err)
			}
			if got := out.Bytes(); len(got) < size || !bytes.Equal(got[:size], want) {
				t.Fatalf("%d bytes arrived, or others than were sent; want %d", len(got), size)
			}
		})
	}
}
