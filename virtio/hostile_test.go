package virtio_test

import (
	"testing"

	"github.com/peervisor/peervisor/memory"
	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/virtiotest"
)

const (
	next     = virtio.VIRTQ_DESC_F_NEXT
	write    = virtio.VIRTQ_DESC_F_WRITE
	indirect = virtio.VIRTQ_DESC_F_INDIRECT
	ram      = 0x100000 // an address in RAM that no ring uses
)

// hostile chains break the device, and only it.
var hostileChains = []struct {
	name string
	// setup writes descriptors and returns the head to make available.
	setup func(d *virtiotest.Driver, q *virtiotest.Queue) uint16
}{
	{"2.7.5.3.1 chain that loops on itself", func(_ *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		q.SetDesc(0, virtiotest.Desc{Addr: ram, Len: 1, Flags: next, Next: 0})
		return 0
	}},
	{"2.7.5.3.1 chain that loops over all descriptors", func(_ *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		for i := range q.Size {
			q.SetDesc(i, virtiotest.Desc{Addr: ram, Len: 1, Flags: next, Next: uint16((i + 1) % q.Size)})
		}
		return 0
	}},
	{"2.7.5.3.1 loop of empty descriptors", func(_ *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		q.SetDesc(0, virtiotest.Desc{Flags: next, Next: 1})
		q.SetDesc(1, virtiotest.Desc{Flags: next, Next: 0})
		return 0
	}},
	{"2.7.6 head beyond the table", func(_ *virtiotest.Driver, q *virtiotest.Queue) uint16 { return uint16(q.Size) }},
	{"2.7.6 head 65535", func(_ *virtiotest.Driver, _ *virtiotest.Queue) uint16 { return 0xFFFF }},
	{"2.7.5 next beyond the table", func(_ *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		q.SetDesc(0, virtiotest.Desc{Addr: ram, Len: 1, Flags: next, Next: uint16(q.Size)})
		return 0
	}},
	{"2.7.5 address outside of RAM", func(_ *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		q.SetDesc(0, virtiotest.Desc{Addr: 0xC000_0000, Len: 1})
		return 0
	}},
	{"2.7.5 writable address outside of RAM", func(_ *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		q.SetDesc(0, virtiotest.Desc{Addr: 0xFFFF_FFFF_FFFF_FFFF, Len: 1, Flags: write})
		return 0
	}},
	{"2.7.5 buffer that ends beyond RAM", func(d *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		q.SetDesc(0, virtiotest.Desc{Addr: d.Mem.SizeBytes() - 1, Len: 2})
		return 0
	}},
	{"2.7.5 buffer that wraps around", func(_ *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		q.SetDesc(0, virtiotest.Desc{Addr: 0xFFFF_FFFF_FFFF_F000, Len: 0xFFFF_FFFF})
		return 0
	}},
	{"2.7.5 huge length", func(_ *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		q.SetDesc(0, virtiotest.Desc{Addr: 0, Len: 0xFFFF_FFFF})
		return 0
	}},
	{"2.7.4.2 readable after writable", func(_ *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		q.SetDesc(0, virtiotest.Desc{Addr: ram, Len: 1, Flags: write | next, Next: 1})
		q.SetDesc(1, virtiotest.Desc{Addr: ram, Len: 1})
		return 0
	}},
	{"2.7.5.3.1 indirect and next", func(d *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		d.Put(ram, virtiotest.Desc{Addr: ram + 64, Len: 1}.Bytes())
		q.SetDesc(0, virtiotest.Desc{Addr: ram, Len: 16, Flags: indirect | next, Next: 1})
		q.SetDesc(1, virtiotest.Desc{Addr: ram, Len: 1})
		return 0
	}},
	{"2.7.5.3.1 indirect in an indirect table", func(d *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		d.Put(ram, virtiotest.Desc{Addr: ram, Len: 16, Flags: indirect}.Bytes())
		q.SetDesc(0, virtiotest.Desc{Addr: ram, Len: 16, Flags: indirect})
		return 0
	}},
	{"2.7.5.3 indirect table of no descriptors", func(_ *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		q.SetDesc(0, virtiotest.Desc{Addr: ram, Len: 0, Flags: indirect})
		return 0
	}},
	{"2.7.5.3 indirect table of 17 bytes", func(_ *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		q.SetDesc(0, virtiotest.Desc{Addr: ram, Len: 17, Flags: indirect})
		return 0
	}},
	{"2.7.5.3 indirect table that next cannot address", func(_ *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		q.SetDesc(0, virtiotest.Desc{Addr: ram, Len: 16 * 65537, Flags: indirect})
		return 0
	}},
	{"2.7.5.3 indirect table outside of RAM", func(_ *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		q.SetDesc(0, virtiotest.Desc{Addr: 0xD000_0000, Len: 16, Flags: indirect})
		return 0
	}},
	{"2.7.5.3 next beyond the indirect table", func(d *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		d.Put(ram, virtiotest.Desc{Addr: ram, Len: 1, Flags: next, Next: 1}.Bytes())
		q.SetDesc(0, virtiotest.Desc{Addr: ram, Len: 16, Flags: indirect})
		return 0
	}},
	{"2.7.5.3.1 loop in an indirect table", func(d *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		d.Put(ram, virtiotest.Desc{Addr: ram, Len: 1, Flags: next, Next: 0}.Bytes())
		q.SetDesc(0, virtiotest.Desc{Addr: ram, Len: 16, Flags: indirect})
		return 0
	}},
	{"2.7.5.3.1 indirect chain longer than the queue size", func(d *virtiotest.Driver, q *virtiotest.Queue) uint16 {
		for i := range q.Size + 1 {
			x := virtiotest.Desc{Addr: ram + 0x8000, Len: 1, Flags: next, Next: uint16(i + 1)}
			if i == q.Size {
				x.Flags = 0
			}
			d.Put(ram+memory.Addr(16*i), x.Bytes())
		}
		q.SetDesc(0, virtiotest.Desc{Addr: ram, Len: uint32(16 * (q.Size + 1)), Flags: indirect})
		return 0
	}},
}

