package chipset

import (
	"errors"
	"testing"
	"time"
)

func newTestRTC(t testing.TB, now string) (*RTC, *fakeClock, *fakeLine) {
	t.Helper()
	clock, line := newFakeClock(now), newFakeLine()
	r := NewRTC(RTCConfig{IRQ: line, Clock: clock})
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r, clock, line
}

func cmosRead(r *RTC, index byte) byte {
	out8(r, 0, index)
	return in8(r, 1)
}

func cmosWrite(r *RTC, index, v byte) {
	out8(r, 0, index)
	out8(r, 1, v)
}

// wantTime compares seconds, minutes, hours, weekday, day, month, year, century.
func wantTime(t *testing.T, r *RTC, want [8]byte) {
	t.Helper()
	var got [8]byte
	for i, index := range []byte{0, 2, 4, 6, 7, 8, 9, 0x32} {
		got[i] = cmosRead(r, index)
	}
	if got != want {
		t.Errorf("time % x, want % x", got, want)
	}
}

// MC146818A, table 3: binary and BCD, 24 and 12 hours.
func TestRTCFormats(t *testing.T) {
	r, clock, _ := newTestRTC(t, "2026-11-22T17:08:59.5Z") // a Sunday
	wantTime(t, r, [8]byte{0x59, 0x08, 0x17, 1, 0x22, 0x11, 0x26, 0x20})
	cmosWrite(r, 0x0B, 0x06)
	wantTime(t, r, [8]byte{59, 8, 17, 1, 22, 11, 26, 20})
	cmosWrite(r, 0x0B, 0x04)
	wantTime(t, r, [8]byte{59, 8, 0x80 | 5, 1, 22, 11, 26, 20})
	cmosWrite(r, 0x0B, 0x00)
	wantTime(t, r, [8]byte{0x59, 0x08, 0x85, 1, 0x22, 0x11, 0x26, 0x20})
	for hour, want := range map[int]byte{0: 0x12, 1: 0x01, 11: 0x11, 12: 0x92, 13: 0x81, 23: 0x91} {
		clock.now = time.Date(2026, 1, 1, hour, 0, 0, 0, time.UTC)
		if got := cmosRead(r, 4); got != want {
			t.Errorf("hour %d reads %#x, want %#x", hour, got, want)
		}
	}
	clock.now = time.Date(2026, 11, 22, 23, 59, 59, 0, time.UTC)
	cmosWrite(r, 0x0B, 0x02)
	clock.advance(time.Second)
	wantTime(t, r, [8]byte{0, 0, 0, 2, 0x23, 0x11, 0x26, 0x20})
}

// The clock shows UTC, whatever the zone of the time that it is given.
func TestRTCIsUTC(t *testing.T) {
	r, clock, _ := newTestRTC(t, "2026-01-01T00:00:00Z")
	clock.now = clock.now.In(time.FixedZone("east", 3600))
	if got := cmosRead(r, 4); got != 0 {
		t.Errorf("hour %#x", got)
	}
}

// What Linux rtc-cmos and mc146818 look at when they probe: 24-hour mode, a
// valid battery, the dividers, and UIP clear at some time.
func TestRTCProbe(t *testing.T) {
	r, clock, line := newTestRTC(t, "2026-01-01T00:00:00.999Z")
	if b := cmosRead(r, 0x0B); b != 0x02 {
		t.Errorf("register B %#x, want 24 hours, BCD, nothing enabled", b)
	}
	if d := cmosRead(r, 0x0D); d != 0x80 {
		t.Errorf("register D %#x, want VRT", d)
	}
	if a := cmosRead(r, 0x0A); a != 0xA6 {
		t.Errorf("register A %#x, want UIP, 32 kHz, 1024 Hz", a)
	}
	clock.advance(time.Millisecond)
	if a := cmosRead(r, 0x0A); a != 0x26 {
		t.Errorf("register A %#x, want no UIP in the new second", a)
	}
	cmosWrite(r, 0x0A, 0xFF&^0x70|0x20)
	if a := cmosRead(r, 0x0A); a != 0x2F {
		t.Errorf("register A %#x: UIP is read-only", a)
	}
	cmosWrite(r, 0x0D, 0)
	cmosWrite(r, 0x0C, 0xFF)
	if cmosRead(r, 0x0D) != 0x80 || cmosRead(r, 0x0C)&0x80 != 0 {
		t.Error("C and D are not read-only")
	}
	if in8(r, 0) != 0xFF {
		t.Error("the index port is readable")
	}
	line.want(t, false)
}

