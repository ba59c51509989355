package vmm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/peervisor/peervisor/memory"
	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/vmm/boot"
)

func TestEndings(t *testing.T) {
	for _, c := range []struct {
		name   string
		load   loader
		want   Reason
		detail string
	}{
		{"S5", flat(codeOff, 0), ReasonPowerOff, ""},
		{"reset register", flat(codeCF9, 0), ReasonReset, ""},
		{"keyboard controller", flat(codeI8042, 0), ReasonReset, ""},
		{"pvpanic", flat(codePVPanic, 0), ReasonPanic, "pvpanic"},
		{"triple fault", user(codeUD2), ReasonTripleFault, "RIP"},
		{"instruction that cannot be fetched", flat(codeNowhere, 0), ReasonFault, "suberror"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newTestMachine(t, testConfig(), c.load)
			e := runToEnd(t, m)
			if e.Reason != c.want || !strings.Contains(e.Detail, c.detail) {
				t.Errorf("ended by %v, expected %v … %s", e, c.want, c.detail)
			}
			if s := m.State(); s != StateStopped {
				t.Errorf("state %v", s)
			}
		})
	}
}

func TestSerialOutputIsCompleteAtTheEnd(t *testing.T) {
	out := newOutput()
	cfg := testConfig()
	cfg.Serial.Out = out
	m := newTestMachine(t, cfg, flat(codeHello, 0))
	if e := runToEnd(t, m); e.Reason != ReasonPowerOff {
		t.Fatal(e)
	}
	if out.String() != "hello\n" {
		t.Errorf("serial output %q", out.String())
	}
	s := m.Stats()
	if s.Times.FirstEntry.Before(s.Times.New) || s.Times.Ended.Before(s.Times.FirstEntry) {
		t.Errorf("times %+v", s.Times)
	}
	var writes uint64
	for _, r := range s.Ranges {
		if r.Name == "serial" {
			writes = r.Writes
		}
	}
	if writes != 6 {
		t.Errorf("%d writes to the serial port, expected 6", writes)
	}
}

func TestPanicOnSerial(t *testing.T) {
	out := newOutput()
	cfg := testConfig()
	cfg.Serial.Out = out
	text := "[    1.0] Kernel panic - not syncing: no root\x1b[2J\r\n"
	code := bytes.Replace(codeHello, []byte(powerOff+"hello\n"), []byte(resetBy0xCF9+text), 1)
	code[11] = byte(len(text)) // mov ecx, len
	m := newTestMachine(t, cfg, flat(code, 0))
	if e := runToEnd(t, m); e.Reason != ReasonPanic || e.Detail != "Kernel panic - not syncing: no root?[2J" {
		t.Errorf("ended by %v", e)
	}
}

func TestStringOutput(t *testing.T) {
	out := newOutput()
	cfg := testConfig()
	cfg.Serial.Out = out
	m := newTestMachine(t, cfg, flat(codeString, 0))
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	ctx := deadline(t)
	for out.String() != "string" {
		select {
		case <-out.came:
		case <-ctx.Done():
			t.Fatalf("serial output %q", out.String())
		}
	}
}

func TestMMIO(t *testing.T) {
	m := newTestMachine(t, testConfig(), flat(codeECAM, 0))
	b := addBell(t, m)
	if e := runToEnd(t, m); e.Reason != ReasonPowerOff {
		t.Fatal(e)
	}
	if v := b.wait(t); v != 0x0008_1B36 {
		t.Errorf("host bridge %#x by ECAM", v)
	}
}

func TestMemoryAboveTheHole(t *testing.T) {
	cfg := testConfig()
	cfg.MemoryBytes = uint64(memory.HoleStart) + 4<<20
	m := newTestMachine(t, cfg, user(codeHigh))
	b := addBell(t, m)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	b.wait(t)
	var got [4]byte
	if err := m.ram.ReadAt(got[:], memory.HoleEnd); err != nil || binary.LittleEndian.Uint32(got[:]) != 0x1234_5678 {
		t.Errorf("% x above 4 GiB, %v", got, err)
	}
}

func TestApplicationProcessors(t *testing.T) {
	for _, n := range []int{2, 4} {
		cfg := testConfig()
		cfg.CPUs = n
		m := newTestMachine(t, cfg, flat(codeSMP, uint64(n-1)))
		if e := runToEnd(t, m); e.Reason != ReasonPowerOff {
			t.Errorf("%d vCPUs: %v", n, e)
		}
	}
}