// brokenThenWell runs a hostile act against queue 0, sees the device broken and told so, its
// neighbour alive, and the device well again after a reset.
func brokenThenWell(t *testing.T, make maker, features uint64, act func(d *virtiotest.Driver, q *virtiotest.Queue)) {
	half, other := virtiotest.NewDevice(2, 8), virtiotest.NewDevice(1, 16)
	d, neighbour := virtiotest.NewDriver(t, half, make), virtiotest.NewDriver(t, other, make)
	d.Features &= features
	d.Start(0)
	neighbour.Start(0)
	act(d, d.Queues[0])
	virtiotest.WaitFor(t, "DEVICE_NEEDS_RESET", func() bool { return d.T.Status() == 15|virtio.VIRTIO_CONFIG_S_NEEDS_RESET })
	// 2.1.2: a configuration change notification follows.
	virtiotest.WaitFor(t, "configuration interrupt", func() bool { return d.T.ConfigInterrupts() > 0 })
	if n := d.Queues[0].UsedIdx(); n != 0 {
		t.Errorf("%d buffers were used", n)
	}
	echo(t, neighbour, neighbour.Queues[0], 20, 4, false)
	d.Features = d.T.DeviceFeatures()
	d.Start(0)
	echo(t, d, d.Queues[0], 20, 2, false)
	if err := half.Violations(); err != nil {
		t.Error(err)
	}
}

func TestHostileChains(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		for _, c := range hostileChains {
			t.Run(c.name, func(t *testing.T) {
				brokenThenWell(t, make, ^uint64(0), func(d *virtiotest.Driver, q *virtiotest.Queue) {
					q.Push(c.setup(d, q))
					q.Expose()
					d.T.Notify(0)
				})
			})
		}
	})
}

func TestHostileIndices(t *testing.T) {
	acts := map[string]func(d *virtiotest.Driver, q *virtiotest.Queue){
		"2.7.6 index jumps ahead":    func(_ *virtiotest.Driver, q *virtiotest.Queue) { q.SetAvailIdx(uint16(q.Size + 1)) },
		"2.7.6 index goes backwards": func(_ *virtiotest.Driver, q *virtiotest.Queue) { q.SetAvailIdx(0xFFFF) },
		"2.7.13 same chain twice": func(_ *virtiotest.Driver, q *virtiotest.Queue) {
			q.SetDesc(3, virtiotest.Desc{Addr: ram, Len: 1, Flags: write})
			q.Push(3)
			q.Push(3)
			q.Expose()
		},
	}
	virtiotest.Each(t, func(t *testing.T, make maker) {
		for name, act := range acts {
			t.Run(name, func(t *testing.T) {
				// With "same chain twice" the first may be taken alone; hold it, so that
				// the second finds it in flight.
				brokenHeld(t, make, act)
			})
		}
	})
}

