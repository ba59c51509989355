package chipset

import (
	"bytes"
	"testing"
)

// ICH9, 13.7.5: a change of RST_CPU from 0 to 1 resets.
func TestResetControl(t *testing.T) {
	var e events
	r := NewResetControl(e.take)
	if in8(r, 0) != 0 {
		t.Error("not 0 at power-on")
	}
	out8(r, 0, 2)
	e.want(t)
	if in8(r, 0) != 2 {
		t.Error("SYS_RST does not read back")
	}
	out8(r, 0, 6) // as Linux and FADT have it
	e.want(t, Reset)
	out8(r, 0, 6)
	e.want(t)
	out8(r, 0, 0)
	out8(r, 0, 0xF4)
	e.want(t, Reset)
	if in8(r, 0) != 4 {
		t.Errorf("reserved bits read back: %#x", in8(r, 0))
	}
}

// Linux i8042_flush: while the status says "output full" it reads data, at most
// 16 times; if that does not end, there is no controller.
func TestI8042NoController(t *testing.T) {
	var e events
	c := NewI8042(e.take)
	for range 17 {
		if in8(c, 4)&1 == 0 {
			t.Fatal("the output buffer is empty: Linux would go on to talk to the controller")
		}
		in8(c, 0)
	}
	for _, cmd := range []byte{0x20, 0xAA, 0xAD, 0xFF, 0xF0} {
		out8(c, 4, cmd)
		out8(c, 0, cmd)
	}
	e.want(t)
}

// Linux mach_reboot_fixups and kb_wait: status bit 1 must be clear, then 0xFE.
func TestI8042Reset(t *testing.T) {
	var e events
	c := NewI8042(e.take)
	if in8(c, 4)&i8042InputFull != 0 {
		t.Error("the input buffer is full: Linux would wait before it resets")
	}
	out8(c, 0, 0xFE)
	e.want(t)
	out8(c, 4, 0xFE)
	e.want(t, Reset)
	for off := uint64(1); off < 4; off++ {
		if in8(c, off) != 0xFF {
			t.Errorf("port %#x is claimed", 0x60+off)
		}
	}
}

// QEMU docs/specs/pvpanic.rst.
func TestPVPanic(t *testing.T) {
	var e events
	v := NewPVPanic(e.take)
	if in8(v, 0) != 3 {
		t.Errorf("supported events %#x", in8(v, 0))
	}
	out8(v, 0, 1)
	e.want(t, Panic)
	out8(v, 0, 2)
	e.want(t, CrashLoaded)
	out8(v, 0, 3)
	e.want(t, CrashLoaded)
	out8(v, 0, 0xFC)
	e.want(t)
}

func TestPowerEventString(t *testing.T) {
	for e, want := range map[PowerEvent]string{PowerOff: "power-off", Reset: "reset", Panic: "panic", CrashLoaded: "crash kernel started", 0: "unknown power event"} {
		if e.String() != want {
			t.Errorf("%d: %q", e, e)
		}
	}
}

// Wide accesses to byte registers leave what is not there as ones.
func TestWideAccesses(t *testing.T) {
	for _, h := range []Handler{NewResetControl(func(PowerEvent) {}), NewPVPanic(func(PowerEvent) {})} {
		p := make([]byte, 4)
		h.Read(0, p)
		if !bytes.Equal(p[1:], []byte{0xFF, 0xFF, 0xFF}) {
			t.Errorf("%T: % x", h, p)
		}
	}
}
