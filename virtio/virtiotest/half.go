package virtiotest

import (
	"errors"
	"fmt"
	"sync"

	"github.com/peervisor/peervisor/virtio"
)

// Device is a device half for tests. By default it echoes: the device-readable
// bytes come back as the device-writable ones. It checks that its caller keeps the contract
// of virtio.Device; Violations lists what it saw.
type Device struct {
	// DeviceInfo is what Info returns.
	DeviceInfo virtio.Info
	// Serve replaces the echo. It is called for each request, from Submit.
	Serve func(d *Device, r *virtio.Request)
	// FailActivate is returned by Activate.
	FailActivate error
	// OnReset is called in Reset, before it takes its requests back.
	OnReset func()

	mu         sync.Mutex
	active     bool
	exclusive  bool          // in Activate or Reset
	busy       map[int]int   // calls of a queue under way
	next       map[int]int64 // lowest sequence number that may come anew
	held       map[int][]*virtio.Request
	quiescing  map[int]bool
	Activated  []virtio.Activation
	Resets     int
	Quiesced   []int
	Writes     []ConfigWrite
	violations []error
}

// ConfigWrite is a call of WriteConfig.
type ConfigWrite struct {
	Off  int
	Data []byte
}

// NewDevice is an echo device of n queues of up to size descriptors.
func NewDevice(n int, size uint16) *Device {
	d := &Device{DeviceInfo: virtio.Info{ID: 42, Features: 0b11, Config: []byte{1, 2, 3, 4, 5, 6, 7, 8}}}
	for range n {
		d.DeviceInfo.Queues = append(d.DeviceInfo.Queues, virtio.QueueInfo{MaxSize: size})
	}
	return d
}

// Info implements virtio.Device.
func (d *Device) Info() virtio.Info { return d.DeviceInfo }

func (d *Device) violate(format string, args ...any) {
	d.violations = append(d.violations, fmt.Errorf(format, args...))
}

// Violations is what the caller did against the contract.
func (d *Device) Violations() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(d.violations...)
}

// enter begins a call; alone: concurrent with nothing.
func (d *Device) enter(what string, queue int, alone bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.busy == nil {
		d.busy = map[int]int{}
	}
	if d.exclusive || (alone && len(d.busy) > 0) || d.busy[queue] > 0 {
		d.violate("%s of queue %d is concurrent with another call", what, queue)
	}
	d.exclusive = d.exclusive || alone
	d.busy[queue]++
}

func (d *Device) exit(queue int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.exclusive = false
	if d.busy[queue]--; d.busy[queue] == 0 {
		delete(d.busy, queue)
	}
}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	d.enter("Activate", -1, true)
	defer d.exit(-1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.active {
		d.violate("Activate of an active half")
	}
	d.Activated = append(d.Activated, a)
	if d.FailActivate == nil {
		d.active = true
	}
	d.next, d.held, d.quiescing = map[int]int64{}, map[int][]*virtio.Request{}, map[int]bool{}
	return d.FailActivate
}

// WriteConfig implements virtio.Device.
func (d *Device) WriteConfig(off int, p []byte) {
	d.enter("WriteConfig", -2, false)
	defer d.exit(-2)
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < 0 || off+len(p) > len(d.DeviceInfo.Config) {
		d.violate("WriteConfig of %d bytes at %d", len(p), off)
	}
	d.Writes = append(d.Writes, ConfigWrite{off, append([]byte(nil), p...)})
}

// Submit implements virtio.Device.
func (d *Device) Submit(queue int, reqs []*virtio.Request) {
	d.enter("Submit", queue, false)
	defer d.exit(queue)
	d.mu.Lock()
	serve := d.Serve
	if !d.active {
		d.violate("Submit to an idle half")
	}
	d.quiescing[queue] = false
	for i, r := range reqs {
		if r.Queue != queue || r.Data != nil {
			d.violate("queue %d got request of queue %d with data %v", queue, r.Queue, r.Data)
		}
		if i > 0 && reqs[i-1].Seq >= r.Seq {
			d.violate("queue %d got sequence %d after %d", queue, r.Seq, reqs[i-1].Seq)
		}
		if s := int64(r.Seq); s > d.next[queue] {
			d.violate("queue %d got sequence %d, %d was next", queue, s, d.next[queue])
		} else if s == d.next[queue] {
			d.next[queue]++
		}
	}
	d.mu.Unlock()
	if serve == nil {
		serve = Echo
	}
	for _, r := range reqs {
		serve(d, r)
	}
}

// Echo completes r with its own device-readable bytes.
func Echo(_ *Device, r *virtio.Request) {
	var few [512]byte
	n := 0
	for n < min(r.ReadableLen(), r.WritableLen()) {
		k := r.ReadAt(few[:min(len(few), r.WritableLen()-n)], n)
		n += r.WriteAt(few[:k], n)
	}
	r.Complete(n)
}

// Hold keeps r for Held.
func Hold(d *Device, r *virtio.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held[r.Queue] = append(d.held[r.Queue], r)
}

// Held takes the requests that Hold kept.
func (d *Device) Held(queue int) []*virtio.Request {
	d.mu.Lock()
	defer d.mu.Unlock()
	rs := d.held[queue]
	delete(d.held, queue)
	return rs
}

// HeldCount is how many there are.
func (d *Device) HeldCount(queue int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.held[queue])
}

// Quiesce implements virtio.Device: what Hold kept is returned, newest first to
// make it hard.
func (d *Device) Quiesce(queue int) {
	d.enter("Quiesce", queue, false)
	defer d.exit(queue)
	rs := d.Held(queue)
	d.mu.Lock()
	d.Quiesced = append(d.Quiesced, queue)
	d.mu.Unlock()
	for i := len(rs) - 1; i >= 0; i-- {
		rs[i].Return()
	}
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	d.enter("Reset", -1, true)
	defer d.exit(-1)
	if d.OnReset != nil {
		d.OnReset()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active = false
	d.held = map[int][]*virtio.Request{}
	d.Resets++
}

// Channel is the way back of the current activation.
func (d *Device) Channel() virtio.Channel {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.Activated[len(d.Activated)-1].Channel
}

// Count reads counters of the half consistently.
func (d *Device) Count() (activations, resets, writes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.Activated), d.Resets, len(d.Writes)
}

// QuiesceCount is how often Quiesce was called.
func (d *Device) QuiesceCount() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.Quiesced)
}
