package vmm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/peervisor/peervisor/kvm"
	"github.com/peervisor/peervisor/memory"
	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/vmm/chipset"
)

// drainWait bounds how long the end of a machine waits until the guest's last
// words are written to Serial.Out.
const drainWait = time.Second

// Machine is one guest. All methods may be called from any goroutine.
type Machine struct {
	cfg Config

	// life lets one of Start, Pause, Resume and the teardown run at a time.
	life chan struct{} // capacity 1; full: taken

	mu    sync.Mutex
	state State
	exit  Exit
	times Times
	clock kvm.ClockData // kvmclock at Pause

	// ending is done when the guest has ended: vCPUs leave, waits are given up.
	ending    context.Context
	setEnding context.CancelFunc
	done      chan struct{} // closed when the vCPUs have left and exit is final
	closeOnce sync.Once
	closeErr  error

	// What New made, in its order; Close goes backwards. Constant after New.
	ram     *memory.Memory
	sys     *kvm.System
	vm      *kvm.VM
	router  *router
	gate    *gate
	vcpus   []*vcpu
	devices []*device
	serial  *chipset.Serial // nil: none
	watch   *panicWatch     // nil: no serial port
	rtc     *chipset.RTC
	pm      *chipset.PM

	ports, mmio chipset.Bus
	ranges      []*counted // constant after New
	exits       exitCounters
	unclaimed   atomic.Uint64
	kicks       atomic.Uint64
	lostBells   atomic.Uint64
}

// take gets the right to change the machine's life.
func (m *Machine) take(ctx context.Context) error {
	select {
	case m.life <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *Machine) give() { <-m.life }

// in returns nil in state want, and else an error for op.
func (m *Machine) in(op string, want State) error {
	switch s := m.State(); s {
	case want:
		return nil
	case StateClosed:
		return fmt.Errorf("%s %s: %w", op, m.cfg.Name, ErrClosed)
	default:
		return fmt.Errorf("%s %s: %w: it is %v, not %v", op, m.cfg.Name, ErrState, s, want)
	}
}

// move changes the state unless it has moved on meanwhile, as the guest's end
// does at any time.
func (m *Machine) move(from, to State) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != from {
		return false
	}
	m.state = to
	return true
}

// Start lets the guest run. It returns once the vCPUs are on their way.
func (m *Machine) Start() error {
	if err := m.take(context.Background()); err != nil {
		return err
	}
	defer m.give()
	if err := m.in("start", StateNew); err != nil {
		return err
	}
	if m.move(StateNew, StateRunning) {
		m.gate.set(phaseRun)
	}
	return nil
}

// Wait returns how the machine ended, when no vCPU runs any more and the serial
// port's output is written, or ctx's error when that ends first.
func (m *Machine) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-m.done:
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.exit, nil
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("wait for %s: %w", m.cfg.Name, ctx.Err())
	}
}

// Pause stops the vCPUs, then lets the devices finish what they do. When it
// returns nil nothing of the machine touches guest memory. When ctx ends first
// the machine runs on, and the error says what was in the way.
func (m *Machine) Pause(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.ending, cancel)()
	if err := m.take(ctx); err != nil {
		return fmt.Errorf("pause %s: %w", m.cfg.Name, m.whyNot(err))
	}
	defer m.give()
	if err := m.in("pause", StateRunning); err != nil {
		return err
	}
	if !m.gate.set(phaseHold) {
		return fmt.Errorf("pause %s: %w", m.cfg.Name, errEnded)
	}
	m.kickAll()
	if err := m.gate.allHeld(ctx); err != nil {
		m.gate.set(phaseRun)
		return fmt.Errorf("pause %s: vCPUs: %w", m.cfg.Name, m.whyNot(err))
	}
	for i, d := range m.devices {
		if err := d.half.Pause(ctx); err != nil {
			err = errors.Join(m.whyNot(err), resumeAll(m.devices[:i]))
			m.gate.set(phaseRun)
			return fmt.Errorf("pause %s: device %s: %w", m.cfg.Name, d.name, err)
		}
	}
	m.mu.Lock()
	// Where the clock cannot be read, it simply runs on.
	if err := m.vm.Clock(&m.clock); err != nil {
		m.clock = kvm.ClockData{}
	}
	m.mu.Unlock()
	if !m.move(StateRunning, StatePaused) {
		return m.in("pause", StateRunning)
	}
	return nil
}

