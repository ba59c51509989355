// Package mmio is the memory-mapped transport half of a virtio device, version
// 2 (virtio 1.2, section 4.2): for the bare guest and for small machines
// without PCI.
//
// It knows no hypervisor: package vmm routes the accesses of its page here,
// connects Doorbells to KVM's ioeventfd and Line to an interrupt. Queues,
// negotiation and lifecycle are package virtio's Core.
//
// # Concurrency
//
// Every method may be called from any goroutine. Register accesses do not
// block, but for one: drivers of this transport do not wait after writing 0 to
// the status register, so that write waits for the device half, at most
// ResetWait; after that the status reads non-zero until the reset is done.
package mmio

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/peervisor/peervisor/memory"
	"github.com/peervisor/peervisor/virtio"
)

// Line is the device's interrupt: an edge each Signal.
type Line interface {
	// Signal raises the interrupt, from any goroutine.
	Signal() error
}

// Doorbell is virtio.Doorbell: a queue's notification address and its eventfd.
type Doorbell = virtio.Doorbell

// LenBytes is the length of the register page.
const LenBytes = 4096

// ResetWait bounds the write of 0 to the status register.
const ResetWait = time.Second

// Config describes a Device.
type Config struct {
	// Name names the device in logs, errors and Stats. Required.
	Name string
	// Device is the device half, borrowed until Close returned. Required.
	Device virtio.Device
	// Memory is the guest's RAM, borrowed until Close returned. Required.
	Memory *memory.Memory
	// Line is the device's interrupt. Required.
	Line Line
	// Log gets what the driver did wrong, bounded. nil: nothing is logged.
	Log *slog.Logger
}

// Device is the transport half: one page of registers. It implements
// chipset.Handler.
type Device struct{}

var errNotYet = errors.New("not implemented yet")

// New makes the device and the eventfds of its doorbells.
func New(cfg Config) (*Device, error) { return nil, errNotYet }

// Read fills p, of 1, 2, 4 or 8 bytes, from the register page at off.
func (d *Device) Read(off uint64, p []byte) {}

// Write applies a driver's write of p at off of the register page.
func (d *Device) Write(off uint64, p []byte) {}

// Doorbells lists one entry a queue: all at QueueNotify, told apart by the value
// written. The descriptors stay the device's and are valid until Close.
func (d *Device) Doorbells() []Doorbell { return nil }

// Pause stops taking requests, quiesces the device half and returns when
// nothing is outstanding. When ctx ends first the device runs on, and the
// error says what was outstanding. A second Pause does nothing.
func (d *Device) Pause(ctx context.Context) error { return errNotYet }

// Resume goes on after Pause: first with the requests that the half gave back.
func (d *Device) Resume() error { return errNotYet }

// Reset is the machine's reset: the device half is reset, and all registers are
// as after New. It waits for the half, at most virtio.ResetWait.
func (d *Device) Reset() error { return errNotYet }

// Close resets the half, joins every goroutine and closes the eventfds. It
// leaves the device half open. A second Close does nothing.
func (d *Device) Close() error { return nil }

// Stats is a snapshot of the counters.
func (d *Device) Stats() virtio.Stats { return virtio.Stats{} }
