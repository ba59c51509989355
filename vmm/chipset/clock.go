package chipset

import (
	"sync"
	"time"
)

// Clock is where devices take time from.
type Clock interface {
	// Now is the wall time, with a monotonic reading where there is one.
	Now() time.Time
	// AfterFunc calls f once after d, on a goroutine that is not the caller's.
	AfterFunc(d time.Duration, f func()) Timer
}

// Timer is a call that AfterFunc has planned.
type Timer interface {
	// Stop prevents the call and returns true, or returns false: it has begun,
	// or was stopped before.
	Stop() bool
}

// SystemClock is the host's clock.
func SystemClock() Clock { return systemClock{} }

type systemClock struct{}

func (systemClock) Now() time.Time                            { return time.Now() }
func (systemClock) AfterFunc(d time.Duration, f func()) Timer { return time.AfterFunc(d, f) }

// oneShot is a timer of a device: at most one call is planned, and close waits
// for one that has begun. f may be called late, after another arm: it looks at
// the clock for what is due. arm and disarm may be called with the device's
// lock held, close may not.
type oneShot struct {
	clock Clock
	f     func()

	mu      sync.Mutex
	timer   Timer
	closed  bool
	running sync.WaitGroup // calls planned or begun; grows only while !closed
}

func (o *oneShot) arm(d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stopLocked()
	if o.closed {
		return
	}
	o.running.Add(1)
	o.timer = o.clock.AfterFunc(d, func() {
		defer o.running.Done()
		o.f()
	})
}

func (o *oneShot) disarm() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stopLocked()
}

func (o *oneShot) stopLocked() {
	if o.timer != nil && o.timer.Stop() {
		o.running.Done()
	}
	o.timer = nil
}

func (o *oneShot) close() {
	o.mu.Lock()
	o.closed = true
	o.stopLocked()
	o.mu.Unlock()
	o.running.Wait()
}
