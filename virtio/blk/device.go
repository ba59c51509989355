// Package blk is the device half of the virtio block device (virtio 1.2,
// section 5.2) and the storage behind it: raw images, block devices, throw-away
// overlays.
//
// It knows sectors, not guest addresses and not transports. Other image formats
// are refused at Open with the command that converts them.
//
// # Who works where
//
// Submit reads and writes inline as long as that does not wait: data in the
// host's page cache costs one system call and no switch of goroutine. What has to
// wait for storage goes to workers, of which there are as many as there is work, up
// to Config.Workers. Where the storage cannot tell beforehand (buffered writes on most
// file systems, tmpfs), Submit tries inline, and leaves it to the workers for a while
// after it took long. Requests of one Submit that lie one after the other on the disk
// are moved by one system call.
//
// # Stable storage
//
// A flush is acknowledged after a Flush of the backend that started after the
// flush had arrived; flushes that wait for one that runs are served together by
// the next. A driver that negotiated no flush, or chose writethrough, has its writes
// acknowledged the same way. After a failed Flush nobody knows what is on the
// storage: from then on the disk fails all writes and flushes until it is opened
// anew, also over Reset. Reads go on.
//
// # Replay
//
// All queues are ReplayReexecute (reads and writes at offsets) and fail with the
// status VIRTIO_BLK_S_IOERR.
//
// # Locks
//
// Device.mu guards the list of waiting work and is held for list operations
// only. Backends lock on their own, below it.
package blk

import (
	"bytes"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/peervisor/peervisor/virtio"
)

// ErrFailed is wrapped by Device.Err after a flush has failed.
var ErrFailed = errors.New("disk failed a flush and takes no more writes until it is opened anew")

// Stats counts since New.
type Stats struct {
	Reads, Writes, Flushes, Discards, Zeroes, GetIDs uint64 // requests
	ReadBytes, WrittenBytes                          uint64
	// Errors counts requests that ended with another status than OK.
	Errors uint64
	// Deferred counts transfers that had to wait for storage and went to a worker;
	// Merged requests that shared another one's system call; Syncs flushes of the
	// backend, each of which serves one or more requests.
	Deferred, Merged, Syncs uint64
}

type counters struct {
	reads, writes, flushes, discards, zeroes, getIDs atomic.Uint64
	readBytes, writtenBytes                          atomic.Uint64
	errors, deferred, merged, syncs                  atomic.Uint64
}

// Device is the device half. Its states are those of virtio.Device.
type Device struct {
	cfg   Config
	info  virtio.Info
	count counters

	// Fixed from Activate to Reset.
	limits  limits
	channel virtio.Channel
	queues  []queue

	// writeback is the cache mode: false means that a write is acknowledged after
	// a flush. It follows the driver's writes to the configuration space.
	writeback atomic.Bool
	// wce and flush: negotiated.
	wce, flush bool

	failure atomic.Pointer[error] // set once, by the first failed flush

	work

	now    func() time.Duration // monotonic
	closed bool
}

// queue is what one request queue keeps between requests. Only Submit uses it.
type queue struct {
	open *op               // the transfer under construction, or nil
	done []*virtio.Request // ended, not yet given to the channel
	size int               // bytes of data in done
}

// New makes an idle device half and takes over cfg.Backend, if it succeeds.
func New(cfg Config) (*Device, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	features := cfg.features()
	d := &Device{cfg: cfg, queues: make([]queue, cfg.Queues)}
	d.info = virtio.Info{
		ID:       virtio.VIRTIO_ID_BLOCK,
		Features: features,
		Config:   cfg.space(features),
	}
	for range cfg.Queues {
		d.info.Queues = append(d.info.Queues, virtio.QueueInfo{
			MaxSize: uint16(cfg.QueueSize),
			Replay:  virtio.ReplayReexecute,
			Failure: virtio.Failure{Form: virtio.FailStatus, Status: VIRTIO_BLK_S_IOERR},
		})
	}
	d.writeback.Store(true)
	start := time.Now()
	d.now = func() time.Duration { return time.Since(start) }
	d.work.init(d)
	return d, nil
}

// Info implements virtio.Device. Config reflects the cache mode that is chosen now.
func (d *Device) Info() virtio.Info {
	in := d.info
	in.Config = d.config()
	return in
}

