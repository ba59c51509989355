package vmm

import (
	"context"
	"errors"
	"testing"
	"time"
)

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Two members go through many rounds of hold and run; allHeld is true only when
// both are there.
func TestGateRounds(t *testing.T) {
	g := newGate(2)
	in := make(chan int)  // a member is through the gate
	out := make(chan int) // it comes back
	left := make(chan struct{})
	for id := range 2 {
		go func() {
			for g.passOnThread(nil) {
				in <- id
				<-out
			}
			left <- struct{}{}
		}()
	}
	for range 50 {
		if err := g.allHeld(within(t)); err != nil {
			t.Fatal(err)
		}
		g.set(phaseRun)
		<-in
		<-in
		g.set(phaseHold)
		out <- 0
		// One is still out: full is not closed.
		select {
		case <-g.full:
			t.Fatal("held with one member out")
		default:
		}
		out <- 0
	}
	if !g.set(phaseQuit) || g.set(phaseRun) || g.set(phaseHold) || g.set(phaseQuit) {
		t.Error("quit is not the end")
	}
	<-left
	<-left
}

func TestGateWaitsGiveUp(t *testing.T) {
	g := newGate(1)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g.allHeld(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestGateDoesCallsWhileHeld(t *testing.T) {
	g := newGate(1)
	calls := make(chan func())
	result := make(chan bool)
	go func() { result <- g.passOnThread(calls) }()
	done := make(chan struct{})
	calls <- func() { close(done) }
	<-done
	g.set(phaseQuit)
	if <-result {
		t.Error("passed on quit")
	}
}
