package virtio

import (
	"context"
	"fmt"
	"sync"
)

// activation is one life of the device, from DRIVER_OK to the end of the reset. It is
// the Channel of the device half for that time: completions that come later
// hit a fenced activation and do nothing.
type activation struct {
	core    *Core
	dev     Device
	queues  []*queue  // by index; nil: the driver did not enable it
	workers []*worker // by index, likewise
	gate    gate

	// half orders Quiesce by a pause before or after Reset: the half sees no two at
	// once. It is held for calls that do not wait.
	half  sync.Mutex
	alive bool // Activate succeeded and Reset has not begun
}

func newActivation(c *Core, queues []*queue) *activation {
	return &activation{
		core: c, dev: c.dev, queues: queues, workers: make([]*worker, len(queues)),
		gate: gate{changed: make(chan struct{})},
	}
}

// Complete implements Channel.
func (a *activation) Complete(reqs []*Request) {
	q := a.queueOf(reqs)
	if q == nil {
		return
	}
	notify, wake, err := q.publish(reqs)
	if err != nil {
		a.fail(q.index, err)
		return
	}
	if wake {
		a.workers[q.index].bell.ring()
	}
	if notify {
		q.count.interrupts.Add(1)
		if err := a.core.notifier.QueueInterrupt(q.index); err != nil {
			a.fail(q.index, fmt.Errorf("interrupt: %w", err))
		}
	}
}

// Return implements Channel.
func (a *activation) Return(reqs []*Request) {
	q := a.queueOf(reqs)
	if q == nil {
		return
	}
	if err := q.giveBack(reqs); err != nil {
		a.fail(q.index, err)
	}
}

// queueOf is the queue that the requests name. The half cannot name another:
// each request is looked up in it.
func (a *activation) queueOf(reqs []*Request) *queue {
	if len(reqs) == 0 || reqs[0].Queue < 0 || reqs[0].Queue >= len(a.queues) {
		return nil
	}
	return a.queues[reqs[0].Queue]
}

// ConfigChanged implements Channel.
func (a *activation) ConfigChanged(config []byte) {
	if notify, err := a.core.pushConfig(a, config); err != nil {
		a.NeedsReset(err)
	} else if notify {
		a.core.configInterrupt()
	}
}

// NeedsReset implements Channel.
func (a *activation) NeedsReset(reason error) { a.core.breakDevice(a, reason) }

func (a *activation) fail(queue int, err error) {
	a.core.breakDevice(a, fmt.Errorf("queue %d: %w", queue, err))
}

// start lets the workers run; with paused, as far as the gate.
func (a *activation) start(paused bool) {
	a.alive = true
	a.gate.set(func(g *gate) { g.paused = paused })
	for i, q := range a.queues {
		if q == nil {
			continue
		}
		a.workers[i] = newWorker(a, q, a.core.bells[i])
	}
	for _, w := range a.workers {
		if w != nil {
			a.gate.set(func(g *gate) { g.running++ })
			go w.run()
		}
	}
}

// ring wakes all workers, so that they look at the gate.
func (a *activation) ring() {
	for _, w := range a.workers {
		if w != nil {
			w.bell.ring()
		}
	}
}

// pause parks the workers, quiesces every queue and waits until nothing is
// outstanding. When ctx ends first, everything goes on as before.
func (a *activation) pause(ctx context.Context) error {
	a.gate.set(func(g *gate) { g.paused = true })
	a.ring()
	if err := a.awaitParked(ctx); err != nil {
		a.resume()
		return err
	}
	a.quiesce()
	for i, q := range a.queues {
		if q == nil {
			continue
		}
		drained, out := q.drain()
		select {
		case <-drained:
		case <-ctx.Done():
			a.resume()
			return fmt.Errorf("drain queue %d of %d requests: %w", i, out, context.Cause(ctx))
		}
	}
	return nil
}

func (a *activation) quiesce() {
	a.half.Lock()
	defer a.half.Unlock()
	for i, q := range a.queues {
		if q != nil && a.alive {
			a.dev.Quiesce(i)
		}
	}
}

func (a *activation) awaitParked(ctx context.Context) error {
	for {
		ok, changed := a.gate.parked()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("stop taking requests: %w", context.Cause(ctx))
		}
	}
}

func (a *activation) resume() { a.gate.set(func(g *gate) { g.paused = false }) }

// end takes everything back: the workers are joined, the rings fenced, the half
// reset. It waits for the half.
func (a *activation) end() {
	a.gate.set(func(g *gate) { g.stopped = true })
	a.ring()
	for _, q := range a.queues {
		if q != nil {
			q.fence()
		}
	}
	for _, w := range a.workers {
		if w != nil {
			<-w.done
		}
	}
	a.half.Lock()
	a.alive = false
	a.half.Unlock()
	a.dev.Reset()
}

// stopQueue ends one queue: the driver takes it back. Drained says when.
func (a *activation) stopQueue(i int) {
	if w := a.workers[i]; w != nil && w.stopping.CompareAndSwap(false, true) {
		w.bell.ring()
	}
}

// stopped reports whether a queue that stopQueue was called for is the driver's.
func (a *activation) stopped(i int) bool {
	w := a.workers[i]
	if w == nil || !w.stopping.Load() {
		return false
	}
	select {
	case <-w.done:
		if out, _ := w.q.load(); out > 0 {
			return false
		}
		w.q.fence()
		return true
	default:
		return false
	}
}
