package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/peervisor/peervisor/kvm"
	"github.com/peervisor/peervisor/vmm/chipset"
)

// step is one return of a fake processor's Run.
type step struct {
	reason kvm.ExitReason
	errno  syscall.Errno
	io     kvm.PortAccess
	mmio   kvm.MMIOAccess
	ierr   kvm.InternalError
	event  uint32
}

// scripted is a processor that returns its steps, then spins until it is kicked.
type scripted struct {
	steps     []step
	now       step
	immediate atomic.Bool
	kicked    chan struct{} // capacity 1
	closed    atomic.Bool
	noted     atomic.Int32
}

func newScripted(steps ...step) *scripted {
	return &scripted{steps: steps, kicked: make(chan struct{}, 1)}
}

func (p *scripted) Run() (kvm.ExitReason, syscall.Errno) {
	if p.immediate.Load() {
		return kvm.KVM_EXIT_INTR, syscall.EINTR
	}
	if len(p.steps) > 0 {
		p.now, p.steps = p.steps[0], p.steps[1:]
		return p.now.reason, p.now.errno
	}
	<-p.kicked
	return kvm.KVM_EXIT_INTR, syscall.EINTR
}

func (p *scripted) SetImmediateExit(on bool) {
	p.immediate.Store(on)
	if on {
		select {
		case p.kicked <- struct{}{}:
		default:
		}
	}
}

func (p *scripted) IO() kvm.PortAccess               { return p.now.io }
func (p *scripted) MMIO() kvm.MMIOAccess             { return p.now.mmio }
func (p *scripted) InternalError() kvm.InternalError { return p.now.ierr }
func (p *scripted) FailEntry() (uint64, uint32)      { return 0x80000021, 3 }
func (p *scripted) SystemEvent() uint32              { return p.now.event }
func (p *scripted) Regs(r *kvm.Regs) error           { r.RIP = 0x1234; return nil }
func (p *scripted) NotePaused() error                { p.noted.Add(1); return nil }
func (p *scripted) Close() error                     { p.closed.Store(true); return nil }

// fakeBoard records what a vCPU asks of the machine.
type fakeBoard struct {
	gate    *gate
	log     []string // by the vCPU's thread only
	exits   exitCounters
	entered atomic.Int32
	end     Exit
}

func (b *fakeBoard) portAccess(port uint64, out bool, p []byte) {
	b.log = append(b.log, fmt.Sprintf("port %#x out=%v % x", port, out, p))
}
func (b *fakeBoard) memoryAccess(addr uint64, write bool, p []byte) {
	b.log = append(b.log, fmt.Sprintf("memory %#x write=%v % x", addr, write, p))
}
func (b *fakeBoard) countExit(r kvm.ExitReason) { b.exits.add(r) }
func (b *fakeBoard) entering(int)               { b.entered.Add(1) }
func (b *fakeBoard) finish(e Exit) {
	if b.end.Reason == ReasonNone {
		b.end = e
	}
	b.gate.set(phaseQuit)
}

func startFake(t *testing.T, p *scripted) (*vcpu, *fakeBoard) {
	t.Helper()
	g := newGate(1)
	b := &fakeBoard{gate: g}
	c := newVCPU(0, b, g)
	ready := make(chan error, 1)
	go c.run(func() (processor, error) { return p, nil }, ready)
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.set(phaseQuit)
		c.kick()
		<-c.gone
	})
	return c, b
}

