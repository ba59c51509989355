package vmm

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/peervisor/peervisor/kvm"
	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/rng"
)

// Enables memory decoding of 00:01.0, reads num_queues of its common
// configuration, tells it to the test device and rings the doorbell of queue 0.
var codePCI = []byte("" +
	"\x66\xc7\x05\x04\x80\x00\xe0\x02\x00" + // mov word [ecam 00:01.0 + 4], 2
	"\x0f\xb7\x05\x12\x00\x01\xc0" + //         movzx eax, word [0xc0010012]
	"\xa3\x00\x00\x10\xf0" + //                 mov [0xf0100000], eax
	"\x66\xc7\x05\x00\x40\x01\xc0\x00\x00" + // mov word [0xc0014000], 0
	powerOff)

// Reads the magic of the virtio-mmio device, tells it, and rings queue 0.
var codeVirtioMMIO = []byte("" +
	"\xa1\x00\x00\x00\xf0" + //                         mov eax, [0xf0000000]
	"\xa3\x00\x00\x10\xf0" + //                         mov [0xf0100000], eax
	"\xc7\x05\x50\x00\x00\xf0\x00\x00\x00\x00" + // mov dword [0xf0000050], 0
	powerOff)

// Waits for the power button, by polling, and powers off.
var codeButton = []byte("" +
	"\xba\x00\x06\x00\x00" + // 1: mov edx, 0x600
	"\x66\xed\xf6\xc4\x01" + //    in ax, dx; test ah, 1
	"\x74\xf4" + //                jz 1b
	powerOff)

