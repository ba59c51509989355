package chipset

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"
)

func newTestPM(t testing.TB) (*PM, *fakeClock, *fakeLine, *events) {
	t.Helper()
	clock, line, e := newFakeClock("2026-01-01T00:00:00Z"), newFakeLine(), &events{}
	m := NewPM(PMConfig{SCI: line, Clock: clock, Power: e.take})
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m, clock, line, e
}

func in16(h Handler, off uint64) uint16 {
	var p [2]byte
	h.Read(off, p[:])
	return binary.LittleEndian.Uint16(p[:])
}

func out16(h Handler, off uint64, v uint16) {
	h.Write(off, binary.LittleEndian.AppendUint16(nil, v))
}

func in32(h Handler, off uint64) uint32 {
	var p [4]byte
	h.Read(off, p[:])
	return binary.LittleEndian.Uint32(p[:])
}

// ACPI 6.4, 4.8.3.1: status by write 1 to clear, SCI while status and enable meet.
func TestPowerButton(t *testing.T) {
	m, _, line, e := newTestPM(t)
	m.PowerButton()
	line.want(t, false) // not enabled
	if in16(m, 0) != 0x100 {
		t.Errorf("PM1_STS %#x", in16(m, 0))
	}
	out16(m, 2, 0x100)
	line.want(t, true)
	if in16(m, 2) != 0x100 {
		t.Errorf("PM1_EN %#x: Linux looks whether the bit was taken", in16(m, 2))
	}
	out16(m, 0, 0xFEFF)
	line.want(t, true)
	out16(m, 0, 0x100)
	line.want(t, false)
	if in16(m, 0) != 0 {
		t.Errorf("PM1_STS %#x", in16(m, 0))
	}
	m.PowerButton()
	line.want(t, true)
	out16(m, 2, 0)
	line.want(t, false)
	e.want(t)
	if in16(m, 2) != 0 {
		t.Errorf("PM1_EN %#x", in16(m, 2))
	}
}

// Byte accesses reach the same registers, and leave the neighbours alone.
func TestPMByteAccess(t *testing.T) {
	m, _, line, _ := newTestPM(t)
	m.PowerButton()
	out8(m, 3, 0x01) // high byte of PM1_EN
	line.want(t, true)
	out8(m, 2, 0x20)
	if in16(m, 2) != 0x120 {
		t.Errorf("PM1_EN %#x", in16(m, 2))
	}
	out8(m, 0, 0xFF) // low byte of PM1_STS
	line.want(t, true)
	out8(m, 1, 0x01)
	line.want(t, false)
	m.Write(0, []byte{0, 0, 0, 0}) // both at once
	if in16(m, 2) != 0 {
		t.Errorf("PM1_EN %#x", in16(m, 2))
	}
}

// ACPI 6.4, 4.8.3.2: SCI_EN is set from the start; SLP_EN is write-only.
func TestPM1Control(t *testing.T) {
	m, _, _, e := newTestPM(t)
	if in16(m, 4) != 1 {
		t.Errorf("PM1_CNT %#x, want SCI_EN", in16(m, 4))
	}
	out16(m, 4, 0) // SCI_EN stays
	if in16(m, 4) != 1 {
		t.Errorf("PM1_CNT %#x", in16(m, 4))
	}
	for typ := range uint16(8) {
		out16(m, 4, typ<<10)
		e.want(t) // SLP_EN is what counts
		out16(m, 4, typ<<10|1<<13)
		if typ == SleepTypeS5 {
			e.want(t, PowerOff)
		} else {
			e.want(t)
		}
		if got := in16(m, 4); got != typ<<10|1 {
			t.Errorf("PM1_CNT %#x", got)
		}
	}
	out16(m, 4, SleepTypeS5<<10)
	out8(m, 5, SleepTypeS5<<2|1<<5) // the byte with both
	e.want(t, PowerOff)
	out8(m, 4, 0) // the other byte does not sleep again
	e.want(t)
}

// ACPI 6.4, 4.8.2.1: 3.579545 MHz, 32 bits, and TMR_STS when the top bit changes.
func TestPMTimer(t *testing.T) {
	m, clock, line, _ := newTestPM(t)
	if v := in32(m, 8); v != 0 {
		t.Errorf("starts at %d", v)
	}
	clock.advance(time.Second)
	if v := in32(m, 8); v != PMTimerHz {
		t.Errorf("after a second: %d", v)
	}
	m.Write(8, []byte{1, 2, 3, 4}) // read-only
	clock.advance(599 * time.Second)
	if v := in32(m, 8); v != 2147727000 || in16(m, 0) != 1 {
		t.Errorf("after 600 s: %d, PM1_STS %#x", v, in16(m, 0))
	}
	out16(m, 0, 1)
	if in16(m, 0) != 0 {
		t.Error("TMR_STS is not cleared")
	}
	if clock.planned() != 0 {
		t.Error("a timer runs although nothing is enabled")
	}
	out16(m, 2, 1)
	line.want(t, false)
	clock.advance(599 * time.Second)
	line.want(t, false)
	clock.advance(2 * time.Second)
	line.want(t, true)
	if v := in32(m, 8); v >= 1<<31 {
		t.Errorf("no wrap: %d", v)
	}
	out16(m, 0, 1)
	line.want(t, false)
	clock.advance(600 * time.Second)
	line.want(t, true)
	out16(m, 2, 0)
	if clock.planned() != 0 {
		t.Error("a timer runs although nothing is enabled")
	}
}

// Ten years do not overflow the arithmetic.
func TestPMTimerLong(t *testing.T) {
	m, clock, _, _ := newTestPM(t)
	const seconds = 10 * 365 * 86400
	clock.advance(seconds * time.Second)
	if v := in32(m, 8); v != uint32(seconds*PMTimerHz%(1<<32)) {
		t.Errorf("after ten years: %d", v)
	}
}

func TestPMLineError(t *testing.T) {
	m, _, line, _ := newTestPM(t)
	line.err = errors.New("no such pin")
	out16(m, 2, 0x100)
	m.PowerButton()
	if !errors.Is(m.Err(), line.err) {
		t.Errorf("got %v", m.Err())
	}
}

func TestPMClose(t *testing.T) {
	m, clock, _, _ := newTestPM(t)
	out16(m, 2, 1)
	if clock.planned() != 1 {
		t.Error("no timer")
	}
	if err := m.Close(); err != nil || clock.planned() != 0 {
		t.Errorf("a timer is left (%v)", err)
	}
	out16(m, 2, 0)
	out16(m, 2, 1)
	if clock.planned() != 0 {
		t.Error("a closed device plans a timer")
	}
}

func FuzzPM(f *testing.F) {
	f.Add([]byte{2, 1, 0x00, 0x01, 4, 1, 0x00, 0x34})
	f.Fuzz(func(t *testing.T, script []byte) {
		m, clock, _, _ := newTestPM(t)
		for ; len(script) >= 4; script = script[4:] {
			n := 1 << (script[1] & 3)
			p := make([]byte, 8)
			copy(p, script[2:4])
			if off := uint64(script[0] & 15); off+uint64(n) <= PMBytes {
				m.Write(off, p[:n])
				m.Read(off, p[:n])
			}
			clock.advance(time.Duration(script[0]) * time.Second)
		}
	})
}
