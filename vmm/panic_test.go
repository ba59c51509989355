package vmm

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/peervisor/peervisor/vmm/chipset"
)

// fakeClock keeps the one call that was planned last.
type fakeClock struct {
	planned func()
	stopped bool
}

func (c *fakeClock) Now() time.Time { return time.Time{} }

func (c *fakeClock) AfterFunc(_ time.Duration, f func()) chipset.Timer {
	c.planned, c.stopped = f, false
	return c
}

func (c *fakeClock) Stop() bool { c.stopped = true; return true }

func feed(t *testing.T, w *panicWatch, s string) {
	t.Helper()
	// In the worst pieces that a serial port can make of it.
	for i := range len(s) {
		if n, err := w.Write([]byte{s[i]}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
}

func TestPanicWatch(t *testing.T) {
	const start = "[    2.5] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n"
	const end = "[    2.6] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs ]---\r\n"
	for _, c := range []struct {
		name, text, found string
		halted            bool
	}{
		{"nothing", "hello\r\n", "", false},
		{"panic", start + "CPU: 0\r\n", "Kernel panic - not syncing: VFS: Unable to mount root fs", false},
		{"panic and halt", start + end, "Kernel panic - not syncing: VFS: Unable to mount root fs", true},
		{"somebody prints an old log", start + end + "$ ", "Kernel panic - not syncing: VFS: Unable to mount root fs", false},
		{"an old log, then a reboot", start + end + "[   70.1] reboot: Restarting system\r\n", "", false},
		{"only the end", end, "", false},
		{"a line without end", strings.Repeat("x", 10000) + start, "", false},
		{"a very long text", "Kernel panic - not syncing: " + strings.Repeat("y", 10000) + "\n", "Kernel panic - not syncing: " + strings.Repeat("y", maxLineBytes-28), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			clock, halted := &fakeClock{}, false
			w := &panicWatch{out: &out, clock: clock, halted: func() { halted = true }}
			feed(t, w, c.text)
			if clock.planned != nil {
				clock.planned() // also when it was stopped: the call may be on its way
			}
			if w.found() != c.found || halted != c.halted {
				t.Errorf("found %q, halted %v", w.found(), halted)
			}
			if out.String() != c.text {
				t.Errorf("passed on %q", out.String())
			}
			w.close()
			halted = false
			if clock.planned != nil {
				clock.planned()
			}
			if halted {
				t.Error("told after close")
			}
		})
	}
}

func TestWithPanic(t *testing.T) {
	for reason, want := range map[Reason]Reason{
		ReasonReset: ReasonPanic, ReasonTripleFault: ReasonPanic, ReasonPanic: ReasonPanic, ReasonPowerOff: ReasonPowerOff,
		ReasonKilled: ReasonKilled, ReasonFault: ReasonFault,
	} {
		if e := withPanic(Exit{Reason: reason}, "text"); e.Reason != want {
			t.Errorf("%v after a panic is %v", reason, e)
		}
		if e := withPanic(Exit{Reason: reason}, ""); e.Reason != reason {
			t.Errorf("%v is %v", reason, e)
		}
	}
}

func FuzzPanicWatch(f *testing.F) {
	f.Add([]byte("Kernel panic - not syncing: x\n---[ end Kernel panic - not syncing: x ]---\n"))
	f.Add([]byte("\x1b[31mKernel panic - not syncing: \xff\xfe\u009b2J\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		w := &panicWatch{out: &out, clock: &fakeClock{}, halted: func() {}}
		if _, err := w.Write(b); err != nil || !bytes.Equal(out.Bytes(), b) {
			t.Fatal("output changed")
		}
		for _, r := range w.found() {
			if r < ' ' || r >= 0x7F && r < 0xA0 {
				t.Fatalf("control character %#x in %q", r, w.found())
			}
		}
		if len(w.line) > maxLineBytes || len(w.found()) > maxDetailBytes {
			t.Fatal("unbounded")
		}
	})
}
