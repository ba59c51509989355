package virtio

import (
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of the busy polling between two sleeps.
const (
	// pollFor is the longest that a worker watches the available index before it
	// sleeps, as long as QEMU's iothread does. A wake-up costs 7 us on an idle host and
	// several times that on a busy one, and the driver's notification an exit.
	pollFor = 32 * time.Microsecond
	// pollNear is how soon after going to sleep a request must come for polling to
	// be tried. It includes a slow wake-up: what the request took to come is less.
	pollNear = 200 * time.Microsecond
	// pollMisses polls in vain in a row turn polling off, for pollSkipMin sleeps, and
	// twice as many each time after, up to pollSkipMax.
	pollMisses  = 4
	pollSkipMin = 16
	pollSkipMax = 32
	// pollLooks is how often it looks between two looks at the clock.
	pollLooks = 16
	// pollBatch is the largest batch after which polling is tried. After a larger one a
	// wake-up costs little a request, and polling would take the next batch apart:
	// drivers make requests available one by one and notify of all of them.
	pollBatch = 4
)

// poller decides whether polling is worth while. It is judged by its success and
// not by how long the sleeps were: how long a wake-up takes says nothing about how
// soon the request came.
//
//	         slept short, skip is 0
//	off ───────────────────────────────► on ──┐ hit
//	 ▲                                   │ ◄──┘
//	 ├────── slept long ─────────────────┤
//	 └────── pollMisses misses: skip ────┘
type poller struct {
	on           bool
	misses       int // in a row, 0..pollMisses-1
	skip, growth int // sleeps to go before the next trial, and how many next time
}

// hit says that a poll has found a request.
func (p *poller) hit() { p.misses, p.growth = 0, 0 }

// slept says that a request ended a sleep, d after the last one was done. With
// polling on, a poll had been in vain.
func (p *poller) slept(d time.Duration) {
	switch {
	case d > pollNear:
		p.on, p.misses = false, 0
	case !p.on && p.skip > 0:
		p.skip--
	case !p.on:
		p.on = true
	default:
		if p.misses++; p.misses == pollMisses {
			p.on, p.misses = false, 0
			p.growth = min(max(2*p.growth, pollSkipMin), pollSkipMax)
			p.skip = p.growth
		}
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
	poller poller
	idle   time.Duration // on that clock: when the last batch was done
	taken  int           // requests of the last batch
	armed  bool          // this sleep has asked for a notification
	woken  bool          // and a ring has ended it
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
	w.taken = len(reqs)
	w.act.dev.Submit(w.q.index, reqs)
	return true
}

// resubmit hands returned requests in again, before newer ones.
func (w *worker) resubmit() {
	for reqs := w.q.takeBack(w.act); len(reqs) > 0; reqs = w.q.takeBack(w.act) {
		w.act.dev.Submit(w.q.index, reqs)
	}
}

// poll watches the queue for a short time, while the driver does not notify.
// True: there is something to do.
func (w *worker) poll() bool {
	w.idle = time.Since(w.epoch)
	if !w.poller.on || w.taken > pollBatch {
		return false
	}
	for {
		for range pollLooks {
			if w.q.waiting() {
				w.poller.hit()
				w.q.count.pollHits.Add(1)
				return true
			}
			spin()
		}
		if time.Since(w.epoch) >= w.idle+pollFor || w.interrupted() {
			return false
		}
	}
}

// sleep waits for the next notification. False: the bell is closed.
func (w *worker) sleep() bool {
	w.armed, w.woken = false, false
	if !w.bell.wait(w.ready) {
		return false
	}
	w.q.suppress()
	if w.woken {
		w.q.count.wakes.Add(1)
	}
	if w.taken <= pollBatch && w.q.waiting() {
		w.poller.slept(time.Since(w.epoch) - w.idle)
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
