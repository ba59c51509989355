package virtio

import (
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of the busy polling between two sleeps, as QEMU's iothread has them.
const (
	// pollMax is the longest that a worker watches the available index before it
	// sleeps. A wake-up costs about 7 us here, and the driver's exit more.
	pollMax = 32 * time.Microsecond
	// pollMin is the first step up from not polling.
	pollMin = 4 * time.Microsecond
	// pollLooks is how often it looks between two looks at the clock.
	pollLooks = 16
)

// pollWindow adapts how long a worker polls: it grows while requests come soon
// after the worker went to sleep, and falls to nothing when they do not.
type pollWindow time.Duration

// slept learns from a request that came d after the last one was done.
func (w *pollWindow) slept(d time.Duration) {
	switch {
	case d <= time.Duration(*w):
	case d > pollMax:
		*w = 0
	default:
		*w = min(max(2**w, pollWindow(pollMin)), pollWindow(pollMax))
	}
}

// gate stops and starts all workers of one activation.
//
//	running ──pause──► pausing ──all parked──► paused ──resume──► running
//	   │                  │                      │
//	   └─────────────────stop────────────────────┴──► stopped (they return)
//
// A broken device's workers park too, until stop.
type gate struct {
	closed atomic.Bool // the workers look at it between two batches

	mu                      sync.Mutex
	paused, stopped, broken bool
	running                 int           // workers not parked and not returned
	changed                 chan struct{} // closed and replaced at each change
}

func (g *gate) updateLocked() {
	g.closed.Store(g.paused || g.stopped || g.broken)
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *gate) set(f func(g *gate)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f(g)
	g.updateLocked()
}

// park is called by a worker that found the gate closed. It returns when the gate
// is open; false: the worker must return.
func (g *gate) park() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	g.updateLocked()
	for (g.paused || g.broken) && !g.stopped {
		ch := g.changed
		g.mu.Unlock()
		<-ch
		g.mu.Lock()
	}
	if g.stopped {
		return false
	}
	g.running++
	return true
}

// leave is called by a worker that returns on its own.
func (g *gate) leave() { g.set(func(g *gate) { g.running-- }) }

// parked returns whether all workers are parked, and what to wait for if not.
func (g *gate) parked() (bool, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.running == 0, g.changed
}

// worker takes requests off one queue and hands them to the device half. It is
// the only one to call Submit and Quiesce of its queue while the gate is open.
type worker struct {
	q    *queue
	act  *activation
	bell *bell
	done chan struct{} // closed when run returned
	// stopping ends this worker alone: the driver takes its queue back.
	stopping atomic.Bool

	epoch  time.Time // of the clock that polling looks at
	window pollWindow
	armed  bool // this sleep has asked for a notification
	woken  bool // and a ring has ended it
	ready  func(fd uintptr) bool
}

func newWorker(a *activation, q *queue, b *bell) *worker {
	w := &worker{q: q, act: a, bell: b, done: make(chan struct{}), epoch: time.Now()}
	w.ready = w.lookBeforeSleep // once: a method value in the loop would allocate
	return w
}

func (w *worker) run() {
	defer close(w.done)
	w.q.suppress()
	for {
		switch {
		case w.stopping.Load():
			w.act.dev.Quiesce(w.q.index)
			w.act.gate.leave()
			return
		case w.act.gate.closed.Load():
			if !w.act.gate.park() {
				return
			}
			w.resubmit()
		case w.turn() || w.poll():
		case !w.sleep():
			w.act.gate.leave()
			return
		}
	}
}

// interrupted reports whether something besides requests wants the worker.
func (w *worker) interrupted() bool { return w.act.gate.closed.Load() || w.stopping.Load() }

// turn hands one batch to the half. False: there was none.
func (w *worker) turn() bool {
	if w.q.returned.Load() && w.q.waiting() {
		w.resubmit()
	}
	reqs, err := w.q.pop(w.act)
	if err != nil {
		w.act.fail(w.q.index, err)
		return true
	}
	if len(reqs) == 0 {
		return false
	}
	w.act.dev.Submit(w.q.index, reqs)
	return true
}

// resubmit hands returned requests in again, before newer ones.
func (w *worker) resubmit() {
	for reqs := w.q.takeBack(w.act); len(reqs) > 0; reqs = w.q.takeBack(w.act) {
		w.act.dev.Submit(w.q.index, reqs)
	}
}

// poll watches the queue for the window's time, while the driver does not
// notify. True: there is something to do.
func (w *worker) poll() bool {
	if w.window == 0 {
		return false
	}
	end := time.Duration(0)
	for {
		for range pollLooks {
			if w.q.waiting() {
				w.q.count.pollHits.Add(1)
				return true
			}
			spin()
		}
		now := time.Since(w.epoch)
		if end == 0 {
			end = now + time.Duration(w.window)
		}
		if now >= end || w.interrupted() {
			return false
		}
	}
}

// sleep waits for the next notification. False: the bell is closed.
func (w *worker) sleep() bool {
	start := time.Since(w.epoch)
	w.armed, w.woken = false, false
	if !w.bell.wait(w.ready) {
		return false
	}
	w.q.suppress()
	if w.woken {
		w.q.count.wakes.Add(1)
	}
	if w.q.waiting() {
		w.window.slept(time.Since(w.epoch) - start + time.Duration(w.window))
	}
	return true
}

// lookBeforeSleep is the bell's ready function. The first call comes after the
// bell is set to catch the next ring: it asks for a notification and looks once
// more, so that a request of this moment is either seen or rings. The second
// call comes after a ring.
func (w *worker) lookBeforeSleep(uintptr) bool {
	if w.armed {
		w.woken = true
		return true
	}
	w.armed = true
	w.q.arm()
	return w.q.waiting() || w.interrupted()
}
