package chipset

import (
	"sync"
	"sync/atomic"
)

// Line is an interrupt pin.
type Line interface {
	// Set drives the pin. It is called on vCPU threads and from timers, only when
	// the level changes, never twice at once for one device. It must not block and
	// must not call back into the device. A device keeps the first error and tells
	// it by its Err method.
	Set(high bool) error
}

// pin moves a Line to the level that its device wants. A device calls want with
// its own lock held and sync after it let go, so that Line.Set never runs under
// a device's lock; sync looks at the newest wish, so that the last level set is
// always the last one wanted.
type pin struct {
	line   Line // nil: not connected
	wanted atomic.Bool
	edge   atomic.Bool // let the pin go low once before the next level

	mu    sync.Mutex
	level bool
	err   error // the first
}

func (p *pin) want(high bool) { p.wanted.Store(high) }

// pulse asks for a falling edge at the next sync, also if the level wanted stays
// high: one cause was served and another has followed. An edge-triggered
// controller would miss it.
func (p *pin) pulse() { p.edge.Store(true) }

func (p *pin) sync() {
	if p.line == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.edge.Swap(false) && p.level {
		p.setLocked(false)
	}
	if high := p.wanted.Load(); high != p.level {
		p.setLocked(high)
	}
}

func (p *pin) setLocked(high bool) {
	p.level = high
	if err := p.line.Set(high); err != nil && p.err == nil {
		p.err = err
	}
}

func (p *pin) firstErr() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}
