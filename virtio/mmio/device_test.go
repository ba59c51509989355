package mmio_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/mmio"
	"github.com/peervisor/peervisor/virtio/virtiotest"
)

func newMMIO(t *testing.T, half virtio.Device) (*virtiotest.MMIO, *virtiotest.Driver) {
	t.Helper()
	d := virtiotest.NewDriver(t, half, virtiotest.Transports["mmio"])
	return d.T.(*virtiotest.MMIO), d
}

// 4.2.2.1: MagicValue, Version; and what identifies the device.
func TestIdentity_4_2_2_1(t *testing.T) {
	m, _ := newMMIO(t, virtiotest.NewDevice(1, 8))
	for off, want := range map[uint64]uint32{0: 0x74726976, 4: 2, 8: 42, 0xC: 0x1AF4} {
		if got := m.Read32(off); got != want {
			t.Errorf("register %#x is %#x, want %#x", off, got, want)
		}
	}
}

// 4.2.2: without shared memory regions lengths and bases read as -1; QueueReset is
// not offered, and does nothing.
func TestAbsentRegisters_4_2_2(t *testing.T) {
	m, d := newMMIO(t, virtiotest.NewDevice(1, 8))
	m.Write32(0xAC, 0)
	for _, off := range []uint64{0xB0, 0xB4, 0xB8, 0xBC} {
		if got := m.Read32(off); got != 0xFFFF_FFFF {
			t.Errorf("register %#x is %#x", off, got)
		}
	}
	d.Start(0)
	m.Write32(0x30, 0)
	m.Write32(0xC0, 1)
	if m.Read32(0xC0) != 0 || !m.QueueEnabled(0) {
		t.Error("QueueReset had an effect")
	}
}

// 4.2.2.1: InterruptStatus shows each event from the moment it takes place until it
// is acknowledged, and no other bits; a reset clears it. An edge is raised each time.
func TestInterruptStatus_4_2_2_1(t *testing.T) {
	half := virtiotest.NewDevice(1, 8)
	m, d := newMMIO(t, half)
	d.Start(0)
	m.NoAck.Store(true)
	send := func() {
		before := m.Edges()
		d.Queues[0].Add(virtiotest.Buf{Addr: 0x100000, Len: 1, Writable: true})
		d.Queues[0].SetUsedEvent(d.Queues[0].UsedIdx())
		d.Queues[0].Kick()
		d.Queues[0].Wait(1)
		virtiotest.WaitFor(t, "edge", func() bool { return m.Edges() > before })
	}
	if s := m.Read32(0x60); s != 0 {
		t.Errorf("InterruptStatus is %#x at first", s)
	}
	send()
	send()
	if s := m.Read32(0x60); s != 1 || m.Edges() != 2 {
		t.Errorf("InterruptStatus is %#x after %d edges", s, m.Edges())
	}
	half.Channel().ConfigChanged(make([]byte, 8))
	if s := m.Read32(0x60); s != 3 {
		t.Errorf("InterruptStatus is %#x after a configuration change", s)
	}
	m.Write32(0x64, 1)
	if s := m.Read32(0x60); s != 2 {
		t.Errorf("InterruptStatus is %#x after ACK of 1", s)
	}
	m.Write32(0x64, 0xFFFF_FFFF)
	send()
	m.SetStatus(0)
	if s := m.Read32(0x60); s != 0 || m.Status() != 0 || m.QueueEnabled(0) {
		t.Errorf("InterruptStatus is %#x, status %#x after a reset", s, m.Status())
	}
}

// 4.2.2.2: to stop using a queue the driver writes 0 to QueueReady and reads it back.
// After that the device does not access the queue (4.2.2.1).
func TestQueueReady_4_2_2_1(t *testing.T) {
	half := virtiotest.NewDevice(2, 8)
	half.Serve = virtiotest.Hold
	m, d := newMMIO(t, half)
	d.Negotiate()
	q := d.AddQueue(0, 8)
	m.Write32(0x30, 0)
	m.Write32(0x44, 0) // before DRIVER_OK: at once, and it may be enabled again
	if m.QueueEnabled(0) {
		t.Error("QueueReady stays 1")
	}
	m.EnableQueue(0)
	d.AddQueue(1, 8)
	m.SetStatus(15)
	q.Add(virtiotest.Buf{Addr: 0x100000, Len: 1, Writable: true})
	q.Kick()
	virtiotest.WaitFor(t, "request", func() bool { return half.HeldCount(0) == 1 })
	m.Write32(0x30, 0)
	m.Write32(0x44, 0)
	virtiotest.WaitFor(t, "QueueReady 0", func() bool { return !m.QueueEnabled(0) })
	q.Add(virtiotest.Buf{Addr: 0x100000, Len: 1, Writable: true})
	q.Expose()
	m.Notify(0)
	// The other queue works on, and a pause does not wait for the stopped one.
	d.Queues[1].Add(virtiotest.Buf{Addr: 0x100000, Len: 1, Writable: true})
	d.Queues[1].Kick()
	virtiotest.WaitFor(t, "request", func() bool { return half.HeldCount(1) == 1 })
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Resume(); err != nil {
		t.Fatal(err)
	}
	if s := m.Stats().Queues[0]; s.Requests != 1 || q.UsedIdx() != 0 {
		t.Errorf("the stopped queue was worked: %+v", s)
	}
	if err := half.Violations(); err != nil {
		t.Error(err)
	}
}

