package pci_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/pci"
	"github.com/peervisor/peervisor/virtio/virtiotest"
)

const barAddr = 0xC001_0000

func newPCI(t *testing.T, half virtio.Device) (*virtiotest.PCI, *virtiotest.Driver) {
	t.Helper()
	d := virtiotest.NewDriver(t, half, virtiotest.Transports["pci"])
	return d.T.(*virtiotest.PCI), d
}

func newRaw(t *testing.T, half virtio.Device) *virtiotest.PCI {
	t.Helper()
	p := virtiotest.NewPCIRaw(t, half, virtiotest.NewMemory(t, 1<<20))
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func config(p *virtiotest.PCI, off, n int) []byte {
	b := make([]byte, n)
	p.Function.ReadConfig(off, b)
	return b
}

// capability is a walk of the list: the offsets of the capabilities by (id, cfg_type).
func capabilities(t *testing.T, p *virtiotest.PCI) map[[2]byte]int {
	t.Helper()
	found := map[[2]byte]int{}
	at := int(config(p, 0x34, 1)[0])
	for n := 0; at != 0; n++ {
		if n > 20 || at < 0x40 || at%4 != 0 {
			t.Fatalf("capability list leads to %#x", at)
		}
		b := config(p, at, 4)
		key := [2]byte{b[0], 0}
		if b[0] == 9 {
			key[1] = b[3]
		}
		found[key] = at
		at = int(b[1])
	}
	return found
}

// 4.1.2.1: what identifies the function.
func TestDiscovery_4_1_2_1(t *testing.T) {
	p := newRaw(t, virtiotest.NewDevice(1, 8))
	h := config(p, 0, 64)
	le := binary.LittleEndian
	if le.Uint16(h[0:]) != 0x1AF4 || le.Uint16(h[2:]) != 0x1040+42 {
		t.Errorf("vendor %#x, device %#x", le.Uint16(h[0:]), le.Uint16(h[2:]))
	}
	if h[8] < 1 || le.Uint16(h[0x2E:]) < 0x40 || h[0x3D] != 0 || h[0x0E] != 0 || h[6]&0x10 == 0 {
		t.Errorf("revision %d, subsystem %#x, pin %d, header %d, status %#x", h[8], le.Uint16(h[0x2E:]), h[0x3D], h[0x0E], h[6])
	}
}

// 4.1.4: one capability of each kind, where docs/machine-v1.md has them.
func TestCapabilities_4_1_4(t *testing.T) {
	p := newRaw(t, virtiotest.NewDevice(3, 8))
	caps := capabilities(t, p)
	for typ, want := range map[byte]struct{ off, lenBytes, capLen uint32 }{
		1: {0, 60, 16}, 2: {0x4000, 12, 20}, 3: {0x1000, 1, 16}, 4: {0x2000, 8, 16}, 5: {0, 0, 20},
	} {
		at, ok := caps[[2]byte{9, typ}]
		if !ok {
			t.Errorf("no capability of type %d", typ)
			continue
		}
		b := config(p, at, 20)
		le := binary.LittleEndian
		if uint32(b[2]) != want.capLen || b[4] != 0 || le.Uint32(b[8:]) != want.off || le.Uint32(b[12:]) != want.lenBytes {
			t.Errorf("capability of type %d is %x", typ, b)
		}
		if typ == 2 && le.Uint32(b[16:]) != 4 {
			t.Errorf("notify_off_multiplier is %d", le.Uint32(b[16:]))
		}
	}
	at := caps[[2]byte{0x11, 0}]
	b := config(p, at, 12)
	if at == 0 || b[2] != 3 || b[3] != 0 || binary.LittleEndian.Uint32(b[4:]) != 0x8000 || binary.LittleEndian.Uint32(b[8:]) != 0xC000 {
		t.Errorf("MSI-X capability at %#x is %x", at, b)
	}
	// A device without configuration space has no capability for one.
	half := virtiotest.NewDevice(1, 8)
	half.DeviceInfo.Config = nil
	if _, ok := capabilities(t, newRaw(t, half))[[2]byte{9, 4}]; ok {
		t.Error("device configuration capability without a configuration")
	}
}

// The configuration space: read-only bits keep their value, the rest is 0, and what
// lies beyond reads as ones.
func TestConfigSpace(t *testing.T) {
	p := newRaw(t, virtiotest.NewDevice(1, 8))
	before := config(p, 0, 256)
	for off := range 256 {
		if off >= 4 && off < 8 || off >= 0x10 && off < 0x14 || off == 0x3C || off >= 0x40 {
			continue
		}
		p.Function.WriteConfig(off, []byte{0xFF})
	}
	if !slices.Equal(config(p, 0, 256), before) {
		t.Error("a read-only register changed")
	}
	if b := config(p, 0x100, 4); !slices.Equal(b, []byte{0, 0, 0, 0}) {
		t.Errorf("extended configuration space reads %x", b)
	}
	for _, off := range []int{-1, 4096, 4094} {
		if b := config(p, off, 4); !slices.Equal(b, []byte{0xFF, 0xFF, 0xFF, 0xFF}) {
			t.Errorf("offset %d reads %x", off, b)
		}
		p.Function.WriteConfig(off, []byte{1, 2, 3, 4})
	}
}

// BAR 0 is sized, moved and switched as the PCI specification has it, and the machine is told.
func TestBAR(t *testing.T) {
	p := newRaw(t, virtiotest.NewDevice(1, 8))
	if p.ReadConfig32(0x10) != barAddr || p.Mapped() != 0 {
		t.Errorf("BAR is %#x, mapped at %#x", p.ReadConfig32(0x10), p.Mapped())
	}
	p.WriteConfig32(0x10, 0xFFFF_FFFF)
	if v := p.ReadConfig32(0x10); v != 0xFFFF_0000 {
		t.Errorf("size mask %#x", v)
	}
	p.WriteConfig32(0x14, 0xFFFF_FFFF)
	if v := p.ReadConfig32(0x14); v != 0 {
		t.Errorf("BAR 1 is %#x", v)
	}
	p.WriteConfig32(0x10, 0xC005_1234)
	p.WriteConfig16(4, 2)
	if p.Mapped() != 0xC005_0000 {
		t.Errorf("mapped at %#x", p.Mapped())
	}
	p.WriteConfig16(4, 6) // bus master: no new mapping
	p.WriteConfig32(0x10, 0xC006_0000)
	if p.Mapped() != 0xC006_0000 {
		t.Errorf("mapped at %#x after the move", p.Mapped())
	}
	p.Function.WriteConfig(0x12, []byte{7}) // by a byte
	if p.Mapped() != 0xC007_0000 {
		t.Errorf("mapped at %#x after a byte's move", p.Mapped())
	}
	p.FailMap = errors.New("overlap")
	p.WriteConfig32(0x10, 0xFEE0_0000)
	if p.Mapped() != 0 {
		t.Errorf("mapped at %#x where Map failed", p.Mapped())
	}
	p.FailMap = nil
	p.WriteConfig32(0x10, 0xC008_0000)
	p.WriteConfig16(4, 0)
	if p.Mapped() != 0 {
		t.Errorf("mapped at %#x with memory decoding off", p.Mapped())
	}
	p.WriteConfig16(4, 2)
	if err := p.Reset(); err != nil {
		t.Fatal(err)
	}
	if p.Mapped() != 0 || p.ReadConfig32(0x10) != barAddr {
		t.Errorf("after a reset: mapped at %#x, BAR %#x", p.Mapped(), p.ReadConfig32(0x10))
	}
}

// 4.1.4.3.1: fields of the common configuration.
func TestCommonConfig_4_1_4_3_1(t *testing.T) {
	p := newRaw(t, virtiotest.NewDevice(2, 64))
	for sel, want := range map[uint32]uint32{0: 0b11 | 1<<28 | 1<<29, 1: 1, 2: 0, 0xFFFF_FFFF: 0} {
		p.Write32(0, sel)
		if v := p.Read32(4); v != want || p.Read32(0) != sel {
			t.Errorf("device_feature[%d] is %#x", sel, v)
		}
	}
	p.Write32(8, 1)
	p.Write32(12, 1)
	if p.Read32(12) != 1 || p.Read32(8) != 1 {
		t.Errorf("driver_feature is %#x", p.Read32(12))
	}
	if p.Read16(18) != 2 {
		t.Errorf("num_queues is %d", p.Read16(18))
	}
	for q, want := range map[uint16]uint16{0: 64, 1: 64, 2: 0, 0xFFFF: 0} {
		p.Write16(22, q)
		if v := p.Read16(24); v != want || p.Read16(22) != q {
			t.Errorf("queue_size of %d is %d", q, v)
		}
	}
	p.Write16(22, 1)
	p.Write16(24, 32)
	p.WriteBAR(32, binary.LittleEndian.AppendUint64(nil, 0x1_0000_2000)) // 4.1.3.1: also by 64 bits
	p.Write32(40, 0x3000)
	p.Write32(44, 2)
	var b [8]byte
	p.ReadBAR(40, b[:])
	if p.Read16(24) != 32 || p.Read32(32) != 0x2000 || p.Read32(36) != 1 || binary.LittleEndian.Uint64(b[:]) != 0x2_0000_3000 {
		t.Errorf("size %d, desc %#x %#x, driver %x", p.Read16(24), p.Read32(36), p.Read32(32), b)
	}
	if p.Read16(30) != 1 || p.Read16(28) != 0 {
		t.Errorf("queue_notify_off %d, queue_enable %d", p.Read16(30), p.Read16(28))
	}
	p.Write16(24, 33) // neither 0 nor a power of two is never presented
	if v := p.Read16(24); v != 0 {
		t.Errorf("queue_size is %d", v)
	}
	// Writes of other widths than the field's are ignored.
	p.Write16(20, 0x0101)
	p.Write32(20, 0x01)
	if p.Read8(20) != 0 {
		t.Errorf("status is %#x", p.Read8(20))
	}
}

// 4.1.4.3.1: config_generation changes when the driver may have seen halves of two
// configurations, however often it changed.
func TestConfigGeneration_4_1_4_3_1(t *testing.T) {
	half := virtiotest.NewDevice(1, 8)
	p, d := newPCI(t, half)
	d.Start(0)
	read := func() byte { var b [1]byte; p.ReadConfig(0, b[:]); return b[0] }
	for range 3 {
		gen := p.Read8(21)
		read()
		if p.Read8(21) != gen {
			t.Error("generation changed without a change")
		}
		for i := range 256 { // an 8-bit count of changes would be back where it was
			half.Channel().ConfigChanged([]byte{byte(i), byte(read()), 0, 0, 0, 0, 0, 1})
		}
		read()
		if p.Read8(21) == gen {
			t.Error("generation is the same after 256 changes")
		}
	}
}

// 4.1.4.5.1: ISR status: bits before notifications, reset by a read, and the
// interrupt status bit of the PCI status without MSI-X.
func TestISR_4_1_4_5_1(t *testing.T) {
	half := virtiotest.NewDevice(1, 8)
	p, d := newPCI(t, half)
	p.WriteConfig16(0x42, 0) // MSI-X off
	d.Start(0)
	before := p.Signals[1].Load()
	d.Queues[0].Add(virtiotest.Buf{Addr: 0x100000, Len: 1, Writable: true})
	d.Queues[0].Kick()
	d.Queues[0].Wait(1)
	virtiotest.WaitFor(t, "interrupt status", func() bool { return config(p, 6, 1)[0]&8 != 0 })
	if v := p.Read8(0x1000); v != 1 || p.Read8(0x1000) != 0 || config(p, 6, 1)[0]&8 != 0 {
		t.Errorf("ISR status is %#x, or not reset by the read", v)
	}
	half.Channel().ConfigChanged(make([]byte, 8))
	if v := p.Read8(0x1000); v != 2 {
		t.Errorf("ISR status is %#x after a configuration change", v)
	}
	if p.Signals[1].Load() != before || p.Signals[0].Load() != 0 {
		t.Error("a vector was signalled with MSI-X off")
	}
}

// 4.1.5.1.2: vectors are mapped, unmapped, refused, and all unmapped by a reset.
// 4.1.5.3.1, 4.1.5.4.1: no interrupt without a vector.
func TestVectors_4_1_5_1_2(t *testing.T) {
	half := virtiotest.NewDevice(2, 8)
	p, d := newPCI(t, half)
	if p.Read16(16) != 0xFFFF || p.Read16(26) != 0xFFFF {
		t.Errorf("vectors are mapped at first: %#x %#x", p.Read16(16), p.Read16(26))
	}
	for _, v := range []uint16{0, 1, 2, 3, 0x7FF, 0xFFFF} {
		want := v
		if v > 2 {
			want = 0xFFFF
		}
		p.Write16(16, v)
		p.Write16(22, 1)
		p.Write16(26, v)
		if p.Read16(16) != want || p.Read16(26) != want {
			t.Errorf("mapping %#x reads back as %#x, %#x", v, p.Read16(16), p.Read16(26))
		}
	}
	d.Start(0)
	use := func(q int) {
		before := p.Stats().Queues[q].Interrupts
		d.Queues[q].SetUsedEvent(d.Queues[q].UsedIdx())
		d.Queues[q].Add(virtiotest.Buf{Addr: 0x100000, Len: 1, Writable: true})
		d.Queues[q].Kick()
		d.Queues[q].Wait(1)
		virtiotest.WaitFor(t, "notification", func() bool { return p.Stats().Queues[q].Interrupts == before+1 })
		// Counted before it is sent: a pause waits for it.
		if err := errors.Join(p.Pause(t.Context()), p.Resume()); err != nil {
			t.Fatal(err)
		}
	}
	use(0)
	p.Write16(22, 1)
	p.Write16(26, 0) // both queues may share a vector, with the configuration, too
	use(1)
	p.Write16(26, 0xFFFF)
	use(1)
	if a, b, c := p.Signals[0].Load(), p.Signals[1].Load(), p.Signals[2].Load(); a != 1 || b != 1 || c != 0 {
		t.Errorf("signals %d %d %d", a, b, c)
	}
	p.Write16(16, 0xFFFF)
	half.Channel().ConfigChanged(make([]byte, 8))
	if p.Signals[0].Load() != 1 {
		t.Error("configuration interrupt without a vector")
	}
	p.SetStatus(0)
	virtiotest.WaitFor(t, "status 0", func() bool { return p.Status() == 0 })
	for q := range uint16(2) {
		if p.Write16(22, q); p.Read16(26) != 0xFFFF || p.Read16(16) != 0xFFFF {
			t.Error("vectors are mapped after a reset")
		}
	}
}

// MSI-X (PCI 3.0, 6.8.2): masks, pending bits, the function mask.
func TestMSIX(t *testing.T) {
	half := virtiotest.NewDevice(1, 8)
	p, d := newPCI(t, half)
	d.Start(0)
	push := func() { half.Channel().ConfigChanged(make([]byte, 8)) }
	check := func(what string, signals uint64, pending uint32) {
		t.Helper()
		if got := p.Signals[0].Load(); got != signals || p.Read32(0xC000) != pending {
			t.Errorf("%s: %d signals, pending %#x; want %d, %#x", what, got, p.Read32(0xC000), signals, pending)
		}
	}
	if r := p.Routes[1].Load(); r != 0xFEE0_0000<<32|0x41 {
		t.Errorf("vector 1 leads to %#x", r)
	}
	push()
	check("unmasked", 1, 0)
	p.Write32(0x800C, 1)
	push()
	push()
	check("masked", 1, 1)
	if p.Masks[0].Load() != 1 || p.Read32(0x800C) != 1 {
		t.Errorf("%d MaskVector, control %#x", p.Masks[0].Load(), p.Read32(0x800C))
	}
	p.Write32(0xC000, 0) // read-only
	p.Write32(0x8008, 0x55)
	p.Write32(0x800C, 0)
	check("unmasked again", 2, 0)
	if r := p.Routes[0].Load(); r != 0xFEE0_0000<<32|0x55 {
		t.Errorf("vector 0 leads to %#x", r)
	}
	p.WriteConfig16(0x42, 0xC000)
	push()
	check("function masked", 2, 1)
	p.WriteConfig16(0x42, 0x8000)
	check("function unmasked", 3, 0)
	p.WriteConfig16(0x42, 0x4000)
	push()
	check("off", 3, 0)
	p.WriteConfig16(0x42, 0x8000)
	check("on again", 3, 0)
	// By 64 bits; bits 0 and 1 of the address are 0; reserved control bits stay 0.
	p.WriteBAR(0x8000, binary.LittleEndian.AppendUint64(nil, 0x1_FEE0_1003))
	p.WriteBAR(0x8008, binary.LittleEndian.AppendUint64(nil, 0xFFFF_FFFE_0000_0077))
	if p.Read32(0x8000) != 0xFEE0_1000 || p.Read32(0x8004) != 1 || p.Read32(0x8008) != 0x77 || p.Read32(0x800C) != 0 {
		t.Errorf("entry reads %#x %#x %#x %#x", p.Read32(0x8000), p.Read32(0x8004), p.Read32(0x8008), p.Read32(0x800C))
	}
	p.Write16(0x8000, 7) // other widths are ignored
	p.Write32(0x8020, 7) // beyond the table: 2 vectors
	if p.Read32(0x8000) != 0xFEE0_1000 || p.Read32(0x8020) != 0 {
		t.Error("a write beside the table had an effect")
	}
}

// 4.1.4.9: accesses to pci_cfg_data are accesses to the BAR that the capability names.
func TestConfigAccessCapability_4_1_4_9(t *testing.T) {
	p := newRaw(t, virtiotest.NewDevice(1, 8))
	at := capabilities(t, p)[[2]byte{9, 5}]
	window := func(bar byte, off, n uint32) {
		p.Function.WriteConfig(at+4, []byte{bar})
		p.WriteConfig32(at+8, off)
		p.WriteConfig32(at+12, n)
	}
	window(0, 20, 1)
	p.Function.WriteConfig(at+16, []byte{3})
	if s := p.Status(); s != 3 {
		t.Errorf("status is %d", s)
	}
	window(0, 0x2000, 4)
	if b := config(p, at+16, 4); !slices.Equal(b, []byte{1, 2, 3, 4}) {
		t.Errorf("device configuration reads %v", b)
	}
	for _, w := range [][3]uint32{{0, 20, 3}, {1, 20, 1}, {0, 0xFFFF_FFFF, 1}, {0, 0x10000, 4}, {0, 21, 2}, {0, 20, 0}} {
		window(byte(w[0]), w[1], w[2])
		p.Function.WriteConfig(at+16, []byte{7, 7, 7, 7})
		_ = config(p, at+16, 4)
	}
	if s := p.Status(); s != 3 {
		t.Errorf("status is %d after illegal accesses", s)
	}
}

func TestConfigIsChecked(t *testing.T) {
	mem := virtiotest.NewMemory(t, 1<<20)
	good := func() pci.Config {
		return pci.Config{Name: "x", Device: virtiotest.NewDevice(1, 8), Memory: mem, Slot: 1, BAR: barAddr, MSIX: &virtiotest.PCI{}, Mapper: &virtiotest.PCI{}}
	}
	for name, f := range map[string]func(c *pci.Config){
		"no MSIX":      func(c *pci.Config) { c.MSIX = nil },
		"no mapper":    func(c *pci.Config) { c.Mapper = nil },
		"no half":      func(c *pci.Config) { c.Device = nil },
		"slot 0":       func(c *pci.Config) { c.Slot = 0 },
		"slot 32":      func(c *pci.Config) { c.Slot = 32 },
		"BAR 0":        func(c *pci.Config) { c.BAR = 0 },
		"BAR crooked":  func(c *pci.Config) { c.BAR += 4096 },
		"1024 queues":  func(c *pci.Config) { c.Device = virtiotest.NewDevice(1024, 8) },
		"bad features": func(c *pci.Config) { d := virtiotest.NewDevice(1, 8); d.DeviceInfo.Features = 1 << 30; c.Device = d },
	} {
		c := good()
		f(&c)
		if _, err := pci.New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDoorbells(t *testing.T) {
	p := newRaw(t, virtiotest.NewDevice(3, 8))
	bells := p.Doorbells()
	if len(bells) != 3 || p.Vectors() != 4 {
		t.Fatalf("%d doorbells, %d vectors", len(bells), p.Vectors())
	}
	for i, b := range bells {
		if b.OffsetBytes != 0x4000+4*uint64(i) || b.LenBytes != 2 || b.Match || b.FD < 0 {
			t.Errorf("doorbell %d is %+v", i, b)
		}
	}
}
