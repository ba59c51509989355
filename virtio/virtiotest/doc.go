// Package virtiotest is the other side of everything in package virtio: a fake
// driver that works rings in real guest memory through a real transport half, a
// device half that tests steer, and a wire that carries requests between two
// halves as a network session would.
//
// It is for tests only and knows no hypervisor.
package virtiotest

import (
	"runtime"
	"testing"
	"time"
)

// Deadline bounds every wait of a test.
const Deadline = 20 * time.Second

// WaitFor returns once cond is true and fails the test after Deadline. cond is
// asked again and again, so it waits for memory that a device writes.
func WaitFor(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	for end := time.Now().Add(Deadline); !cond(); runtime.Gosched() {
		if time.Now().After(end) {
			tb.Fatalf("waited %v for %s", Deadline, what)
		}
	}
}