func brokenHeld(t *testing.T, make maker, act func(d *virtiotest.Driver, q *virtiotest.Queue)) {
	half := holding(1, 8)
	d := virtiotest.NewDriver(t, half, make)
	d.Start(0)
	act(d, d.Queues[0])
	d.T.Notify(0)
	virtiotest.WaitFor(t, "DEVICE_NEEDS_RESET", func() bool { return d.T.Status()&virtio.VIRTIO_CONFIG_S_NEEDS_RESET != 0 })
	half.Serve = nil
	d.Start(0)
	echo(t, d, d.Queues[0], 20, 2, false)
}

// 2.7.5.3.1: an indirect descriptor without VIRTIO_F_INDIRECT_DESC.
func TestHostileIndirectNotNegotiated(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		brokenThenWell(t, make, ^uint64(1<<virtio.VIRTIO_F_INDIRECT_DESC), func(d *virtiotest.Driver, q *virtiotest.Queue) {
			d.Put(ram, virtiotest.Desc{Addr: ram + 64, Len: 1, Flags: write}.Bytes())
			q.SetDesc(0, virtiotest.Desc{Addr: ram, Len: 16, Flags: indirect})
			q.Push(0)
			q.Expose()
			d.T.Notify(0)
		})
	})
}

// Queues enabled wrongly stay disabled, and the device needs a reset.
func TestHostileQueueSetup(t *testing.T) {
	const end = 16 << 20
	cases := []struct {
		name                 string
		size                 uint32
		desc, driver, device memory.Addr
	}{
		{"2.7 size 0", 0, 0x10000, 0x20000, 0x30000},
		{"2.7 size 3", 3, 0x10000, 0x20000, 0x30000},
		{"2.7 size above the maximum", 128, 0x10000, 0x20000, 0x30000},
		{"2.7 size 65536", 0x10000, 0x10000, 0x20000, 0x30000},
		{"2.7 descriptor table not aligned to 16", 64, 0x10008, 0x20000, 0x30000},
		{"2.7 available ring not aligned to 2", 64, 0x10000, 0x20001, 0x30000},
		{"2.7 used ring not aligned to 4", 64, 0x10000, 0x20000, 0x30002},
		{"descriptor table outside of RAM", 64, end, 0x20000, 0x30000},
		{"descriptor table ends outside of RAM", 64, end - 64*16 + 16, 0x20000, 0x30000},
		{"available ring outside of RAM", 64, 0x10000, end - 64*2, 0x30000},
		{"used ring outside of RAM", 64, 0x10000, 0x20000, end - 64*8},
		{"used ring at the end of the address space", 64, 0x10000, 0x20000, 0xFFFF_FFFF_FFFF_FFFC},
	}
	virtiotest.Each(t, func(t *testing.T, make maker) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				half := virtiotest.NewDevice(1, 64)
				d := virtiotest.NewDriver(t, half, make)
				d.Negotiate()
				d.T.SetupQueue(0, c.size, c.desc, c.driver, c.device)
				d.T.EnableQueue(0)
				if d.T.QueueEnabled(0) || d.T.Status()&virtio.VIRTIO_CONFIG_S_NEEDS_RESET == 0 {
					t.Errorf("enabled %v, status %#x", d.T.QueueEnabled(0), d.T.Status())
				}
				d.T.SetStatus(15)
				if d.T.Status()&virtio.VIRTIO_CONFIG_S_DRIVER_OK != 0 {
					t.Error("DRIVER_OK on a device that needs a reset")
				}
				d.Start(0)
				echo(t, d, d.Queues[0], 10, 2, false)
			})
		}
	})
}

