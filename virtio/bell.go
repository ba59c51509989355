package virtio

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// bell is a queue's eventfd. It lives as long as its Core, because the machine
// has told KVM of it; workers come and go with the driver.
//
// The worker waits for it by the Go netpoller, which watches edge-triggered: each
// notification is an edge, whether or not the counter was read before. So the
// counter is never read on the way, and a wake-up costs no system call besides
// epoll's. Measured against a blocking read in a locked thread this is as fast
// at the median (about 7 us from write to running), has the shorter tail,
// and takes no thread for each queue.
type bell struct {
	fd   int
	file *os.File
	conn syscall.RawConn

	// rings counts the writes of this process; they are in the eventfd's counter
	// too and are no driver's notifications.
	rings atomic.Uint64
	mu    sync.Mutex
	total uint64 // counter values taken so far, under mu
}

func newBell(name string, queue int) (*bell, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create doorbell eventfd %s queue %d: %w", name, queue, err)
	}
	file := os.NewFile(uintptr(fd), fmt.Sprintf("%s-queue%d", name, queue))
	conn, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("poll doorbell eventfd %s queue %d: %w", name, queue, err)
	}
	return &bell{fd: fd, file: file, conn: conn}, nil
}

// one is what is written to an eventfd to ring it once, in host byte order.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// ring wakes the worker, as a driver's notification does.
func (b *bell) ring() { b.rings.Add(1); b.write() }

// kick passes on a driver's notification that arrived as an exit.
func (b *bell) kick() { b.write() }

func (b *bell) write() {
	// The only error of a non-blocking eventfd in good order is EAGAIN at
	// 2^64-2 rings, where the waiter is awake anyway; after close nobody waits.
	_, _ = b.file.Write(one)
}

// wait runs ready until it is true, sleeping for an edge after each false. An
// edge that comes after wait was entered is never lost. False: the bell is closed.
func (b *bell) wait(ready func(fd uintptr) bool) bool { return b.conn.Read(ready) == nil }

// kicks is the number of driver notifications so far.
//
// Reading the counter can swallow an edge: epoll looks at the eventfd once more
// before it reports one, and finds 0. So whoever took something rings again.
func (b *bell) kicks() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := uint64(0)
	var buf [8]byte
	_ = b.conn.Control(func(fd uintptr) {
		if n, err := unix.Read(int(fd), buf[:]); err == nil && n == len(buf) {
			taken = binary.NativeEndian.Uint64(buf[:])
		}
	})
	b.total += taken
	rings := b.rings.Load()
	if taken > 0 {
		b.ring()
	}
	// A ring between its count and its write would make this negative.
	if b.total > rings {
		return b.total - rings
	}
	return 0
}

func (b *bell) close() error { return b.file.Close() }
