package vmm

import (
	"context"
	"errors"
)

var errNotYet = errors.New("not written yet")

// Machine is one guest. All methods may be called from any goroutine.
type Machine struct{}

// New makes a machine: it checks cfg, opens /dev/kvm, takes memory, loads the
// kernel and sets up the devices. Nothing runs. On error nothing is left behind.
func New(cfg Config) (*Machine, error) { return nil, errNotYet }

// Start lets the guest run. It returns once the vCPUs are on their way.
func (m *Machine) Start() error { return errNotYet }

// Wait returns how the machine ended, when no vCPU runs any more, or ctx's
// error when that ends first.
func (m *Machine) Wait(ctx context.Context) (Exit, error) { return Exit{}, errNotYet }

// Pause stops the vCPUs, then lets the devices finish what they do. When it
// returns nil nothing of the machine touches guest memory. When ctx ends first
// the machine runs on, and the error says what was in the way.
func (m *Machine) Pause(ctx context.Context) error { return errNotYet }

// Resume goes on after Pause. The guest's clock does not see the pause.
func (m *Machine) Resume() error { return errNotYet }

// Stop presses the ACPI power button and waits until the guest has ended, for
// whatever reason: see Wait for it. The guest may ignore the button; bound ctx.
func (m *Machine) Stop(ctx context.Context) error { return errNotYet }

// Close ends the guest if it runs (ReasonKilled), and gives everything back that
// New took. Device halves are reset and left open. A second Close waits for the
// first and does nothing.
func (m *Machine) Close() error { return nil }

// SerialInput types p at the guest's serial port and returns how many bytes
// were taken: fewer than len(p) when the guest does not read.
func (m *Machine) SerialInput(p []byte) (int, error) { return 0, errNotYet }

// State is where the machine is in its life.
func (m *Machine) State() State { return StateNew }

// Stats is a snapshot of the machine's counters.
func (m *Machine) Stats() Stats { return Stats{} }