// UIP is set for 2228 us before each second (MC146818A, table 4).
func TestRTCUpdateInProgress(t *testing.T) {
	r, clock, _ := newTestRTC(t, "2026-01-01T00:00:00.997771Z")
	if cmosRead(r, 0x0A)&0x80 != 0 {
		t.Error("too early")
	}
	clock.advance(time.Microsecond)
	if cmosRead(r, 0x0A)&0x80 == 0 {
		t.Error("too late")
	}
	cmosWrite(r, 0x0B, 0x82)
	if cmosRead(r, 0x0A)&0x80 != 0 {
		t.Error("UIP while SET")
	}
}

// As Linux mc146818_set_time does it: SET, dividers in reset, registers, SET
// off, dividers on. The first second ends half a second later.
func TestRTCSetByLinux(t *testing.T) {
	r, clock, _ := newTestRTC(t, "2026-01-01T00:00:00.7Z")
	cmosWrite(r, 0x0B, 0x82)
	cmosWrite(r, 0x0A, 0x76)
	for index, v := range map[byte]byte{0: 0x58, 2: 0x59, 4: 0x23, 6: 0x04, 7: 0x31, 8: 0x12, 9: 0x99, 0x32: 0x20} {
		cmosWrite(r, index, v)
	}
	clock.advance(10 * time.Second) // the clock stands still
	wantTime(t, r, [8]byte{0x58, 0x59, 0x23, 0x04, 0x31, 0x12, 0x99, 0x20})
	cmosWrite(r, 0x0B, 0x02)
	clock.advance(10 * time.Second)
	wantTime(t, r, [8]byte{0x58, 0x59, 0x23, 0x04, 0x31, 0x12, 0x99, 0x20})
	cmosWrite(r, 0x0A, 0x26)
	clock.advance(499 * time.Millisecond)
	if s := cmosRead(r, 0); s != 0x58 {
		t.Errorf("second %#x before half a second is over", s)
	}
	clock.advance(time.Millisecond)
	if s := cmosRead(r, 0); s != 0x59 {
		t.Errorf("second %#x after half a second", s)
	}
	clock.advance(time.Second)
	wantTime(t, r, [8]byte{0, 0, 0, 6, 1, 1, 0, 0x21}) // 2100-01-01 is a Friday
}

// SET alone leaves the dividers running: the fraction of the second stays.
func TestRTCSetKeepsFraction(t *testing.T) {
	r, clock, _ := newTestRTC(t, "2026-01-01T00:00:00.9Z")
	cmosWrite(r, 0x0B, 0x82)
	cmosWrite(r, 4, 0x12)
	cmosWrite(r, 0x0B, 0x02)
	clock.advance(100 * time.Millisecond)
	wantTime(t, r, [8]byte{1, 0, 0x12, 5, 1, 1, 0x26, 0x20})
}

// A register written without SET changes that part of the running time only.
func TestRTCWriteWhileRunning(t *testing.T) {
	r, clock, _ := newTestRTC(t, "2026-06-15T10:20:30.5Z")
	cmosWrite(r, 2, 0x55)
	clock.advance(500 * time.Millisecond)
	wantTime(t, r, [8]byte{0x31, 0x55, 0x10, 2, 0x15, 6, 0x26, 0x20})
}

// Any bytes make some time, also the far end of what the registers can hold.
func TestRTCNonsense(t *testing.T) {
	r, clock, _ := newTestRTC(t, "2026-01-01T00:00:00Z")
	for _, mode := range []byte{0, 2, 4, 6} {
		cmosWrite(r, 0x0B, 0x80|mode)
		for _, index := range []byte{0, 2, 4, 6, 7, 8, 9, 0x32} {
			cmosWrite(r, index, 0xFF)
		}
		cmosWrite(r, 0x0B, 0x70|mode)
		clock.advance(time.Second)
		cmosRead(r, 0x0C)
	}
	cmosWrite(r, 0x0B, 0x86)
	for index, v := range map[byte]byte{0: 58, 2: 59, 4: 23, 7: 31, 8: 12, 9: 99, 0x32: 99} {
		cmosWrite(r, index, v)
	}
	cmosWrite(r, 0x0B, 0x06)
	clock.advance(time.Second)
	wantTime(t, r, [8]byte{59, 59, 23, 6, 31, 12, 99, 99}) // 9999-12-31
}

