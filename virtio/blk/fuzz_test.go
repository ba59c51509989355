package blk_test

import (
	"bytes"
	"testing"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/blk"
	"github.com/peervisor/peervisor/virtio/blk/blktest"
)

// FuzzRequest gives the half requests of any bytes and shapes: each ends once,
// with a status of the specification, and a read-only disk stays as it is.
func FuzzRequest(f *testing.F) {
	f.Add(header(blk.VIRTIO_BLK_T_IN, 0), uint16(513), uint8(1), false)
	f.Add(append(header(blk.VIRTIO_BLK_T_OUT, 3), make([]byte, 512)...), uint16(1), uint8(9), false)
	f.Add(append(header(blk.VIRTIO_BLK_T_DISCARD, 0), ranges([3]uint64{0, 8, 0})...), uint16(1), uint8(2), false)
	f.Add(append(header(blk.VIRTIO_BLK_T_WRITE_ZEROES, 0), ranges([3]uint64{0, 8, 1})...), uint16(1), uint8(3), true)
	f.Add(header(blk.VIRTIO_BLK_T_GET_ID, 0), uint16(21), uint8(4), true)
	f.Add(header(blk.VIRTIO_BLK_T_FLUSH, 0), uint16(0), uint8(5), false)
	f.Add([]byte{1}, uint16(0), uint8(0), false)
	f.Fuzz(func(t *testing.T, out []byte, room uint16, shape uint8, readOnly bool) {
		disk := blktest.New(blk.Info{SizeBytes: 64 * 512, ReadOnly: readOnly})
		disk.SetContent(pattern(1, 64*512))
		dev, err := blk.New(blk.Config{Backend: disk})
		if err != nil {
			t.Fatal(err)
		}
		defer dev.Close()
		d := activate(t, dev, dev.Info().Features)
		in := make([]byte, int(room)+64)
		for i := range in {
			in[i] = 0xEE
		}
		r := request{Request: new(virtio.Request), in: in[:room]}
		split := func(p []byte) [][]byte {
			k := min(int(shape), len(p))
			return [][]byte{p[:k], nil, p[k:]}
		}
		r.Init(d.ch, 0, 0, 0, split(out), split(r.in))
		d.submit(r, d.make(0, header(blk.VIRTIO_BLK_T_IN, 0), 512))
		dev.Reset()
		if len(d.ch.done) != 2 {
			t.Fatalf("%d of 2 requests ended", len(d.ch.done))
		}
		if s := r.status(); room > 0 && (s < 0 || s > 2) {
			t.Errorf("status %d", s)
		}
		if int(r.Used()) > int(room) {
			t.Errorf("used %d of %d", r.Used(), room)
		}
		if !bytes.Equal(in[room:], bytes.Repeat([]byte{0xEE}, 64)) {
			t.Error("wrote behind the room")
		}
		if readOnly && !bytes.Equal(disk.Content(), pattern(1, 64*512)) {
			t.Error("a read-only disk was changed")
		}
		for _, e := range r.Extents() {
			if e.Off < 0 || e.Len <= 0 || e.Off+e.Len > int(room) {
				t.Errorf("extent %+v of %d bytes", e, room)
			}
		}
	})
}

// FuzzState restores states of any bytes.
func FuzzState(f *testing.F) {
	f.Add(1, []byte{0})
	f.Add(1, []byte{1})
	f.Add(2, []byte{9, 9})
	f.Fuzz(func(t *testing.T, version int, p []byte) {
		dev, err := blk.New(blk.Config{Backend: blktest.New(blk.Info{SizeBytes: 512})})
		if err != nil {
			t.Fatal(err)
		}
		defer dev.Close()
		if dev.RestoreState(version, p) == nil {
			if q, err := dev.SaveState(); err != nil || !bytes.Equal(p, q) {
				t.Errorf("restored %v, saved %v, %v", p, q, err)
			}
		}
	})
}
