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
// Function.mapping, Function.mu, what virtio.Core documents, one vector's.
//
// Bus mastering is not enforced: what a device may reach is the guest's own RAM
// in any case, and a driver that clears it resets the device first.
package pci

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

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

// Function is the transport half: one PCI function. It implements
// chipset.PCIFunction.
type Function struct {
	name   string
	core   *virtio.Core
	msix   MSIX
	mapper Mapper
	log    *slog.Logger
	bar    uint32 // initial address

	// mapping orders the calls of the Mapper, which happen without mu.
	mapping  sync.Mutex
	mappedAt uint64 // address given to Map; 0: not mapped

	// mu guards what the driver writes.
	mu       sync.Mutex
	config   [configStdBytes]byte // the registers; the rest of the 4096 bytes is 0
	writable [configStdBytes]byte // bits that the driver may change
	pciCfg   int                  // offset of the VIRTIO_PCI_CAP_PCI_CFG capability
	sel      selectors

	// The interrupt side: no lock but a vector's own.
	isr          atomic.Uint32
	msixOn       atomic.Bool
	configVector atomic.Uint32
	queueVectors []atomic.Uint32
	vectors      []vector
}

// selectors are the registers that say which of many others means.
type selectors struct {
	deviceFeature, driverFeature uint32
	queue                        uint16
}

// New makes the function and the eventfds of its doorbells. Nothing is mapped
// before the driver enables memory decoding.
func New(cfg Config) (*Function, error) {
	switch {
	case cfg.MSIX == nil || cfg.Mapper == nil:
		return nil, fmt.Errorf("virtio pci device %s: MSIX and Mapper are required", cfg.Name)
	case cfg.Slot < 1 || cfg.Slot > 31:
		return nil, fmt.Errorf("virtio pci device %s: slot %d is not 1 to 31", cfg.Name, cfg.Slot)
	case cfg.BAR == 0 || cfg.BAR&^barMask != 0:
		return nil, fmt.Errorf("virtio pci device %s: BAR address %#x is not a multiple of %#x", cfg.Name, cfg.BAR, BARLenBytes)
	}
	f := &Function{name: cfg.Name, msix: cfg.MSIX, mapper: cfg.Mapper, log: cfg.Log, bar: cfg.BAR}
	core, err := virtio.NewCore(virtio.CoreConfig{
		Name: cfg.Name, Device: cfg.Device, Memory: cfg.Memory, Notifier: notifier{f}, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	if n := core.Queues() + 1; n > maxVectors {
		return nil, errors.Join(fmt.Errorf("virtio pci device %s: %d queues need more than %d MSI-X vectors", cfg.Name, n-1, maxVectors), core.Close())
	}
	f.core = core
	f.queueVectors = make([]atomic.Uint32, core.Queues())
	f.vectors = make([]vector, core.Queues()+1)
	notifier{f}.ResetDone()
	f.initConfig()
	f.initVectors()
	return f, nil
}

// Doorbells lists one notification address a queue, as offsets in BAR 0. The
// descriptors stay the function's and are valid until Close.
func (f *Function) Doorbells() []Doorbell {
	ds := make([]Doorbell, f.core.Queues())
	for i := range ds {
		ds[i] = Doorbell{OffsetBytes: notifyOff + notifyMultiplier*uint64(i), LenBytes: 2, FD: f.core.DoorbellFD(i)}
	}
	return ds
}

// Vectors is the number of MSI-X vectors: one for the configuration and one for
// each queue.
func (f *Function) Vectors() int { return len(f.vectors) }

// Pause stops taking requests, quiesces the device half and returns when
// nothing is outstanding. When ctx ends first the function runs on, and the
// error says what was outstanding. A second Pause does nothing.
func (f *Function) Pause(ctx context.Context) error { return f.core.Pause(ctx) }

// Resume goes on after Pause: first with the requests that the half gave back.
func (f *Function) Resume() error { return f.core.Resume() }

// Reset is the machine's reset: the device half is reset, and all registers are
// as after New. It waits for the half, at most virtio.ResetWait.
func (f *Function) Reset() error {
	err := f.core.Reset()
	f.mapping.Lock()
	defer f.mapping.Unlock()
	f.mu.Lock()
	f.initConfig()
	f.sel = selectors{}
	f.updateVectorsLocked()
	f.mu.Unlock()
	f.initVectors()
	return errors.Join(err, f.remapLocked(0))
}

// Close resets the half, joins every goroutine and closes the eventfds. It
// leaves the device half open. A second Close does nothing.
func (f *Function) Close() error { return f.core.Close() }

// Stats is a snapshot of the counters.
func (f *Function) Stats() virtio.Stats { return f.core.Stats() }