var errEnded = fmt.Errorf("%w: the guest has ended", ErrState)

// whyNot is err, or that the machine has ended where that was the reason.
func (m *Machine) whyNot(err error) error {
	if m.ending.Err() != nil {
		return errEnded
	}
	return err
}

func resumeAll(devices []*device) error {
	var errs []error
	for _, d := range devices {
		if err := d.half.Resume(); err != nil {
			errs = append(errs, fmt.Errorf("resume device %s: %w", d.name, err))
		}
	}
	return errors.Join(errs...)
}

// Resume goes on after Pause. The guest's clock does not see the pause.
func (m *Machine) Resume() error {
	if err := m.take(context.Background()); err != nil {
		return err
	}
	defer m.give()
	if err := m.in("resume", StatePaused); err != nil {
		return err
	}
	if err := resumeAll(m.devices); err != nil {
		return fmt.Errorf("resume %s: %w", m.cfg.Name, err)
	}
	m.mu.Lock()
	clock := m.clock
	m.mu.Unlock()
	if clock.Clock != 0 {
		clock.Flags = 0 // of the flags that KVM_GET_CLOCK sets none may be set
		if err := m.vm.SetClock(&clock); err != nil {
			m.cfg.Log.Warn("the guest's clock will see the pause", "machine", m.cfg.Name, "error", err)
		}
	}
	if m.move(StatePaused, StateRunning) {
		m.gate.set(phaseRun)
	}
	return nil
}

// Stop presses the ACPI power button and waits until the guest has ended, for
// whatever reason: see Wait for it. The guest may ignore the button; bound ctx.
func (m *Machine) Stop(ctx context.Context) error {
	switch m.State() {
	case StateStopped:
		return nil
	case StateRunning:
		m.pm.PowerButton()
		_, err := m.Wait(ctx)
		return err
	}
	return m.in("stop", StateRunning)
}

// Close ends the guest if it has not ended (ReasonKilled), and gives everything
// back that New took. Device halves are reset and left open. It waits for a Write
// of Serial.Out that blocks: end that first. A second Close waits for the first
// and does nothing.
func (m *Machine) Close() error {
	m.closeOnce.Do(func() {
		m.finish(Exit{Reason: ReasonKilled})
		<-m.done
		m.life <- struct{}{} // for good: nobody changes the machine's life any more
		m.mu.Lock()
		m.state = StateClosed
		m.mu.Unlock()
		m.closeErr = m.teardown()
		<-m.life
	})
	return m.closeErr
}

// finish ends the guest; the first reason counts. It does not wait, and may be
// called from anywhere, vCPU threads included.
func (m *Machine) finish(e Exit) {
	m.mu.Lock()
	if m.exit.Reason == ReasonNone {
		e.Detail = printable([]byte(e.Detail))
		m.exit = e
	}
	m.mu.Unlock()
	m.setEnding()
	m.gate.set(phaseQuit)
	m.kickAll()
}

