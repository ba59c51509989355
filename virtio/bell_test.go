package virtio

import (
	"sync"
	"testing"
	"time"
)

// A notification came and Stats was asked for at the same moment: the wake-up was
// lost, and the queue stood still until the next notification.
func TestBellRingsWhileItsCountIsRead(t *testing.T) {
	b, err := newBell("test", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	}()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	defer readers.Wait()
	defer close(stop)
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				b.kicks()
			}
		}
	})
	for range 20000 {
		waiting, woken := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(woken)
			looks := 0
			b.wait(func(uintptr) bool {
				if looks++; looks == 1 {
					close(waiting)
				}
				return looks == 2
			})
		}()
		<-waiting
		b.kick()
		select {
		case <-woken:
		case <-time.After(10 * time.Second):
			t.Fatal("a notification did not wake the worker")
		}
	}
}