// A queue that does not exist, or was not negotiated for, or is kicked before its time.
func TestHostileOrder(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		half := virtiotest.NewDevice(1, 8)
		d := virtiotest.NewDriver(t, half, make)
		d.T.SetupQueue(7, 8, 0x10000, 0x20000, 0x30000)
		d.T.EnableQueue(7)
		d.T.EnableQueue(0xFFFF)
		d.T.Notify(0)
		d.T.Notify(1)
		d.T.Notify(1000)
		if d.T.QueueEnabled(7) || d.T.QueueMax(7) != 0 || d.T.Status() != 0 {
			t.Errorf("queue 7 exists: size %d, status %#x", d.T.QueueMax(7), d.T.Status())
		}
		// 3.1.1: no queue before FEATURES_OK.
		d.T.SetStatus(3)
		d.AddQueue(0, 8)
		if d.T.QueueEnabled(0) || d.T.Status() != 3|virtio.VIRTIO_CONFIG_S_NEEDS_RESET {
			t.Errorf("queue enabled before FEATURES_OK: status %#x", d.T.Status())
		}
		// 2.1.2: nothing is consumed before DRIVER_OK.
		d.Negotiate()
		d.Queues = nil
		q := d.AddQueue(0, 8)
		q.Add(virtiotest.Buf{Addr: ram, Len: 8, Writable: true})
		q.Kick()
		d.T.Notify(0)
		if s := d.T.Stats(); s.Queues[0].Requests != 0 || q.UsedIdx() != 0 {
			t.Errorf("consumed before DRIVER_OK: %+v", s.Queues[0])
		}
		d.T.SetStatus(15)
		q.Wait(1) // and right after it, without another notification
		if err := half.Violations(); err != nil {
			t.Error(err)
		}
	})
}

// Configuration writes out of range reach nobody; reads read 0.
func TestHostileConfigAccess(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		half := virtiotest.NewDevice(1, 8) // 8 bytes of configuration
		d := virtiotest.NewDriver(t, half, make)
		d.Start(0)
		for _, off := range []uint64{5, 8, 9, 0x100, 0xE00} {
			d.T.WriteConfig(off, []byte{1, 1, 1, 1})
		}
		if _, _, n := half.Count(); n != 0 {
			t.Errorf("the half got %d writes: %+v", n, half.Writes)
		}
		p := []byte{0xFF, 0xFF, 0xFF, 0xFF}
		d.T.ReadConfig(6, p)
		if p[0] != 7 || p[1] != 8 || p[2] != 0 || p[3] != 0 {
			t.Errorf("read %v over the end", p)
		}
		if d.T.ReadConfig(0x200, p); p[0] != 0 {
			t.Errorf("read %v beyond the end", p)
		}
		if s := d.T.Status(); s != 15 {
			t.Errorf("status %#x", s)
		}
	})
}

// More buffers in flight than the bound: the rest waits in the ring, and none is lost.
func TestHostileManyBuffers(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		const size = 512 // 512 chains of 512 buffers: 2^18
		half := holding(1, size)
		d := virtiotest.NewDriver(t, half, make)
		d.Start(0)
		table := memory.Addr(0x400000)
		for i := range size {
			x := virtiotest.Desc{Addr: ram, Len: 1, Flags: write | next, Next: uint16(i + 1)}
			if i == size-1 {
				x.Flags = write
			}
			d.Put(table+memory.Addr(16*i), x.Bytes())
		}
		q := d.Queues[0]
		for i := range size {
			q.SetDesc(i, virtiotest.Desc{Addr: uint64(table), Len: 16 * size, Flags: indirect})
			q.Push(uint16(i))
		}
		q.Expose()
		d.T.Notify(0)
		const bound = 64<<10/size + 64 // maxSegsOut, and a batch
		done := 0
		for done < size {
			virtiotest.WaitFor(t, "requests", func() bool { return half.HeldCount(0) > 0 })
			reqs := half.Held(0)
			if len(reqs) > bound {
				t.Fatalf("%d requests of %d buffers in flight at once", len(reqs), size)
			}
			for _, r := range reqs {
				r.Complete(size)
			}
			done += len(reqs)
		}
		virtiotest.WaitFor(t, "used buffers", func() bool { return int(q.UsedIdx()) == size })
	})
}