func TestExitsReachTheBoard(t *testing.T) {
	p := newScripted(
		step{reason: kvm.KVM_EXIT_IO, io: kvm.PortAccess{Port: 0x3F8, Out: true, Size: 1, Count: 2, Data: []byte("ab")}},
		step{errno: syscall.EAGAIN},
		step{errno: syscall.EINTR}, // a signal of Go's runtime
		step{reason: kvm.KVM_EXIT_IO, io: kvm.PortAccess{Port: 0x60, Size: 4, Count: 1, Data: make([]byte, 4)}},
		step{reason: kvm.KVM_EXIT_MMIO, mmio: kvm.MMIOAccess{Addr: 0xF000_0050, Write: true, Data: []byte{1, 2, 3, 4}}},
		step{reason: kvm.KVM_EXIT_IO}, // size 0: the kernel has never done that
		step{reason: kvm.KVM_EXIT_SHUTDOWN},
	)
	c, b := startFake(t, p)
	b.gate.set(phaseRun)
	<-c.gone
	want := []string{
		"port 0x3f8 out=true 61", "port 0x3f8 out=true 62", "port 0x60 out=false 00 00 00 00",
		"memory 0xf0000050 write=true 01 02 03 04",
	}
	if strings.Join(b.log, "\n") != strings.Join(want, "\n") {
		t.Errorf("the board saw\n%s", strings.Join(b.log, "\n"))
	}
	if b.end.Reason != ReasonTripleFault || !strings.Contains(b.end.Detail, "0x1234") {
		t.Errorf("ended by %v", b.end)
	}
	if n := b.exits[kvm.KVM_EXIT_IO].Load(); n != 3 {
		t.Errorf("%d exits for ports counted", n)
	}
	if !p.closed.Load() || b.entered.Load() != 1 {
		t.Errorf("closed %v, entered %d times", p.closed.Load(), b.entered.Load())
	}
}

func TestEndingsOfAVCPU(t *testing.T) {
	for _, c := range []struct {
		step   step
		want   Reason
		detail string
	}{
		{step{reason: kvm.KVM_EXIT_INTERNAL_ERROR, ierr: kvm.InternalError{Suberror: 1, Instruction: []byte{0xF3, 0x0F, 0xB8}}}, ReasonFault, "suberror 1 (KVM cannot emulate an instruction), instruction bytes f3 0f b8"},
		{step{reason: kvm.KVM_EXIT_INTERNAL_ERROR, ierr: kvm.InternalError{Suberror: 3, Data: []uint64{7}}}, ReasonFault, "data [0x7]"},
		{step{reason: kvm.KVM_EXIT_FAIL_ENTRY}, ReasonFault, "code 0x80000021"},
		{step{reason: kvm.KVM_EXIT_SYSTEM_EVENT, event: kvm.KVM_SYSTEM_EVENT_SHUTDOWN}, ReasonPowerOff, ""},
		{step{reason: kvm.KVM_EXIT_SYSTEM_EVENT, event: kvm.KVM_SYSTEM_EVENT_RESET}, ReasonReset, ""},
		{step{reason: kvm.KVM_EXIT_SYSTEM_EVENT, event: kvm.KVM_SYSTEM_EVENT_CRASH}, ReasonPanic, ""},
		{step{reason: kvm.KVM_EXIT_SYSTEM_EVENT, event: 77}, ReasonFault, "system event 77"},
		{step{reason: kvm.KVM_EXIT_HLT}, ReasonFault, "unexpected exit hlt"},
		{step{reason: 1000}, ReasonFault, "unexpected exit exit-1000"},
		{step{errno: syscall.EFAULT}, ReasonFault, "KVM_RUN: bad address"},
	} {
		v, b := startFake(t, newScripted(c.step))
		b.gate.set(phaseRun)
		<-v.gone
		if b.end.Reason != c.want || !strings.Contains(b.end.Detail, c.detail) {
			t.Errorf("ended by %v, expected %v … %s", b.end, c.want, c.detail)
		}
	}
}

// A kick between the look at the phase and KVM_RUN is not lost, and a vCPU that
// was held goes on.
func TestKickHoldRun(t *testing.T) {
	p := newScripted()
	c, b := startFake(t, p)
	for range 200 {
		b.gate.set(phaseRun)
		b.gate.set(phaseHold)
		c.kick()
		if err := b.gate.allHeld(within(t)); err != nil {
			t.Fatal(err)
		}
		ran := false
		if !c.call(func(processor) { ran = true }) || !ran {
			t.Fatal("the held vCPU takes no calls")
		}
	}
	b.gate.set(phaseQuit)
	<-c.gone
	if c.call(func(processor) {}) {
		t.Error("a vCPU that has left takes calls")
	}
	c.kick() // of a vCPU that has left: nothing
}

