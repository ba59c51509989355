package rng

import (
	"fmt"
	"io"

	"github.com/peervisor/peervisor/virtio"
)

// maxEmptyReads bounds reads of the source that give neither bytes nor an error.
const maxEmptyReads = 100

// work serves requests, oldest first, until none is left.
func (d *Device) work() {
	defer d.wg.Done()
	for {
		d.mu.Lock()
		if len(d.pending) == 0 || d.failed {
			d.running = false
			d.mu.Unlock()
			return
		}
		round, wake := d.round, d.wake
		want := min(d.pending[0].WritableLen(), d.cfg.MaxBytes)
		d.mu.Unlock()

		var p []byte
		if want > 0 {
			n, wait := d.bucket.take(d.cfg.Clock.Now(), int64(want))
			if wait > 0 {
				d.mu.Lock()
				d.stats.Throttled++
				d.mu.Unlock()
				select {
				case <-d.cfg.Clock.After(wait):
				case <-wake:
				}
				continue
			}
			var err error
			if p, err = d.read(int(n)); err != nil {
				d.fail(err)
				continue
			}
		}
		if r, ch := d.next(round); r != nil {
			d.finish(r, ch, p)
		}
	}
}

// read gets 1..n bytes from the source.
func (d *Device) read(n int) ([]byte, error) {
	if d.buf == nil {
		d.buf = make([]byte, d.cfg.MaxBytes)
	}
	for range maxEmptyReads {
		k, err := d.cfg.Source.Read(d.buf[:n])
		if k > 0 {
			return d.buf[:k], nil // an error comes again with the next read
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, io.ErrNoProgress
}

// next takes the oldest request, unless the requests were taken away since round.
func (d *Device) next(round uint64) (*virtio.Request, virtio.Channel) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.round != round {
		return nil, nil
	}
	r := d.pending[0]
	n := copy(d.pending, d.pending[1:])
	d.pending[n] = nil
	d.pending = d.pending[:n]
	d.busy = true
	return r, d.channel
}

// finish fills r with p and clears p: random bytes are given out once. A request
// without room (the driver must not make one) gets nothing.
func (d *Device) finish(r *virtio.Request, ch virtio.Channel, p []byte) {
	n := r.WriteAt(p, 0)
	clear(p)
	r.SetUsed(n)
	d.mu.Lock()
	d.stats.Requests++
	d.stats.Bytes += uint64(n)
	d.mu.Unlock()
	d.one[0] = r
	ch.Complete(d.one[:])
	d.one[0] = nil
	d.mu.Lock()
	d.busy = false
	d.cond.Broadcast()
	d.mu.Unlock()
}

// fail gives up the source until the next Activate. Requests are kept, to be
// returned by Quiesce or taken back by Reset.
func (d *Device) fail(err error) {
	err = fmt.Errorf("read entropy: %w", err)
	d.mu.Lock()
	d.failed = true
	ch := d.channel
	d.busy = ch != nil
	d.mu.Unlock()
	if d.cfg.Report != nil {
		d.cfg.Report(err)
	}
	if ch == nil {
		return
	}
	ch.NeedsReset(err)
	d.mu.Lock()
	d.busy = false
	d.cond.Broadcast()
	d.mu.Unlock()
}
