// Package blktest has a disk in memory for tests of what uses a blk.Backend:
// it fails, waits and loses power on request.
package blktest

import (
	"bytes"
	"errors"
	"io"
	"sync"

	"github.com/peervisor/peervisor/virtio/blk"
)

// ErrInjected is the failure that FailAfter makes.
var ErrInjected = errors.New("injected failure")

// Disk is a blk.Backend in memory that knows what is in stable storage: what
// was written before the last successful Flush started.
type Disk struct {
	info blk.Info

	mu       sync.Mutex
	data     []byte
	stable   []byte
	failIn   int // operations until the failure; < 0: none
	failOnce bool
	badFrom  int64 // byte range that cannot be read or written
	badTo    int64
	noWait   error         // what NoWait returns; nil: done at once
	gate     chan struct{} // closed by Open; waiting operations wait for it
	ops      int
	flushes  int
	closed   bool
}

// New makes a disk of zeroes.
func New(info blk.Info) *Disk {
	return &Disk{info: info, data: make([]byte, info.SizeBytes), stable: make([]byte, info.SizeBytes), failIn: -1}
}

// FailAfter lets n operations pass and fails those after it: one, or all.
func (d *Disk) FailAfter(n int, once bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failIn, d.failOnce = n, once
}

// Bad makes the bytes [from, to) unreadable and unwritable.
func (d *Disk) Bad(from, to int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.badFrom, d.badTo = from, to
}

// SetNoWait sets what transfers with blk.NoWait return: nil, blk.ErrWouldBlock
// or blk.ErrUnsure.
func (d *Disk) SetNoWait(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.noWait = err
}

// Shut makes operations wait until the function it returns is called.
func (d *Disk) Shut() (open func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := make(chan struct{})
	d.gate = g
	return sync.OnceFunc(func() {
		d.mu.Lock()
		d.gate = nil
		d.mu.Unlock()
		close(g)
	})
}

// Ops counts operations, Flushes those of them that flush.
func (d *Disk) Ops() int { d.mu.Lock(); defer d.mu.Unlock(); return d.ops }

// Flushes counts calls of Flush that succeeded.
func (d *Disk) Flushes() int { d.mu.Lock(); defer d.mu.Unlock(); return d.flushes }

// Closed says that Close was called.
func (d *Disk) Closed() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.closed }

// Content returns a copy of what a read would see.
func (d *Disk) Content() []byte { d.mu.Lock(); defer d.mu.Unlock(); return bytes.Clone(d.data) }

// Stable returns a copy of what survives a power cut.
func (d *Disk) Stable() []byte { d.mu.Lock(); defer d.mu.Unlock(); return bytes.Clone(d.stable) }

// SetContent replaces the content, also the stable one.
func (d *Disk) SetContent(p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.data, p)
	copy(d.stable, p)
}

// enter waits at the gate, counts and injects; it returns with mu held.
func (d *Disk) enter() error {
	d.mu.Lock()
	for d.gate != nil {
		g := d.gate
		d.mu.Unlock()
		<-g
		d.mu.Lock()
	}
	d.ops++
	switch {
	case d.closed:
		return errors.New("disk is closed")
	case d.failIn == 0:
		if d.failOnce {
			d.failIn = -1
		}
		return ErrInjected
	case d.failIn > 0:
		d.failIn--
	}
	return nil
}

// Info implements blk.Backend.
func (d *Disk) Info() blk.Info { return d.info }

func (d *Disk) hint(mode blk.Mode) error {
	if mode != blk.NoWait {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.noWait
}

func (d *Disk) move(v *blk.Vec, off int64, mode blk.Mode, write bool) (int, error) {
	if err := d.hint(mode); err != nil {
		return 0, err
	}
	err := d.enter()
	defer d.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if write && d.info.ReadOnly {
		return 0, errors.New("disk is read-only")
	}
	if off < 0 || off > int64(len(d.data)) {
		return 0, io.ErrUnexpectedEOF
	}
	end := min(off+int64(v.Len()), int64(len(d.data)))
	bad := off < d.badTo && d.badFrom < end
	if bad {
		end = max(d.badFrom, off)
	}
	n := 0
	if write {
		n = v.CopyTo(d.data[off:end])
	} else {
		n = v.CopyFrom(d.data[off:end])
	}
	switch {
	case bad:
		return n, ErrInjected
	case v.Len() > 0:
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}

// ReadAt implements blk.Backend.
func (d *Disk) ReadAt(v *blk.Vec, off int64, mode blk.Mode) (int, error) {
	return d.move(v, off, mode, false)
}

// WriteAt implements blk.Backend.
func (d *Disk) WriteAt(v *blk.Vec, off int64, mode blk.Mode) (int, error) {
	return d.move(v, off, mode, true)
}

// Flush implements blk.Backend. What is written while it waits at the gate is
// not covered.
func (d *Disk) Flush() error {
	d.mu.Lock()
	before := bytes.Clone(d.data)
	d.mu.Unlock()
	err := d.enter()
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	d.flushes++
	copy(d.stable, before)
	return nil
}

// Discard implements blk.Discarder: it fills the range with 0xDD.
func (d *Disk) Discard(off, n int64) error { return d.fill(off, n, 0xDD) }

// WriteZeroes implements blk.Zeroer.
func (d *Disk) WriteZeroes(off, n int64, _ bool) error { return d.fill(off, n, 0) }

func (d *Disk) fill(off, n int64, b byte) error {
	err := d.enter()
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	if off < 0 || off+n > int64(len(d.data)) {
		return io.ErrUnexpectedEOF
	}
	for i := off; i < off+n; i++ {
		d.data[i] = b
	}
	return nil
}

// Close implements blk.Backend.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return nil
}