func TestVCPUThatCannotBeMade(t *testing.T) {
	g := newGate(1)
	c := newVCPU(0, &fakeBoard{gate: g}, g)
	ready := make(chan error, 1)
	bad := errors.New("no")
	go c.run(func() (processor, error) { return nil, bad }, ready)
	if err := <-ready; !errors.Is(err, bad) {
		t.Errorf("got %v", err)
	}
	<-c.gone
}

// recorder is a handler that notes its accesses.
type recorder struct{ log []string }

func (r *recorder) Read(off uint64, p []byte) {
	r.log = append(r.log, fmt.Sprintf("r%d@%d", len(p), off))
	for i := range p {
		p[i] = byte(off) + byte(i)
	}
}
func (r *recorder) Write(off uint64, p []byte) {
	r.log = append(r.log, fmt.Sprintf("w%d@%d", len(p), off))
}

func TestBusDispatch(t *testing.T) {
	m := &Machine{}
	r := &recorder{}
	if err := m.addRange(&m.mmio, "x", 0x1000, 0x100, r); err != nil {
		t.Fatal(err)
	}
	if err := m.addRange(&m.ports, "y", 0x10, 4, r); err != nil {
		t.Fatal(err)
	}
	if err := m.addRange(&m.ports, "z", 0x12, 1, r); err == nil {
		t.Error("overlap accepted")
	}
	var p [8]byte
	m.memoryAccess(0x1008, true, p[:8])
	m.memoryAccess(0x1010, false, p[:3]) // what KVM makes of an access across a page
	if !bytes.Equal(p[:3], []byte{0x10, 0x11, 0x12}) {
		t.Errorf("read % x", p[:3])
	}
	m.memoryAccess(0x9000, false, p[:4])
	if !bytes.Equal(p[:4], []byte{0xFF, 0xFF, 0xFF, 0xFF}) {
		t.Errorf("nobody answered % x", p[:4])
	}
	m.portAccess(0x10, true, p[:2])
	m.portAccess(0x99, true, p[:2])
	if got := strings.Join(r.log, " "); got != "w8@8 r1@16 r1@17 r1@18 w2@0" {
		t.Errorf("handlers saw %s", got)
	}
	if n := m.unclaimed.Load(); n != 2 {
		t.Errorf("%d unclaimed", n)
	}
	if c := m.ranges[0]; c.reads.Load() != 3 || c.writes.Load() != 1 {
		t.Errorf("counted %d reads, %d writes", c.reads.Load(), c.writes.Load())
	}
}

var _ chipset.Handler = (*recorder)(nil)

// Handling an exit takes no memory from Go's heap.
func TestExitsDoNotAllocate(t *testing.T) {
	m := &Machine{}
	if err := m.addRange(&m.mmio, "x", 0x1000, 0x100, bell{make(chan uint32, 1)}); err != nil {
		t.Fatal(err)
	}
	p := newScripted()
	p.now = step{mmio: kvm.MMIOAccess{Addr: 0x1000, Write: true, Data: make([]byte, 4)}, io: kvm.PortAccess{Port: 1, Size: 1, Count: 1, Data: make([]byte, 1)}}
	c := newVCPU(0, m, newGate(1))
	if n := testing.AllocsPerRun(100, func() {
		a := p.MMIO()
		m.memoryAccess(a.Addr, a.Write, a.Data)
		c.portsOnThread(p)
		m.countExit(kvm.KVM_EXIT_MMIO)
	}); n != 0 {
		t.Errorf("%v allocations an exit", n)
	}
}
