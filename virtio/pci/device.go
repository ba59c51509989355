// Package pci is the PCI transport half of a virtio device, modern only
// (virtio 1.2, section 4.1): configuration space with its capabilities, BAR 0,
// MSI-X.
//
// It is not a PCI bus and knows no hypervisor: package vmm routes accesses
// here, maps the BAR where Mapper asks for it, connects Doorbells to KVM's
// ioeventfd and MSIX to its irqfd. Queues, negotiation and lifecycle are
// package virtio's Core; the layout of BAR 0 is fixed by docs/machine-v1.md.
//
// # Concurrency
//
// Every method may be called from any goroutine. Register accesses do not
// block: a reset that has to wait for the device half goes on behind the
// status register, which the driver polls (section 4.1.4.3.1). Locks, in order:
// Function.mu, then what virtio.Core documents, then one vector's.
package pci

import (
	"context"
	"errors"
	"log/slog"

	"github.com/peervisor/peervisor/memory"
	"github.com/peervisor/peervisor/virtio"
)

// MSIX raises the function's interrupts. The machine implements it.
type MSIX interface {
	// SetVector says where vector i points, each time the driver unmasks it. It
	// does not block for longer than a system call.
	SetVector(i int, addr uint64, data uint32) error
	// MaskVector says that the driver masked vector i. No Signal of it follows
	// before the next SetVector.
	MaskVector(i int) error
	// Signal raises vector i, from any goroutine.
	Signal(i int) error
}

// Mapper makes a BAR visible to the guest, or takes it away, as the driver moves
// it or switches memory decoding. Called on a vCPU thread, with no lock held
// that ReadBAR or WriteBAR need.
type Mapper interface {
	// Map puts the BAR at guest-physical addr. An error leaves it unmapped.
	Map(bar int, addr, lenBytes uint64) error
	Unmap(bar int) error
}

// Doorbell is virtio.Doorbell: a queue's notification address and its eventfd.
type Doorbell = virtio.Doorbell

// Config describes a Function.
type Config struct {
	// Name names the device in logs, errors and Stats. Required.
	Name string
	// Device is the device half, borrowed until Close returned. Required.
	Device virtio.Device
	// Memory is the guest's RAM, borrowed until Close returned. Required.
	Memory *memory.Memory
	// Slot is the device number on bus 0, 1..31.
	Slot int
	// BAR is the initial guest-physical address of BAR 0, a multiple of BARLenBytes.
	BAR uint32
	// MSIX and Mapper are the machine's side. Required.
	MSIX   MSIX
	Mapper Mapper
	// Log gets what the driver did wrong, bounded. nil: nothing is logged.
	Log *slog.Logger
}

// BARLenBytes is the length of BAR 0, the only one.
const BARLenBytes = 64 << 10

// Function is the transport half: one PCI function. It implements
// chipset.PCIFunction.
type Function struct{}

var errNotYet = errors.New("not implemented yet")

// New makes the function and the eventfds of its doorbells. Nothing is mapped
// before the driver enables memory decoding.
func New(cfg Config) (*Function, error) { return nil, errNotYet }

// ReadConfig fills p from the function's 4096-byte configuration space at off.
func (f *Function) ReadConfig(off int, p []byte) {}

// WriteConfig applies a driver's write of p at off of the configuration space.
func (f *Function) WriteConfig(off int, p []byte) {}

// ReadBAR fills p, of 1, 2, 4 or 8 bytes, from BAR 0 at off.
func (f *Function) ReadBAR(off uint64, p []byte) {}

// WriteBAR applies a driver's write of p at off of BAR 0.
func (f *Function) WriteBAR(off uint64, p []byte) {}

// Doorbells lists one notification address a queue, as offsets in BAR 0. The
// descriptors stay the function's and are valid until Close.
func (f *Function) Doorbells() []Doorbell { return nil }

// Vectors is the number of MSI-X vectors: 0 is for the configuration where the
// driver wants it so, and one for each queue.
func (f *Function) Vectors() int { return 0 }

// Pause stops taking requests, quiesces the device half and returns when
// nothing is outstanding. When ctx ends first the function runs on, and the
// error says what was outstanding. A second Pause does nothing.
func (f *Function) Pause(ctx context.Context) error { return errNotYet }

// Resume goes on after Pause: first with the requests that the half gave back.
func (f *Function) Resume() error { return errNotYet }

// Reset is the machine's reset: the device half is reset, and all registers are
// as after New. It waits for the half, at most virtio.ResetWait.
func (f *Function) Reset() error { return errNotYet }

// Close resets the half, joins every goroutine and closes the eventfds. It
// leaves the device half open. A second Close does nothing.
func (f *Function) Close() error { return nil }

// Stats is a snapshot of the counters.
func (f *Function) Stats() virtio.Stats { return virtio.Stats{} }