func rngConfig(t *testing.T, tr Transport) Config {
	t.Helper()
	half, err := rng.New(rng.Config{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	cfg.Devices = []DeviceConfig{{Name: "rng0", Half: half, Transport: tr}}
	return cfg
}

func (s Stats) rangeOf(name string) RangeStats {
	for _, r := range s.Ranges {
		if r.Name == name {
			return r
		}
	}
	return RangeStats{}
}

func TestPCIDeviceIsMapped(t *testing.T) {
	m := newTestMachine(t, rngConfig(t, TransportPCI), flat(codePCI, 0))
	b := addBell(t, m)
	if e := runToEnd(t, m); e.Reason != ReasonPowerOff {
		t.Fatal(e)
	}
	if v := b.wait(t); v != 1 {
		t.Errorf("num_queues %d", v)
	}
	// The doorbell went to the eventfd and was no exit.
	if r := m.Stats().rangeOf("rng0 bar"); r.Reads != 1 || r.Writes != 0 {
		t.Errorf("%+v", r)
	}
	if s := m.Stats(); s.LostDoorbells != 0 || len(s.Devices) != 1 || s.Devices[0].Name != "rng0" {
		t.Errorf("%+v", s)
	}
}

func TestVirtioMMIODeviceIsMapped(t *testing.T) {
	m := newTestMachine(t, rngConfig(t, TransportMMIO), flat(codeVirtioMMIO, 0))
	b := addBell(t, m)
	if e := runToEnd(t, m); e.Reason != ReasonPowerOff {
		t.Fatal(e)
	}
	if v := b.wait(t); v != 0x7472_6976 {
		t.Errorf("magic %#x", v)
	}
	if r := m.Stats().rangeOf("rng0 registers"); r.Reads != 1 || r.Writes != 0 {
		t.Errorf("%+v", r)
	}
}

// The host bridge decodes its window only, and a BAR comes and goes.
func TestBARWindow(t *testing.T) {
	m := newTestMachine(t, rngConfig(t, TransportPCI), flat(codeOff, 0))
	w := m.devices[0].bar
	for _, addr := range []uint64{0, 0xBFFF_0000, 0xDFFF_8000, 0xE000_0000, 0xFEE0_0000, 1 << 32} {
		if err := w.Map(0, addr, 64<<10); !errors.Is(err, errOutsideWindow) {
			t.Errorf("%#x: %v", addr, err)
		}
	}
	for _, addr := range []uint64{0xC000_0000, 0xC100_0000, 0xDFFF_0000} {
		if err := w.Map(0, addr, 64<<10); err != nil {
			t.Fatal(err)
		}
		if err := w.Map(0, 0xD000_0000, 64<<10); err == nil {
			t.Error("mapped twice")
		}
		var p [2]byte
		m.memoryAccess(addr+0x12, false, p[:])
		if p != [2]byte{1, 0} {
			t.Errorf("num_queues % x at %#x", p, addr)
		}
		if err := w.Unmap(0); err != nil {
			t.Fatal(err)
		}
		m.memoryAccess(addr+0x12, false, p[:])
		if p != [2]byte{0xFF, 0xFF} {
			t.Errorf("still there: % x at %#x", p, addr)
		}
	}
	if err := w.Unmap(0); err != nil {
		t.Error(err)
	}
}

// A signal of an unmasked vector arrives at the local APIC that it names.
func TestMSIXArrives(t *testing.T) {
	cfg := rngConfig(t, TransportPCI)
	cfg.CPUs = 2
	m := newTestMachine(t, cfg, flat(codeOff, 0))
	const cpu, vec = 1, 0x55
	var l kvm.LAPIC
	if err := m.onVCPU(cpu, func(p *kvm.VCPU) error {
		if err := p.LAPIC(&l); err != nil {
			return err
		}
		l.Regs[0xF0], l.Regs[0xF1] = 0xFF, 1 // software enable, spurious vector 0xFF
		return p.SetLAPIC(&l)
	}); err != nil {
		t.Fatal(err)
	}
	x := m.devices[0].msix
	if err := errors.Join(x.SetVector(1, 0xFEE0_0000|cpu<<12, vec), x.Signal(1)); err != nil {
		t.Fatal(err)
	}
	if err := m.onVCPU(cpu, func(p *kvm.VCPU) error { return p.LAPIC(&l) }); err != nil {
		t.Fatal(err)
	}
	if l.Regs[0x200+vec/32*16+vec%32/8]&(1<<(vec%8)) == 0 { // IRR
		t.Error("not in the APIC's IRR")
	}
}

func TestStopPressesThePowerButton(t *testing.T) {
	m := newTestMachine(t, testConfig(), flat(codeButton, 0))
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if e, err := m.Wait(context.Background()); err != nil || e.Reason != ReasonPowerOff {
		t.Errorf("%v, %v", e, err)
	}
	if err := m.Stop(context.Background()); err != nil {
		t.Errorf("Stop of a stopped machine: %v", err)
	}
}

// fakeTransport counts what the machine asks of it.
type fakeTransport struct {
	paused, resumed int
	pauseErr        error
}

func (f *fakeTransport) Pause(context.Context) error { f.paused++; return f.pauseErr }
func (f *fakeTransport) Resume() error               { f.resumed++; return nil }
func (f *fakeTransport) Close() error                { return nil }
func (f *fakeTransport) Stats() virtio.Stats         { return virtio.Stats{} }

// A device that does not drain in time: the others go on, and so does the guest.
func TestPauseRollsBack(t *testing.T) {
	m := newTestMachine(t, testConfig(), user(codeCount))
	b := addBell(t, m)
	good, bad := &fakeTransport{}, &fakeTransport{pauseErr: errors.New("3 requests outstanding")}
	m.devices = []*device{{name: "good", half: good, line: edgeLine{-1}}, {name: "bad", half: bad, line: edgeLine{-1}}}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	b.wait(t)
	err := m.Pause(deadline(t))
	if err == nil || !strings.Contains(err.Error(), "device bad: 3 requests") {
		t.Errorf("got %v", err)
	}
	if good.resumed != 1 || bad.resumed != 0 || m.State() != StateRunning {
		t.Errorf("resumed %d and %d, state %v", good.resumed, bad.resumed, m.State())
	}
	b.again(t)
	bad.pauseErr = nil
	if err := m.Pause(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := m.Resume(); err != nil || bad.resumed != 1 {
		t.Errorf("%v, resumed %d", err, bad.resumed)
	}
}