func counter(t testing.TB, m *Machine) uint64 {
	t.Helper()
	var b [8]byte
	if err := m.ram.ReadAt(b[:], counterAt); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

func TestPauseAndResumeUnderLoad(t *testing.T) {
	m := newTestMachine(t, testConfig(), user(codeCount))
	b := addBell(t, m)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	ctx := deadline(t)
	b.wait(t)
	for range 20 {
		if err := m.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		if s := m.State(); s != StatePaused {
			t.Fatalf("state %v", s)
		}
		before := counter(t, m)
		// A guest that still ran would count 10^4 rounds in the time of these.
		for range 1000 {
			runtime.Gosched()
		}
		if after := counter(t, m); after != before {
			t.Fatalf("the paused guest counted from %d to %d", before, after)
		}
		if err := m.Resume(); err != nil {
			t.Fatal(err)
		}
		b.again(t)
		b.again(t)
		if after := counter(t, m); after <= before {
			t.Fatalf("the resumed guest stands at %d", after)
		}
	}
	if err := m.Resume(); !errors.Is(err, ErrState) {
		t.Errorf("Resume of a running machine: %v", err)
	}
	if err := m.Start(); !errors.Is(err, ErrState) {
		t.Errorf("second Start: %v", err)
	}
}

func TestPauseOfGuestsThatIdleOrWaitForSIPI(t *testing.T) {
	cfg := testConfig()
	cfg.CPUs = 2
	// vCPU 1 waits for SIPI in the kernel; vCPU 0 halts without interrupts.
	m := newTestMachine(t, cfg, flat([]byte("\xf4\xeb\xfd"), 0))
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := m.Pause(deadline(t)); err != nil {
			t.Fatal(err)
		}
		if err := m.Resume(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCloseKills(t *testing.T) {
	for name, load := range map[string]loader{"ring 0": flat(codeSpin, 0), "ring 3": user(codeSpin), "halted": flat([]byte("\xf4"), 0)} {
		m := newTestMachine(t, testConfig(), load)
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		e, err := m.Wait(context.Background())
		if err != nil || e.Reason != ReasonKilled {
			t.Errorf("%s: %v, %v", name, e, err)
		}
		if err := m.Start(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s: Start after Close: %v", name, err)
		}
		if err := m.Pause(context.Background()); !errors.Is(err, ErrState) && !errors.Is(err, ErrClosed) {
			t.Errorf("%s: Pause after Close: %v", name, err)
		}
		if _, err := m.SerialInput([]byte("x")); err == nil {
			t.Errorf("%s: input to a machine without serial port", name)
		}
		_ = m.Stats()
	}
}

func TestCloseWhilePausedAndBeforeStart(t *testing.T) {
	m := newTestMachine(t, testConfig(), user(codeCount))
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	m = newTestMachine(t, testConfig(), user(codeCount))
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if err := m.Pause(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

func TestPauseGivesUpWithItsContext(t *testing.T) {
	m := newTestMachine(t, testConfig(), user(codeCount))
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	// Either the vCPU came in time or the machine runs on.
	if err := m.Pause(ctx); err != nil && (!errors.Is(err, context.Canceled) || m.State() != StateRunning) {
		t.Errorf("%v, state %v", err, m.State())
	}
}

func TestStopTimesOutOnADeafGuest(t *testing.T) {
	m := newTestMachine(t, testConfig(), flat(codeSpin, 0))
	if err := m.Stop(context.Background()); !errors.Is(err, ErrState) {
		t.Errorf("Stop before Start: %v", err)
	}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := m.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestLoaderErrorLeavesNothing(t *testing.T) {
	bad := errors.New("kernel.bin: not a kernel")
	before := countResources(t)
	for range 10 {
		_, err := newMachine(testConfig(), func(*memory.Memory, boot.Source, memory.Addr) (boot.Entry, error) { return boot.Entry{}, bad })
		if !errors.Is(err, bad) {
			t.Fatal(err)
		}
	}
	before.expectSame(t)
}

// Each step of New that can be made to fail leaves nothing behind, and says in
// one line what it was.
func TestFailedNewLeavesNothing(t *testing.T) {
	broken := DeviceConfig{Name: "broken", Half: idle{virtio.Info{ID: virtio.VIRTIO_ID_RNG, Features: 1 << 30}}}
	onMMIO := broken
	onMMIO.Transport = TransportMMIO
	good := rngConfig(t, TransportPCI).Devices[0]
	before := countResources(t)
	for _, devices := range [][]DeviceConfig{{broken}, {onMMIO}, {good, broken}, {good, onMMIO}} {
		cfg := testConfig()
		cfg.CPUs, cfg.Devices, cfg.Serial.Out = 4, devices, newOutput()
		_, err := newMachine(cfg, flat(codeOff, 0))
		if err == nil || !strings.Contains(err.Error(), "broken") || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v", err)
		}
	}
	before.expectSame(t)
}

// A hundred machines come and go without leaving a goroutine, descriptor,
// thread or mapping.
func TestHundredCycles(t *testing.T) {
	byPCI, byMMIO := rngConfig(t, TransportPCI), rngConfig(t, TransportMMIO)
	byMMIO.Devices[0].Name = "rng1"
	devices := append(byPCI.Devices, byMMIO.Devices...) // the same halves, again and again
	cycle := func() {
		cfg := testConfig()
		cfg.CPUs, cfg.Devices = 2, devices
		cfg.Serial.Out = newOutput()
		m := newTestMachine(t, cfg, user(codeCount))
		b := addBell(t, m)
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		b.wait(t)
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	cycle() // what the runtime keeps for good
	before := countResources(t)
	n := 100
	if testing.Short() {
		n = 10
	}
	for range n {
		cycle()
	}
	before.expectSame(t)
}

// resources are what a machine must not leave behind. Threads are not counted:
// Go keeps some of its own.
type resources struct {
	goroutines, files, guestMaps int
}

func countResources(t testing.TB) resources {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	text := string(maps)
	return resources{
		goroutines: runtime.NumGoroutine(), files: len(files),
		guestMaps: strings.Count(text, "peervisor:") + strings.Count(text, "kvm-vcpu"),
	}
}

// expectSame waits until there is not more than before: a goroutine that has
// closed its channel still needs a moment to be gone.
func (r resources) expectSame(t testing.TB) {
	t.Helper()
	ctx := deadline(t)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		now := countResources(t)
		if now.goroutines <= r.goroutines && now.files <= r.files && now.guestMaps <= r.guestMaps {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%+v before, %+v after", r, now)
		}
	}
}
