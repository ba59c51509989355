package virtio

import (
	"encoding/binary"
	"testing"

	"github.com/peervisor/peervisor/memory"
)

const (
	fuzzSize  = 8
	fuzzRAM   = 1 << 20
	fuzzDesc  = 0x1000
	fuzzTable = 0x2000 // a page for indirect tables
	fuzzAvail = 0x3000
	fuzzUsed  = 0x4000
)

// fuzzChannel keeps what the half would have.
type fuzzChannel struct{ err error }

func (c *fuzzChannel) Complete([]*Request)     {}
func (c *fuzzChannel) Return([]*Request)       {}
func (c *fuzzChannel) ConfigChanged([]byte)    {}
func (c *fuzzChannel) NeedsReset(reason error) { c.err = reason }

// modelChain is the specification's reading of a chain, written as plainly as can be: the
// bytes of its two parts, and whether it is legal.
func modelChain(ram []byte, head int, indirectOn bool) (readable, writable uint64, legal bool) {
	table, entries, nested := uint64(fuzzDesc), uint64(fuzzSize), false
	at, seenWritable, total := uint64(head), false, uint64(0)
	for steps := 0; steps < fuzzSize; {
		if at >= entries {
			return 0, 0, false
		}
		d := ram[table+16*at:]
		addr, n := binary.LittleEndian.Uint64(d), uint64(binary.LittleEndian.Uint32(d[8:]))
		flags, nextDesc := binary.LittleEndian.Uint16(d[12:]), uint64(binary.LittleEndian.Uint16(d[14:]))
		inRAM := addr <= fuzzRAM && n <= fuzzRAM-addr
		if flags&4 != 0 {
			if !indirectOn || nested || flags&1 != 0 || n == 0 || n%16 != 0 || n/16 > 65536 || !inRAM {
				return 0, 0, false
			}
			table, entries, nested, at = addr, n/16, true, 0
			continue
		}
		steps++
		if total += n; total > 0xFFFF_FFFF {
			return 0, 0, false
		}
		if n > 0 && !inRAM {
			return 0, 0, false
		}
		switch {
		case flags&2 != 0:
			writable += n
			seenWritable = seenWritable || n > 0
		case seenWritable:
			return 0, 0, false
		default:
			readable += n
		}
		if flags&1 == 0 {
			return readable, writable, true
		}
		at = nextDesc
	}
	return 0, 0, false
}

// FuzzQueue compares chains with the model, and checks what holds for any ring. The first byte
// has switches, 256 bytes go to the descriptor table and an indirect table, the rest are
// heads that the driver makes available.
func FuzzQueue(f *testing.F) {
	seed := func(flags byte, heads []byte, descs ...[4]uint64) {
		b := append([]byte{flags}, make([]byte, 256)...)
		for i, d := range descs {
			binary.LittleEndian.PutUint64(b[1+16*i:], d[0])
			binary.LittleEndian.PutUint64(b[9+16*i:], d[1]|d[2]<<32|d[3]<<48)
		}
		f.Add(append(b, heads...))
	}
	seed(3, []byte{0, 0}, [4]uint64{0x8000, 16, 1, 1}, [4]uint64{0x9000, 512, 3, 2}, [4]uint64{0xA000, 1, 2, 0})
	seed(3, []byte{0, 1}, [4]uint64{fuzzTable, 32, 4, 0}, [4]uint64{0x8000, 0, 0, 0})
	seed(1, []byte{0}, [4]uint64{fuzzTable, 32, 4, 0})
	seed(3, []byte{0}, [4]uint64{0x8000, 1, 1, 0})
	seed(3, []byte{0, 1}, [4]uint64{0x8000, 1, 3, 1}, [4]uint64{0x8000, 1, 0, 0})
	seed(3, []byte{9}, [4]uint64{fuzzRAM - 1, 2, 0, 0})
	seed(2, []byte{0}, [4]uint64{1 << 63, 0xFFFF_FFFF, 2, 0})
	mem, err := memory.New("fuzz", memory.Layout(fuzzRAM))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = mem.Close() })
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 257 {
			return
		}
		features := uint64(in[0]&1) << VIRTIO_F_EVENT_IDX
		features |= uint64(in[0]>>1&1) << VIRTIO_F_INDIRECT_DESC
		ram, _ := mem.Readable(0, fuzzRAM)
		clear(ram[fuzzDesc : fuzzUsed+0x1000])
		copy(ram[fuzzDesc:], in[1:129])
		copy(ram[fuzzTable:], in[129:257])
		setup := QueueSetup{MaxSize: fuzzSize, Size: fuzzSize, Desc: fuzzDesc, Driver: fuzzAvail, Device: fuzzUsed}
		q, err := newQueue(mem, 0, setup, features, &queueCounters{})
		if err != nil {
			t.Fatal(err)
		}
		for i, idx := 257, uint16(0); i < len(in) && i < 300; i++ {
			head := uint16(in[i])
			binary.LittleEndian.PutUint16(ram[fuzzAvail+4+2*(idx%fuzzSize):], head)
			idx++
			binary.LittleEndian.PutUint16(ram[fuzzAvail+2:], idx)
			readable, writable, legal := uint64(0), uint64(0), false
			if head < fuzzSize {
				readable, writable, legal = modelChain(ram, int(head), q.indirect)
			}
			reqs, err := q.pop(&fuzzChannel{})
			if (err == nil) != legal {
				t.Fatalf("head %d: error %v, the model says %v", head, err, legal)
			}
			if err != nil {
				return
			}
			if len(reqs) != 1 {
				t.Fatalf("popped %d of 1", len(reqs))
			}
			r := reqs[0]
			if uint64(r.ReadableLen()) != readable || uint64(r.WritableLen()) != writable || r.Seq != uint64(i-257) {
				t.Fatalf("request %d has %d and %d bytes, the model says %d and %d", r.Seq, r.ReadableLen(), r.WritableLen(), readable, writable)
			}
			r.SetUsed(r.WritableLen())
			if _, _, err := q.publish(reqs); err != nil {
				t.Fatal(err)
			}
			at := fuzzUsed + 4 + 8*((idx-1)%fuzzSize)
			if got := binary.LittleEndian.Uint32(ram[at:]); got != uint32(head) || q.used.Load16(idxOff) != idx {
				t.Fatalf("used entry names %d, index %d", got, q.used.Load16(idxOff))
			}
			if _, _, err := q.publish(reqs); err == nil {
				t.Fatal("a request was completed twice")
			}
		}
	})
}