func TestRTCMemory(t *testing.T) {
	r, _, _ := newTestRTC(t, "2026-01-01T00:00:00Z")
	r.SetMemory(0x10, 0xAB)
	r.SetMemory(0x0D, 0)
	r.SetMemory(128, 0)
	r.SetMemory(-1, 0)
	if cmosRead(r, 0x90) != 0xAB || cmosRead(r, 0x0D) != 0x80 { // bit 7 of the index is the NMI mask
		t.Error("CMOS memory is wrong")
	}
	for i := byte(0x0E); i < 0x80; i++ {
		if i != RTCCentury {
			cmosWrite(r, i, i^0x55)
		}
	}
	for i := byte(0x0E); i < 0x80; i++ {
		if i != RTCCentury && cmosRead(r, i) != i^0x55 {
			t.Errorf("byte %#x is %#x", i, cmosRead(r, i))
		}
	}
}

// MC146818A: AIE interrupts when time and alarm match; reading C clears.
func TestRTCAlarm(t *testing.T) {
	r, clock, line := newTestRTC(t, "2026-01-01T22:59:58.25Z")
	cmosWrite(r, 1, 0x05)
	cmosWrite(r, 3, 0x00)
	cmosWrite(r, 5, 0x23)
	cmosRead(r, 0x0C)
	cmosWrite(r, 0x0B, 0x22)
	clock.advance(6 * time.Second)
	line.want(t, false)
	clock.advance(749 * time.Millisecond)
	line.want(t, false)
	clock.advance(time.Millisecond)
	line.want(t, true)
	if c := cmosRead(r, 0x0C); c != 0xF0 { // an update and a period have happened as well
		t.Errorf("register C %#x", c)
	}
	line.want(t, false)
	if c := cmosRead(r, 0x0C); c != 0 {
		t.Errorf("register C %#x when read again", c)
	}
	clock.advance(24*time.Hour - time.Millisecond)
	line.want(t, false)
	clock.advance(time.Millisecond)
	line.want(t, true)
}

// Alarm registers from 0xC0 on match everything.
func TestRTCAlarmDontCare(t *testing.T) {
	for _, c := range []struct {
		seconds, minutes, hours byte
		want                    time.Duration
	}{
		{0xFF, 0xFF, 0xFF, time.Second},
		{0x30, 0xC0, 0xFF, 20 * time.Second},
		{0x10, 0xFF, 0xFF, time.Minute},
		{0xFF, 0x00, 0xFF, 49*time.Minute + 50*time.Second},
		{0x00, 0x00, 0xFF, 49*time.Minute + 50*time.Second},
		{0xFF, 0xFF, 0x13, 49*time.Minute + 50*time.Second},
		{0x09, 0x10, 0x12, 24*time.Hour - time.Second},
		{0x10, 0x10, 0x12, 24 * time.Hour},
	} {
		r, clock, line := newTestRTC(t, "2026-01-01T12:10:10Z")
		cmosWrite(r, 1, c.seconds)
		cmosWrite(r, 3, c.minutes)
		cmosWrite(r, 5, c.hours)
		cmosWrite(r, 0x0B, 0x22)
		clock.advance(c.want - time.Nanosecond)
		line.want(t, false)
		clock.advance(time.Nanosecond)
		line.want(t, true)
	}
	r, clock, line := newTestRTC(t, "2026-01-01T12:10:10Z")
	cmosWrite(r, 5, 0x77) // an hour that never comes
	cmosWrite(r, 0x0B, 0x22)
	clock.advance(48 * time.Hour)
	line.want(t, false)
}

func TestRTCUpdateInterrupt(t *testing.T) {
	r, clock, line := newTestRTC(t, "2026-01-01T00:00:00.5Z")
	cmosWrite(r, 0x0B, 0x12)
	for i := range 3 {
		clock.advance(499 * time.Millisecond)
		line.want(t, false)
		clock.advance(time.Millisecond)
		line.want(t, true)
		if clock.planned() != 0 {
			t.Error("a timer runs although the interrupt is pending")
		}
		if c := cmosRead(r, 0x0C); c&0x90 != 0x90 {
			t.Errorf("round %d: register C %#x", i, c)
		}
		line.want(t, false)
		clock.advance(500 * time.Millisecond)
	}
	cmosWrite(r, 0x0B, 0x92) // SET clears UIE
	if cmosRead(r, 0x0B) != 0x82 {
		t.Errorf("register B %#x", cmosRead(r, 0x0B))
	}
}

