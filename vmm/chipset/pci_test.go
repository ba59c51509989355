package chipset

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// fakeFunction is 4096 bytes of memory.
type fakeFunction struct{ config [PCIConfigBytes]byte }

func (f *fakeFunction) ReadConfig(off int, p []byte)  { copy(p, f.config[off:off+len(p)]) }
func (f *fakeFunction) WriteConfig(off int, p []byte) { copy(f.config[off:off+len(p)], p) }

func newTestHost(t testing.TB) (*PCIHost, *fakeFunction, *events) {
	t.Helper()
	var e events
	h := NewPCIHost(NewResetControl(e.take))
	f := &fakeFunction{}
	if err := h.Add(3, f); err != nil {
		t.Fatal(err)
	}
	for i := range f.config {
		f.config[i] = byte(i) ^ byte(i>>8)<<4
	}
	return h, f, &e
}

func TestPCIAdd(t *testing.T) {
	h, f, _ := newTestHost(t)
	for _, slot := range []int{-1, 0, 3, 32} {
		if err := h.Add(slot, f); err == nil {
			t.Errorf("slot %d was taken twice or is not there", slot)
		}
	}
	if err := h.Add(4, nil); err == nil {
		t.Error("nothing was added")
	}
	if err := h.Add(31, f); err != nil {
		t.Error(err)
	}
}

func ecamOff(bus, dev, fn, reg uint64) uint64 { return bus<<20 | dev<<15 | fn<<12 | reg }

func TestHostBridge(t *testing.T) {
	h, _, _ := newTestHost(t)
	p := make([]byte, 4)
	h.ECAM().Read(0, p)
	if binary.LittleEndian.Uint32(p) != 0x0008_1B36 {
		t.Errorf("identity % x", p)
	}
	h.ECAM().Read(8, p)
	if binary.LittleEndian.Uint32(p)>>16 != 0x0600 {
		t.Errorf("class % x", p)
	}
	h.ECAM().Write(4, []byte{0xFF, 0xFF})
	for _, reg := range []uint64{4, 0x10, 0x34, 0x3C, 0x40, 0x100, 0xFFC} {
		h.ECAM().Read(reg, p)
		if !bytes.Equal(p, make([]byte, 4)) {
			t.Errorf("register %#x: % x", reg, p)
		}
	}
	h.ECAM().Read(0xE, p[:1])
	if p[0] != 0 {
		t.Errorf("header type %#x: want type 0, one function", p[0])
	}
}

// PCI Express 4.0, 7.2.2: every register of a function, in 1, 2 and 4 bytes;
// nothing answers elsewhere.
func TestECAM(t *testing.T) {
	h, f, _ := newTestHost(t)
	e := h.ECAM()
	for _, n := range []int{1, 2, 4} {
		for reg := 0; reg < PCIConfigBytes; reg += n {
			p := make([]byte, n)
			e.Read(ecamOff(0, 3, 0, uint64(reg)), p)
			if !bytes.Equal(p, f.config[reg:reg+n]) {
				t.Fatalf("register %#x: % x", reg, p)
			}
		}
	}
	e.Write(ecamOff(0, 3, 0, 0xFFC), []byte{1, 2, 3, 4})
	if !bytes.Equal(f.config[0xFFC:], []byte{1, 2, 3, 4}) {
		t.Error("the write did not arrive")
	}
	before := f.config
	for _, c := range []struct {
		off uint64
		n   int
	}{
		{ecamOff(0, 4, 0, 0), 4}, {ecamOff(0, 3, 1, 0), 4}, {ecamOff(0, 3, 7, 0), 4}, {ecamOff(1, 3, 0, 0), 4},
		{ecamOff(0, 3, 0, 1), 2}, {ecamOff(0, 3, 0, 2), 4}, {ecamOff(0, 3, 0, 3), 2}, {ecamOff(0, 3, 0, 0), 8}, {1 << 40, 4},
	} {
		p := make([]byte, c.n)
		e.Read(c.off, p)
		for _, v := range p {
			if v != 0xFF {
				t.Errorf("%#x, %d bytes: % x, want ones", c.off, c.n, p)
				break
			}
		}
		e.Write(c.off, make([]byte, c.n))
	}
	if before != f.config {
		t.Error("a write that hardware does not define arrived")
	}
}