// 4.2.2.2: control registers are accessed by aligned 32 bits; other accesses find nothing.
func TestAccessWidth_4_2_2_2(t *testing.T) {
	m, _ := newMMIO(t, virtiotest.NewDevice(1, 8))
	for _, n := range []int{1, 2, 8} {
		p := slices.Repeat([]byte{0xFF}, n)
		m.Read(0, p)
		if !slices.Equal(p, make([]byte, n)) {
			t.Errorf("a read of %d bytes gives %x", n, p)
		}
		m.Write(0x70, slices.Repeat([]byte{1}, n))
	}
	m.Write(0x71, []byte{1, 0, 0, 0})
	m.Write32(0x70, 0x101)
	if s := m.Status(); s != 0 {
		t.Errorf("status is %#x", s)
	}
	// The configuration is accessed by bytes.
	var p [3]byte
	m.Read(0x101, p[:])
	if p != [3]byte{2, 3, 4} {
		t.Errorf("configuration bytes %v", p)
	}
}

// Doorbells: every queue has its own, which KVM can tell apart by the value.
func TestDoorbells(t *testing.T) {
	m, d := newMMIO(t, virtiotest.NewDevice(3, 8))
	d.Start(0)
	for i, b := range m.Doorbells() {
		if b.OffsetBytes != 0x50 || b.LenBytes != 4 || !b.Match || b.Value != uint32(i) || b.FD < 0 {
			t.Errorf("doorbell %d is %+v", i, b)
		}
	}
	if len(m.Doorbells()) != 3 {
		t.Errorf("%d doorbells", len(m.Doorbells()))
	}
}

func TestConfigIsChecked(t *testing.T) {
	mem := virtiotest.NewMemory(t, 1<<20)
	half := virtiotest.NewDevice(1, 8)
	for name, cfg := range map[string]mmio.Config{
		"no line":   {Name: "x", Device: half, Memory: mem},
		"no memory": {Name: "x", Device: half, Line: &virtiotest.MMIO{}},
		"no half":   {Name: "x", Memory: mem, Line: &virtiotest.MMIO{}},
	} {
		if _, err := mmio.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzRegisters plays scripts of accesses: five bytes each, an opcode with the
// width, an offset, and a value. Nothing panics, every script ends in a device
// that a reset makes well.
func FuzzRegisters(f *testing.F) {
	op := func(write bool, width int, off uint16, v uint32) []byte {
		b := []byte{byte(width) & 3, byte(off), byte(off >> 8)}
		if write {
			b[0] |= 4
		}
		return binary.LittleEndian.AppendUint32(b, v)
	}
	var start []byte
	for _, w := range [][2]uint32{
		{0x70, 3}, {0x24, 1}, {0x20, 1}, {0x24, 0}, {0x20, 1<<28 | 1<<29}, {0x70, 11}, {0x30, 0}, {0x38, 8},
		{0x80, 0x1000}, {0x90, 0x2000}, {0xA0, 0x3000}, {0x44, 1}, {0x70, 15}, {0x50, 0},
	} {
		start = append(start, op(true, 2, uint16(w[0]), w[1])...)
	}
	f.Add(start)
	f.Add(append(slices.Clone(start), op(true, 2, 0x70, 0)...))
	f.Add(append(slices.Clone(start), op(true, 2, 0x44, 0)...))
	f.Add(append(op(true, 3, 0x100, 7), op(false, 0, 0xFFF, 0)...))
	f.Fuzz(func(t *testing.T, script []byte) {
		half := virtiotest.NewDevice(2, 8)
		d := virtiotest.NewDriver(t, half, virtiotest.Transports["mmio"])
		m := d.T.(*virtiotest.MMIO)
		// Rings with something in them, where the seeds put them.
		d.Put(0x1000, virtiotest.Desc{Addr: 0x4000, Len: 64, Flags: virtio.VIRTQ_DESC_F_WRITE}.Bytes())
		d.Put(0x2000, []byte{0, 0, 1, 0})
		for n := 0; len(script) >= 7 && n < 200; n, script = n+1, script[7:] {
			p := make([]byte, 1<<(script[0]&3))
			off := uint64(binary.LittleEndian.Uint16(script[1:]) & 0xFFF)
			copy(p, script[3:7])
			if script[0]&4 != 0 {
				m.Write(off, p)
			} else {
				m.Read(off, p)
			}
		}
		d.Features = m.DeviceFeatures()
		d.Start(0)
		d.Queues[0].Add(virtiotest.Buf{Addr: 0x100000, Len: 1, Writable: true})
		d.Queues[0].Kick()
		d.Queues[0].Wait(1)
		if err := half.Violations(); err != nil {
			t.Error(err)
		}
	})
}