// MC146818A, table 5: rates of the periodic interrupt.
func TestRTCPeriodic(t *testing.T) {
	for rs, hz := range map[byte]int{1: 256, 2: 128, 3: 8192, 6: 1024, 9: 128, 15: 2} {
		r, clock, line := newTestRTC(t, "2026-01-01T00:00:00Z")
		cmosWrite(r, 0x0A, 0x20|rs)
		cmosWrite(r, 0x0B, 0x42)
		period := time.Second / time.Duration(hz)
		for range 5 {
			clock.advance(period + 2*time.Nanosecond)
			line.want(t, true)
			if c := cmosRead(r, 0x0C); c&0xC0 != 0xC0 {
				t.Errorf("rate %d: register C %#x", rs, c)
			}
			line.want(t, false)
		}
		if _, edges := line.state(); edges != 5 {
			t.Errorf("rate %d: %d interrupts", rs, edges)
		}
	}
	r, clock, line := newTestRTC(t, "2026-01-01T00:00:00Z")
	cmosWrite(r, 0x0A, 0x20) // no rate
	cmosWrite(r, 0x0B, 0x42)
	clock.advance(10 * time.Second)
	line.want(t, false)
}

// Flags are set while their interrupt is not enabled too, for those who poll.
func TestRTCPolledFlags(t *testing.T) {
	r, clock, line := newTestRTC(t, "2026-01-01T00:00:00.5Z")
	cmosRead(r, 0x0C)
	clock.advance(400 * time.Millisecond)
	if c := cmosRead(r, 0x0C); c != 0x40 {
		t.Errorf("register C %#x, want PF", c)
	}
	clock.advance(100 * time.Millisecond)
	if c := cmosRead(r, 0x0C); c&0xD0 != 0x50 {
		t.Errorf("register C %#x, want PF and UF and no IRQF", c)
	}
	clock.advance(time.Second)
	line.want(t, false)
	cmosWrite(r, 0x0B, 0x12) // the flag is there already
	line.want(t, true)
}

// The host's clock may be set back: nothing is signalled, and time goes on.
func TestRTCClockSetBack(t *testing.T) {
	r, clock, line := newTestRTC(t, "2026-01-01T10:00:00Z")
	cmosWrite(r, 0x0B, 0x12)
	clock.now = clock.now.Add(-time.Hour)
	if c := cmosRead(r, 0x0C); c != 0 {
		t.Errorf("register C %#x", c)
	}
	clock.advance(time.Second)
	line.want(t, true)
	wantTime(t, r, [8]byte{1, 0, 9, 5, 1, 1, 0x26, 0x20})
}

func TestRTCLineErrorAndClose(t *testing.T) {
	r, clock, line := newTestRTC(t, "2026-01-01T00:00:00Z")
	line.err = errors.New("no such pin")
	cmosWrite(r, 0x0B, 0x12)
	clock.advance(time.Second)
	if !errors.Is(r.Err(), line.err) {
		t.Errorf("got %v", r.Err())
	}
	cmosRead(r, 0x0C)
	if clock.planned() != 1 {
		t.Error("no timer")
	}
	for range 2 {
		if err := r.Close(); err != nil || clock.planned() != 0 {
			t.Errorf("a timer is left (%v)", err)
		}
	}
}

// Close waits for a timer's call that has begun.
func TestOneShotJoins(t *testing.T) {
	entered, leave, closed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	o := &oneShot{clock: SystemClock(), f: func() { close(entered); <-leave }}
	o.arm(0)
	<-entered
	go func() { o.close(); close(closed) }()
	select {
	case <-closed:
		t.Error("close did not wait")
	default:
	}
	close(leave)
	<-closed
	o.arm(0) // closed: plans nothing
}

func FuzzRTC(f *testing.F) {
	f.Add([]byte{0x0B, 0x82, 0x00, 0x58, 0x0B, 0x72, 0x0C, 0x00})
	f.Add([]byte{0x0A, 0x76, 0x09, 0x99, 0x0A, 0x2F, 0x0B, 0x70})
	f.Fuzz(func(t *testing.T, script []byte) {
		r, clock, line := newTestRTC(t, "2026-01-01T23:59:59.9Z")
		for ; len(script) >= 2; script = script[2:] {
			cmosWrite(r, script[0], script[1])
			cmosRead(r, script[1])
			clock.advance(time.Duration(script[0]) * time.Millisecond)
			if c := r.regs[rtcRegC]; (c&0x80 != 0) != (c&r.regs[rtcRegB]&0x70 != 0) {
				t.Fatalf("register C %#x with B %#x", c, r.regs[rtcRegB])
			}
			if high, _ := line.state(); high != (r.regs[rtcRegC]&0x80 != 0) {
				t.Fatalf("pin %v with register C %#x", high, r.regs[rtcRegC])
			}
			if clock.planned() > 1 {
				t.Fatal("more than one timer")
			}
		}
	})
}
