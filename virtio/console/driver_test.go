package console_test

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/console"
)

// driver is a guest's driver and its transport half, for one test goroutine. Each
// request has one slice, which is its buffer.
type driver struct {
	t   testing.TB
	dev *console.Device

	mu       sync.Mutex
	cond     *sync.Cond
	bufs     map[*virtio.Request][]byte
	done     map[int][]*virtio.Request // by queue, in the order of the used ring
	returned map[int][]*virtio.Request
	configs  int
	resets   []error
	closed   bool
	seq      map[int]uint64
}

func newDriver(t testing.TB, dev *console.Device) *driver {
	d := &driver{t: t, dev: dev}
	d.cond = sync.NewCond(&d.mu)
	d.clear()
	return d
}

func (d *driver) clear() {
	d.bufs, d.done, d.returned = map[*virtio.Request][]byte{}, map[int][]*virtio.Request{}, map[int][]*virtio.Request{}
	d.seq, d.closed = map[int]uint64{}, false
}

func (d *driver) Complete(reqs []*virtio.Request) { d.end(d.done, reqs) }
func (d *driver) Return(reqs []*virtio.Request)   { d.end(d.returned, reqs) }

func (d *driver) end(to map[int][]*virtio.Request, reqs []*virtio.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		d.t.Error("the channel was used after Reset")
	}
	for _, r := range reqs {
		if _, ok := d.bufs[r]; !ok || r.Queue != reqs[0].Queue {
			d.t.Error("a request ended that was not in flight, or of another queue")
		}
		to[r.Queue] = append(to[r.Queue], r)
	}
	d.cond.Broadcast()
}

func (d *driver) ConfigChanged([]byte) { d.mu.Lock(); d.configs++; d.cond.Broadcast(); d.mu.Unlock() }
func (d *driver) NeedsReset(err error) {
	d.mu.Lock()
	d.resets = append(d.resets, err)
	d.mu.Unlock()
}

// activate starts the half; the driver accepts all that is offered.
func (d *driver) activate() {
	d.t.Helper()
	in := d.dev.Info()
	sizes := make([]uint16, len(in.Queues))
	for i := range sizes {
		sizes[i] = in.Queues[i].MaxSize
	}
	if err := d.dev.Activate(virtio.Activation{Features: in.Features, QueueSizes: sizes, Channel: d}); err != nil {
		d.t.Fatal(err)
	}
}

// reset resets the half and forgets what was in flight.
func (d *driver) reset() {
	d.dev.Reset()
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
}

// post hands in a receive buffer.
func (d *driver) post(queue, room int) { d.submit(queue, nil, make([]byte, room)) }

func (d *driver) submit(queue int, out, in []byte) {
	r := new(virtio.Request)
	var readable, writable [][]byte
	if out != nil {
		k := len(out) / 3
		readable = [][]byte{out[:k], out[k:]}
	}
	if in != nil {
		k := len(in) / 2
		writable = [][]byte{in[:k], in[k:]}
	}
	d.mu.Lock()
	r.Init(d, queue, d.seq[queue], 0, readable, writable)
	d.seq[queue]++
	d.bufs[r] = in
	d.mu.Unlock()
	d.dev.Submit(queue, []*virtio.Request{r})
}

// send hands in output.
func (d *driver) send(queue int, p []byte) { d.submit(queue, p, nil) }

// take removes what ended of a queue and returns the received bytes and the
// number of requests.
func (d *driver) take(queue int) ([]byte, int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.takeLocked(queue)
}

func (d *driver) takeLocked(queue int) (p []byte, n int) {
	for _, r := range d.done[queue] {
		p = append(p, d.bufs[r][:min(int(r.Used()), len(d.bufs[r]))]...)
		delete(d.bufs, r)
		n++
	}
	d.done[queue] = nil
	return p, n
}

// until waits for cond, which is called with the lock held.
func (d *driver) until(what string, cond func() bool) {
	d.t.Helper()
	timer := time.AfterFunc(20*time.Second, d.cond.Broadcast)
	defer timer.Stop()
	deadline := time.Now().Add(20 * time.Second)
	d.mu.Lock()
	defer d.mu.Unlock()
	for !cond() {
		if time.Now().After(deadline) {
			d.t.Fatalf("waited in vain for %s", what)
		}
		d.cond.Wait()
	}
}

// inFlight counts the requests of a queue that have not ended.
func (d *driver) inFlight(queue int) int {
	n := 0
	for r := range d.bufs {
		if r.Queue == queue {
			n++
		}
	}
	return n - len(d.done[queue]) - len(d.returned[queue])
}

// drain quiesces a queue, waits until nothing is outstanding, and hands in again
// what was returned, in order and as it was.
func (d *driver) drain(queue int) {
	d.t.Helper()
	d.dev.Quiesce(queue)
	d.until("a drained queue", func() bool { return d.inFlight(queue) == 0 })
	d.mu.Lock()
	back := d.returned[queue]
	d.returned[queue] = nil
	d.mu.Unlock()
	for i, r := range back {
		if i > 0 && back[i-1].Seq >= r.Seq {
			d.t.Error("requests were returned out of order")
		}
	}
	if len(back) > 0 {
		d.dev.Submit(queue, back)
	}
}

// control sends a control message.
func (d *driver) control(id uint32, event, value uint16) {
	p := binary.LittleEndian.AppendUint32(nil, id)
	p = binary.LittleEndian.AppendUint16(p, event)
	d.send(3, binary.LittleEndian.AppendUint16(p, value))
}

// message waits for the next control message of the device.
func (d *driver) message() string {
	d.t.Helper()
	var p []byte
	d.until("a control message", func() bool {
		if len(d.done[2]) == 0 {
			return false
		}
		r := d.done[2][0]
		d.done[2] = d.done[2][1:]
		p = d.bufs[r][:r.Used()]
		delete(d.bufs, r)
		return true
	})
	if len(p) < 8 {
		return fmt.Sprintf("short %x", p)
	}
	names := []string{"ready", "add", "remove", "port-ready", "console", "resize", "open", "name"}
	s := fmt.Sprintf("%d %s", binary.LittleEndian.Uint32(p), names[binary.LittleEndian.Uint16(p[4:])%8])
	switch v := binary.LittleEndian.Uint16(p[6:]); binary.LittleEndian.Uint16(p[4:]) {
	case console.VIRTIO_CONSOLE_PORT_OPEN:
		s += fmt.Sprintf(" %d", v)
	case console.VIRTIO_CONSOLE_PORT_NAME:
		s += " " + string(p[8:])
	case console.VIRTIO_CONSOLE_RESIZE:
		s += fmt.Sprintf(" %d %d", binary.LittleEndian.Uint16(p[8:]), binary.LittleEndian.Uint16(p[10:]))
	}
	return s
}

// expect waits for these control messages, in order.
func (d *driver) expect(want ...string) {
	d.t.Helper()
	for _, w := range want {
		if got := d.message(); got != w {
			d.t.Fatalf("control message %q, want %q", got, w)
		}
	}
}

// bringUp does what Linux does, and opens every port.
func (d *driver) bringUp(ports ...int) {
	d.t.Helper()
	for range 64 {
		d.post(2, 512)
	}
	d.control(0, console.VIRTIO_CONSOLE_DEVICE_READY, 1)
	for range ports {
		d.message() // add
	}
	for _, p := range ports {
		d.control(uint32(p), console.VIRTIO_CONSOLE_PORT_READY, 1)
		d.control(uint32(p), console.VIRTIO_CONSOLE_PORT_OPEN, 1)
	}
}
