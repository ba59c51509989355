package console_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/peervisor/peervisor/virtio/console"
)

// FuzzDriver lets a hostile driver do any sequence of things: it harms nobody,
// every request ends once, and control messages name ports that there are.
func FuzzDriver(f *testing.F) {
	f.Add([]byte{3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 64, 2, 64})
	f.Add([]byte{4, 10, 5, 200, 4, 0, 0xF0, 5, 5, 0, 0xF1, 1, 9})
	f.Add([]byte{3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3, 1, 0, 0, 0, 3, 0, 1, 0, 3, 1, 0, 0, 0, 6, 0, 1, 0, 4, 9})
	f.Fuzz(func(t *testing.T, ops []byte) {
		if len(ops) > 400 {
			return
		}
		dev, err := console.New(console.Config{
			Ports:    []console.Port{{Name: "a", Console: true, In: bytes.NewReader([]byte("some input")), Out: io.Discard}, {Name: "b"}},
			MaxPorts: 3, BufferBytes: 4096,
		})
		if err != nil {
			t.Fatal(err)
		}
		d := newDriver(t, dev)
		d.activate()
		next := func() int {
			if len(ops) == 0 {
				return 0
			}
			b := ops[0]
			ops = ops[1:]
			return int(b)
		}
		for len(ops) > 0 {
			switch op := next(); {
			case op == 0xF1:
				d.reset()
				d.clear()
				d.activate()
			case op >= 0xF0:
				d.drain(next() % 8)
			case op%8 == 3:
				n := min(8, len(ops))
				d.send(3, ops[:n:n])
				ops = ops[n:]
			case op%2 == 0:
				d.post(op%8, next())
			default:
				d.send(op%8, make([]byte, next()*64))
			}
		}
		for q := range 8 {
			d.dev.Quiesce(q)
			d.until("a drained queue", func() bool { return d.inFlight(q) == 0 })
		}
		d.reset()
		for _, r := range d.done[2] {
			if p := d.bufs[r]; int(r.Used()) > len(p) || r.Used() > 4 && (p[0] > 2 || p[1]|p[2]|p[3] != 0) {
				t.Errorf("control message % x", p)
			}
		}
		if err := dev.Close(); err != nil && ops == nil {
			t.Error(err)
		}
	})
}

// FuzzState restores states of any bytes; what is accepted is saved again as it was.
func FuzzState(f *testing.F) {
	make := func() *console.Device {
		dev, err := console.New(console.Config{Ports: []console.Port{{Name: "a", Console: true}, {Name: "b", Out: io.Discard}}, BufferBytes: 4096})
		if err != nil {
			f.Fatal(err)
		}
		return dev
	}
	seed, err := make().SaveState()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:len(seed)-1])
	f.Add(append(bytes.Clone(seed), 0))
	f.Fuzz(func(t *testing.T, p []byte) {
		dev := make()
		if dev.RestoreState(console.StateVersion, p) != nil {
			return
		}
		d := newDriver(t, dev)
		d.activate()
		for q := range 6 {
			if q%2 == 0 {
				d.post(q, 32)
			} else {
				d.send(q, []byte{0, 0, 0, 0, 6, 0, 1, 0})
			}
		}
		d.reset()
		_ = dev.Close() // restored output may not have been written
	})
}