// reap waits for the guest's end and makes it final.
func (m *Machine) reap() {
	defer close(m.done)
	for _, c := range m.vcpus {
		<-c.gone
	}
	if m.serial != nil {
		ctx, cancel := context.WithTimeout(context.Background(), drainWait)
		if err := m.serial.Drain(ctx); err != nil {
			m.cfg.Log.Warn("serial output at the guest's end was not written in time", "machine", m.cfg.Name, "error", err)
		}
		cancel()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.watch != nil {
		m.exit = withPanic(m.exit, m.watch.found())
	}
	m.times.Ended = time.Now()
	m.state = StateStopped
}

// withPanic is e, or the panic that was seen on the serial port where e is how
// a kernel ends after one.
func withPanic(e Exit, text string) Exit {
	if text == "" {
		return e
	}
	switch e.Reason {
	case ReasonReset, ReasonTripleFault, ReasonPanic:
		return Exit{Reason: ReasonPanic, Detail: text}
	}
	return e
}

// power takes the chipset's events, on vCPU threads.
func (m *Machine) power(e chipset.PowerEvent) {
	switch e {
	case chipset.PowerOff:
		m.finish(Exit{Reason: ReasonPowerOff})
	case chipset.Reset:
		m.finish(Exit{Reason: ReasonReset})
	case chipset.Panic:
		m.finish(Exit{Reason: ReasonPanic, Detail: "reported by pvpanic"})
	default:
		m.cfg.Log.Info("guest event", "machine", m.cfg.Name, "event", e.String())
	}
}

func (m *Machine) kickAll() {
	for _, c := range m.vcpus {
		m.kicks.Add(1)
		c.kick()
	}
}

// errNoSerial answers input to a machine without a serial port.
var errNoSerial = errors.New("the machine has no serial port")

// SerialInput types p at the guest's serial port and returns how many bytes
// were taken: fewer than len(p) when the guest does not read. SerialRoom waits.
func (m *Machine) SerialInput(p []byte) (int, error) {
	switch {
	case m.serial == nil:
		return 0, fmt.Errorf("serial input to %s: %w", m.cfg.Name, errNoSerial)
	case m.ending.Err() != nil:
		return 0, fmt.Errorf("serial input to %s: %w", m.cfg.Name, errEnded)
	}
	return m.serial.Input(p), nil
}

// SerialRoom waits until SerialInput would take at least one byte.
func (m *Machine) SerialRoom(ctx context.Context) error {
	if m.serial == nil {
		return fmt.Errorf("serial input to %s: %w", m.cfg.Name, errNoSerial)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.ending, cancel)()
	if err := m.serial.InputRoom(ctx); err != nil {
		return fmt.Errorf("serial input to %s: %w", m.cfg.Name, m.whyNot(err))
	}
	return nil
}

// State is where the machine is in its life.
func (m *Machine) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// Stats is a snapshot of the machine's counters. After Close it is the last one.
func (m *Machine) Stats() Stats {
	m.mu.Lock()
	s := Stats{State: m.state, Times: m.times, CPUs: m.cfg.CPUs}
	m.mu.Unlock()
	for i := range m.exits {
		if n := m.exits[i].Load(); n > 0 {
			s.Exits = append(s.Exits, Exits{Kind: exitKind(i), Count: n})
		}
	}
	for _, c := range m.ranges {
		s.Ranges = append(s.Ranges, RangeStats{Name: c.name, Reads: c.reads.Load(), Writes: c.writes.Load()})
	}
	s.Unclaimed, s.Kicks, s.LostDoorbells = m.unclaimed.Load(), m.kicks.Load(), m.lostBells.Load()
	s.Devices = make([]virtio.Stats, len(m.devices))
	for i, d := range m.devices {
		s.Devices[i] = d.half.Stats()
	}
	return s
}

// portAccess implements board.
func (m *Machine) portAccess(port uint64, out bool, p []byte) {
	var claimed bool
	if out {
		claimed = m.ports.Write(port, p)
	} else {
		claimed = m.ports.Read(port, p)
	}
	if !claimed {
		m.unclaimed.Add(1)
	}
}

// memoryAccess implements board. KVM splits accesses that cross a page, so any
// length up to 8 comes; handlers take powers of two only.
func (m *Machine) memoryAccess(addr uint64, write bool, p []byte) {
	if n := len(p); n&(n-1) != 0 {
		for i := range p {
			m.memoryAccess(addr+uint64(i), write, p[i:i+1:i+1])
		}
		return
	}
	var claimed bool
	if write {
		claimed = m.mmio.Write(addr, p)
	} else {
		claimed = m.mmio.Read(addr, p)
	}
	if !claimed {
		m.unclaimed.Add(1)
	}
}

// countExit implements board.
func (m *Machine) countExit(r kvm.ExitReason) { m.exits.add(r) }

// entering implements board.
func (m *Machine) entering(id int) {
	if id == 0 {
		now := time.Now()
		m.mu.Lock()
		m.times.FirstEntry = now
		m.mu.Unlock()
	}
}