func (d *Device) config() []byte {
	p := append([]byte(nil), d.info.Config...)
	if d.info.Features&(1<<VIRTIO_BLK_F_CONFIG_WCE) != 0 {
		p[offWriteback] = 0
		if d.writeback.Load() {
			p[offWriteback] = 1
		}
	}
	return p
}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	if d.closed {
		return errors.New("activate disk: it is closed")
	}
	if extra := a.Features &^ virtio.TransportFeatureMask &^ d.info.Features; extra != 0 {
		return fmt.Errorf("activate disk: features %#x were not offered", extra)
	}
	if len(a.QueueSizes) > len(d.queues) {
		return fmt.Errorf("activate disk: %d queues, expected at most %d", len(a.QueueSizes), len(d.queues))
	}
	in := d.cfg.Backend.Info()
	has := func(bit int) bool { return a.Features&(1<<bit) != 0 }
	d.limits = limits{
		sectors:  uint64(in.SizeBytes / SectorBytes),
		readOnly: in.ReadOnly,
		discard:  has(VIRTIO_BLK_F_DISCARD),
		zeroes:   has(VIRTIO_BLK_F_WRITE_ZEROES),
	}
	d.channel = a.Channel
	d.wce, d.flush = has(VIRTIO_BLK_F_CONFIG_WCE), has(VIRTIO_BLK_F_FLUSH)
	d.work.start()
	if d.wce && !d.flush && d.writeback.Swap(false) {
		// 5.2.5.2: without a way to flush, writeback starts as 0.
		d.channel.ConfigChanged(d.config())
	}
	return nil
}

// writethrough says that a write must be stable before it is acknowledged
// (5.2.6.2, "a write becomes stable").
func (d *Device) writethrough() bool {
	if d.wce {
		return !d.writeback.Load()
	}
	return !d.flush
}

// WriteConfig implements virtio.Device: writeback is the only field that a
// driver can write. Where the visible bytes become others than written, the
// transport half is told.
func (d *Device) WriteConfig(off int, p []byte) {
	if off < 0 || off+len(p) > configBytes {
		return // the transport half has checked
	}
	if d.info.Features&(1<<VIRTIO_BLK_F_CONFIG_WCE) != 0 && off <= offWriteback && offWriteback < off+len(p) {
		d.writeback.Store(p[offWriteback-off] != 0)
	}
	space := d.config()
	if ch := d.channel; ch != nil && !bytes.Equal(space[off:off+len(p)], p) {
		ch.ConfigChanged(space)
	}
}

// Quiesce implements virtio.Device. The disk keeps no request for later: what is
// under way ends by itself.
func (d *Device) Quiesce(int) {}

// Reset implements virtio.Device. It waits for transfers under way, as long as
// the storage takes; work that has not begun is dropped. The cache mode goes back to
// writeback, which 5.2.5 leaves to the device.
func (d *Device) Reset() {
	if d.channel == nil {
		return
	}
	d.work.stop()
	for i := range d.queues {
		d.queues[i] = queue{done: d.queues[i].done[:0]}
	}
	if !d.writeback.Swap(true) {
		d.channel.ConfigChanged(d.config())
	}
	d.channel = nil
}

// Close resets the half and closes its backend. A second Close does nothing.
func (d *Device) Close() error {
	if d.closed {
		return nil
	}
	d.Reset()
	d.closed = true
	return d.cfg.Backend.Close()
}

// Err is nil, or why the disk takes no more writes; it wraps ErrFailed.
func (d *Device) Err() error {
	if p := d.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// Stats returns the counters. They are read one by one.
func (d *Device) Stats() Stats {
	c := &d.count
	return Stats{
		Reads: c.reads.Load(), Writes: c.writes.Load(), Flushes: c.flushes.Load(),
		Discards: c.discards.Load(), Zeroes: c.zeroes.Load(), GetIDs: c.getIDs.Load(),
		ReadBytes: c.readBytes.Load(), WrittenBytes: c.writtenBytes.Load(),
		Errors: c.errors.Load(), Deferred: c.deferred.Load(), Merged: c.merged.Load(), Syncs: c.syncs.Load(),
	}
}

func (d *Device) report(err error) {
	if d.cfg.Report != nil {
		d.cfg.Report(err)
	}
}

// fail makes the disk refuse writes for good.
func (d *Device) fail(err error) {
	err = fmt.Errorf("%w: %w", ErrFailed, err)
	d.failure.CompareAndSwap(nil, &err)
	d.report(err)
}