// PCI 3.0, 3.2.2.3.2: CONFIG_ADDRESS and CONFIG_DATA.
func TestMechanism1(t *testing.T) {
	h, f, _ := newTestHost(t)
	m := h.Ports()
	address := func(v uint32) { m.Write(0, binary.LittleEndian.AppendUint32(nil, v)) }
	p := make([]byte, 4)

	address(0xFFFF_FFFF)
	m.Read(0, p)
	if binary.LittleEndian.Uint32(p) != 0x80FF_FFFC {
		t.Errorf("reserved bits of CONFIG_ADDRESS read back: % x", p)
	}
	for _, n := range []int{1, 2, 4} {
		for reg := 0; reg < 256; reg += n {
			address(0x8000_1800 | uint32(reg)&^3)
			p := make([]byte, n)
			m.Read(4+uint64(reg&3), p)
			if !bytes.Equal(p, f.config[reg:reg+n]) {
				t.Fatalf("register %#x, %d bytes: % x", reg, n, p)
			}
		}
	}
	address(0x8000_1840)
	m.Write(6, []byte{0xAB, 0xCD})
	if f.config[0x42] != 0xAB || f.config[0x43] != 0xCD {
		t.Error("the write did not arrive")
	}
	before := f.config
	for name, a := range map[string]uint32{"not enabled": 0x0000_1800, "other bus": 0x8001_1800, "empty slot": 0x8000_2000, "function 1": 0x8000_1900} {
		address(a)
		m.Read(4, p)
		if !bytes.Equal(p, []byte{0xFF, 0xFF, 0xFF, 0xFF}) {
			t.Errorf("%s: % x", name, p)
		}
		m.Write(4, make([]byte, 4))
	}
	address(0x8000_1800)
	m.Read(5, p[:2]) // unaligned
	if p[0] != 0xFF || p[1] != 0xFF {
		t.Errorf("unaligned: % x", p[:2])
	}
	m.Write(5, make([]byte, 2))
	if before != f.config {
		t.Error("a write that must vanish arrived")
	}
}

// Only 32-bit accesses reach CONFIG_ADDRESS; a byte at 0xCF9 is the reset register.
func TestMechanism1AddressPort(t *testing.T) {
	h, _, e := newTestHost(t)
	m := h.Ports()
	m.Write(0, []byte{0x00, 0x18, 0x00, 0x80})
	for off := uint64(0); off < 4; off++ {
		if off != 1 {
			out8(m, off, 6)
			if in8(m, off) != 0xFF {
				t.Errorf("a byte at %#x is answered", 0xCF8+off)
			}
		}
	}
	m.Write(2, []byte{6, 6})
	p := make([]byte, 4)
	m.Read(0, p)
	if !bytes.Equal(p, []byte{0x00, 0x18, 0x00, 0x80}) {
		t.Errorf("CONFIG_ADDRESS changed to % x", p)
	}
	e.want(t)
	out8(m, 1, 2)
	if in8(m, 1) != 2 {
		t.Error("0xCF9 is not the reset register")
	}
	out8(m, 1, 6)
	e.want(t, Reset)

	if in8(NewPCIHost(nil).Ports(), 1) != 0xFF {
		t.Error("0xCF9 is claimed without a reset register")
	}
}

func FuzzPCI(f *testing.F) {
	f.Add([]byte{0, 4, 0x00, 0x18, 0x00, 0x80, 4, 4, 0, 0, 0, 0})
	f.Add([]byte{0x80, 1, 0, 0, 0, 0, 0xFF, 8, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, script []byte) {
		h, _, _ := newTestHost(t)
		for ; len(script) >= 6; script = script[6:] {
			n := 1 << (script[1] & 3)
			data := make([]byte, 8)
			copy(data, script[2:6])
			if script[0]&0x80 != 0 {
				off := uint64(binary.LittleEndian.Uint32(script[2:])) & uint64(ECAMBytes-8)
				h.ECAM().Write(off, data[:n])
				h.ECAM().Read(off, data[:n])
				continue
			}
			if off := uint64(script[0] & 7); off+uint64(n) <= PCIPortBytes {
				h.Ports().Write(off, data[:n])
				h.Ports().Read(off, data[:n])
			}
		}
	})
}
