package vmm

import (
	"context"
	"sync"
	"sync/atomic"
)

// phase is what all vCPUs shall do.
type phase int32

const (
	phaseHold phase = iota // wait at the gate; the zero value
	phaseRun               // be in the guest
	phaseQuit              // leave for good
)

// gate is where vCPU threads meet when they are not in the guest.
//
//	     release           quit
//	hold ───────► run ───────────► quit
//	  ▲            │                ▲
//	  └─── hold ───┘                │
//	  └───────────── quit ──────────┘
//
// The phase is set first, then vCPUs are kicked, by the caller: a vCPU that
// comes out of KVM_RUN looks at the phase.
type gate struct {
	want atomic.Int32 // a phase; written with mu held

	mu      sync.Mutex
	members int
	held    int           // since the phase became hold; ≤ members
	opened  chan struct{} // closed when the phase leaves hold
	full    chan struct{} // closed when all members are held
}

func newGate(members int) *gate {
	return &gate{members: members, opened: make(chan struct{}), full: make(chan struct{})}
}

func (g *gate) phase() phase { return phase(g.want.Load()) }

// set changes the phase and reports whether it did: nothing follows quit.
func (g *gate) set(p phase) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.phase()
	if old == p || old == phaseQuit {
		return false
	}
	g.want.Store(int32(p))
	switch {
	case p == phaseHold:
		g.held, g.opened, g.full = 0, make(chan struct{}), make(chan struct{})
	case old == phaseHold:
		close(g.opened)
	}
	return true
}

// allHeld waits until every vCPU is at the gate.
func (g *gate) allHeld(ctx context.Context) error {
	g.mu.Lock()
	full := g.full
	g.mu.Unlock()
	select {
	case <-full:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// passOnThread lets a vCPU through when the phase is run, and returns false when
// it is quit. Meanwhile the vCPU's thread does the calls that come in.
func (g *gate) passOnThread(calls <-chan func()) bool {
	for {
		g.mu.Lock()
		if p := g.phase(); p != phaseHold {
			g.mu.Unlock()
			return p == phaseRun
		}
		opened := g.opened
		if g.held++; g.held == g.members {
			close(g.full)
		}
		g.mu.Unlock()
		for waiting := true; waiting; {
			select {
			case f := <-calls:
				f()
			case <-opened:
				waiting = false
			}
		}
		// When the phase is hold again by now, this vCPU counts anew.
	}
}
