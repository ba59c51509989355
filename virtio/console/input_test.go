package console_test

import (
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/virtio/console"
)

// blockingPipe is a pipe whose read end is like an inherited standard input.
func blockingPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(fds[0]), "stdin"), os.NewFile(uintptr(fds[1]), "pipe")
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// A device with an input that nobody types into can be closed.
func TestInputEndsBlockedRead(t *testing.T) {
	r, w := blockingPipe(t)
	in, err := console.NewInput(r)
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan console.Event, 1)
	dev, d := newConsole(t, console.Config{
		Ports:  []console.Port{{Console: true, In: in}},
		Events: func(e console.Event) { events <- e },
	})
	if _, err := w.Write([]byte("key")); err != nil {
		t.Fatal(err)
	}
	d.post(0, 16)
	d.until("input", func() bool { return len(d.done[0]) == 1 })
	if p, _ := d.take(0); string(p) != "key" {
		t.Errorf("received %q", p)
	}
	if err := errors.Join(in.Close(), in.Close()); err != nil {
		t.Fatal(err)
	}
	if e := <-events; !errors.Is(e.Err, os.ErrClosed) {
		t.Errorf("%+v", e)
	}
	closeConsole(t, dev)
	if n, err := w.Write([]byte("x")); n != 1 || err != nil {
		t.Errorf("the file was closed: %v", err)
	}
}

func TestInputEOF(t *testing.T) {
	r, w := blockingPipe(t)
	in, err := console.NewInput(r)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := w.Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if p, err := io.ReadAll(in); string(p) != "abc" || err != nil {
		t.Errorf("%q, %v", p, err)
	}
}
