package chipset

import (
	"sort"
	"sync"
	"testing"
	"time"
)

// fakeClock moves only when told to. Timers fire inside advance.
type fakeClock struct {
	mu     sync.Mutex
	now    time.Time
	timers []*fakeTimer
}

type fakeTimer struct {
	clock *fakeClock
	at    time.Time
	f     func()
	done  bool
}

func newFakeClock(now string) *fakeClock {
	t, err := time.Parse(time.RFC3339Nano, now)
	if err != nil {
		panic(err)
	}
	return &fakeClock{now: t}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) AfterFunc(d time.Duration, f func()) Timer {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &fakeTimer{clock: c, at: c.now.Add(max(d, 0)), f: f}
	c.timers = append(c.timers, t)
	return t
}

func (t *fakeTimer) Stop() bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	was := !t.done
	t.done = true
	return was
}

// advance moves the clock by d and calls what becomes due, in order.
func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	end := c.now.Add(d)
	for {
		sort.SliceStable(c.timers, func(i, j int) bool { return c.timers[i].at.Before(c.timers[j].at) })
		var next *fakeTimer
		for len(c.timers) > 0 && next == nil {
			if t := c.timers[0]; t.done {
				c.timers = c.timers[1:]
			} else if t.at.After(end) {
				break
			} else {
				next, c.timers, t.done = t, c.timers[1:], true
			}
		}
		if next == nil {
			break
		}
		if next.at.After(c.now) {
			c.now = next.at
		}
		c.mu.Unlock()
		next.f()
		c.mu.Lock()
	}
	c.now = end
	c.mu.Unlock()
}

// planned counts the timers that wait.
func (c *fakeClock) planned() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, t := range c.timers {
		if !t.done {
			n++
		}
	}
	return n
}

// fakeLine records an interrupt pin.
type fakeLine struct {
	mu    sync.Mutex
	high  bool
	edges int // rising
	err   error
	moved chan struct{} // capacity 1: told of each change
}

func newFakeLine() *fakeLine { return &fakeLine{moved: make(chan struct{}, 1)} }

func (l *fakeLine) Set(high bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if high && !l.high {
		l.edges++
	}
	l.high = high
	select {
	case l.moved <- struct{}{}:
	default:
	}
	return l.err
}

func (l *fakeLine) state() (high bool, edges int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.high, l.edges
}

func (l *fakeLine) want(t *testing.T, high bool) {
	t.Helper()
	if got, _ := l.state(); got != high {
		t.Errorf("the interrupt pin is high: %v, want %v", got, high)
	}
}

// events collects what devices report.
type events []PowerEvent

func (e *events) take(p PowerEvent) { *e = append(*e, p) }

func (e *events) want(t *testing.T, want ...PowerEvent) {
	t.Helper()
	if len(*e) != len(want) {
		t.Fatalf("power events %v, want %v", *e, want)
	}
	for i := range want {
		if (*e)[i] != want[i] {
			t.Fatalf("power events %v, want %v", *e, want)
		}
	}
	*e = nil
}

func in8(h Handler, off uint64) byte {
	var p [1]byte
	h.Read(off, p[:])
	return p[0]
}

func out8(h Handler, off uint64, v byte) { h.Write(off, []byte{v}) }
