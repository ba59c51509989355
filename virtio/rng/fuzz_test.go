package rng_test

import (
	"bytes"
	"testing"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/rng"
)

// FuzzRequest gives the half requests of any shape, readable parts included: each
// ends once and nothing outside its room is written.
func FuzzRequest(f *testing.F) {
	f.Add(uint16(16), uint16(3), uint8(0))
	f.Add(uint16(0), uint16(0), uint8(9))
	f.Fuzz(func(t *testing.T, room, cut uint16, readable uint8) {
		d, err := rng.New(rng.Config{Source: bytes.NewReader(bytes.Repeat([]byte{1}, 1<<17)), MaxBytes: 1000})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		ch := newChannel()
		if err := d.Activate(virtio.Activation{Channel: ch}); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, int(room)+8)
		k := min(int(cut), int(room))
		r := new(virtio.Request)
		r.Init(ch, 0, 0, 0, [][]byte{make([]byte, readable)}, [][]byte{p[:k], nil, p[k:room]})
		d.Submit(0, []*virtio.Request{r})
		if within(t, ch.ended) != r || int(r.Used()) != min(int(room), 1000) {
			t.Fatalf("used %d of %d", r.Used(), room)
		}
		if bytes.Count(p, []byte{1}) != int(r.Used()) || bytes.IndexByte(p[r.Used():], 1) >= 0 {
			t.Error("bytes outside of the used length were written")
		}
	})
}
