// Package rng is the device half of the virtio entropy device (virtio 1.2,
// section 5.4).
//
// Random bytes come from an io.Reader, by one goroutine that lives as long as
// requests wait. It reads into memory of its own and copies from there: a source
// that blocks holds up neither Quiesce nor Reset, and what it gives late is
// dropped. Nothing is saved: entropy has no state.
//
// The queue is ReplayReexecute (any random bytes are as good as others) and
// fails by DEVICE_NEEDS_RESET, because the specification demands at least one random
// byte for each request.
package rng

import (
	"errors"
	"fmt"
	"sync"

	"github.com/peervisor/peervisor/virtio"
)

// Stats counts since New.
type Stats struct {
	Requests, Bytes uint64
	// Throttled counts the waits for the rate limit.
	Throttled uint64
}

// Device is the device half. Its states are those of virtio.Device.
type Device struct {
	cfg  Config
	info virtio.Info

	mu      sync.Mutex
	cond    sync.Cond // busy became false
	channel virtio.Channel
	pending []*virtio.Request // oldest first; at most the queue's size
	// round changes when the requests are taken away from the worker.
	round   uint64
	wake    chan struct{} // closed when round changes
	running bool          // the worker lives
	busy    bool          // the worker fills a request, or completes it
	failed  bool          // Source failed since Activate
	closed  bool
	stats   Stats
	wg      sync.WaitGroup

	// The worker's own.
	buf    []byte
	one    [1]*virtio.Request
	bucket bucket
}

// New makes an idle device half.
func New(cfg Config) (*Device, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	d := &Device{cfg: cfg, wake: make(chan struct{})}
	d.cond.L = &d.mu
	d.bucket = bucket{perSecond: cfg.BytesPerSecond, burst: cfg.BurstBytes}
	d.info = virtio.Info{
		ID:     virtio.VIRTIO_ID_RNG,
		Queues: []virtio.QueueInfo{{MaxSize: uint16(cfg.QueueSize), Replay: virtio.ReplayReexecute}},
	}
	return d, nil
}

// Info implements virtio.Device.
func (d *Device) Info() virtio.Info { return d.info }

// Activate implements virtio.Device. A source that failed is tried again.
func (d *Device) Activate(a virtio.Activation) error {
	if extra := a.Features &^ virtio.TransportFeatureMask; extra != 0 {
		return fmt.Errorf("activate rng: features %#x were not offered", extra)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errors.New("activate rng: it is closed")
	}
	d.channel, d.failed = a.Channel, false
	return nil
}

// WriteConfig implements virtio.Device: there is no configuration space.
func (d *Device) WriteConfig(int, []byte) {}

// Submit implements virtio.Device.
func (d *Device) Submit(_ int, reqs []*virtio.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending = append(d.pending, reqs...)
	if !d.running && !d.failed && len(d.pending) > 0 {
		d.running = true
		d.wg.Add(1)
		go d.work()
	}
}

// interruptLocked takes all requests away from the worker.
func (d *Device) interruptLocked() []*virtio.Request {
	p := d.pending
	d.pending = nil
	d.round++
	close(d.wake)
	d.wake = make(chan struct{})
	return p
}

// Quiesce implements virtio.Device.
func (d *Device) Quiesce(int) {
	d.mu.Lock()
	p, ch := d.interruptLocked(), d.channel
	d.mu.Unlock()
	if len(p) > 0 {
		ch.Return(p)
	}
}

// Reset implements virtio.Device. It does not wait for the source.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.interruptLocked()
	for d.busy {
		d.cond.Wait()
	}
	d.channel = nil
}

// Close resets the half and waits for its goroutine, which may be in Read of
// the source: where that can block for good, the owner ends it first. A second
// Close does nothing.
func (d *Device) Close() error {
	d.Reset()
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.wg.Wait()
	return nil
}

// Stats returns the counters.
func (d *Device) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}
