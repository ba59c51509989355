package virtio_test

import (
	"bytes"
	"math/rand"
	"testing"

	"github.com/peervisor/peervisor/memory"
	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/virtiotest"
)

type maker = func(testing.TB, virtio.Device, *memory.Memory) virtiotest.Transport

// echo sends n requests of random bytes through queue q, keeping up to depth in
// flight, and checks what comes back.
func echo(t *testing.T, d *virtiotest.Driver, q *virtiotest.Queue, n, depth int, indirect bool) {
	t.Helper()
	const room = 4096
	area := d.Alloc(uint64(depth)*2*room, 4096)
	rng := rand.New(rand.NewSource(int64(n)))
	sent := map[uint16][]byte{}
	at := map[uint16]memory.Addr{}
	free := []memory.Addr{}
	for i := range depth {
		free = append(free, area+memory.Addr(i*2*room))
	}
	for done := 0; done < n; {
		for len(free) > 0 && len(sent)+done < n {
			a := free[len(free)-1]
			free = free[:len(free)-1]
			p := make([]byte, 1+rng.Intn(room-1))
			rng.Read(p)
			d.Put(a, p)
			cut := uint32(rng.Intn(len(p) + 1)) // also zero: an empty descriptor
			add := q.Add
			if indirect {
				add = q.AddIndirect
			}
			h := add(
				virtiotest.Buf{Addr: a, Len: cut},
				virtiotest.Buf{Addr: a + memory.Addr(cut), Len: uint32(len(p)) - cut},
				virtiotest.Buf{Addr: a + room, Len: cut, Writable: true},
				virtiotest.Buf{Addr: a + room + memory.Addr(cut), Len: room - cut, Writable: true},
			)
			sent[h], at[h] = p, a
		}
		q.Kick()
		u := q.Wait(1)[0]
		h := uint16(u.ID)
		if want := sent[h]; int(u.Len) != len(want) || !bytes.Equal(d.Get(at[h]+room, len(want)), want) {
			t.Fatalf("chain %d: used length %d, want %d, or its bytes differ", h, u.Len, len(want))
		}
		free = append(free, at[h])
		delete(sent, h)
		done++
	}
}

func TestEcho(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		for name, features := range map[string]uint64{
			"event idx": ^uint64(0),
			"flags":     ^uint64(1 << virtio.VIRTIO_F_EVENT_IDX),
		} {
			t.Run(name, func(t *testing.T) {
				half := virtiotest.NewDevice(2, 64)
				d := virtiotest.NewDriver(t, half, make)
				d.Features &= features
				d.Start(0)
				echo(t, d, d.Queues[0], 200, 1, false)
				echo(t, d, d.Queues[1], 300, 16, false)
				echo(t, d, d.Queues[0], 100, 16, true)
				if err := half.Violations(); err != nil {
					t.Error(err)
				}
			})
		}
	})
}

func addr(a int) memory.Addr { return memory.Addr(a) }
