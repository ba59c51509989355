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
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
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
type Device struct {
	name string
	core *virtio.Core
	line Line

	mu  sync.Mutex
	sel selectors

	interrupts atomic.Uint32 // InterruptStatus
}

// selectors are the registers that say which of many others means.
type selectors struct{ deviceFeature, driverFeature, queue uint32 }

// New makes the device and the eventfds of its doorbells.
func New(cfg Config) (*Device, error) {
	if cfg.Line == nil {
		return nil, fmt.Errorf("virtio mmio device %s: Line is required", cfg.Name)
	}
	d := &Device{name: cfg.Name, line: cfg.Line}
	core, err := virtio.NewCore(virtio.CoreConfig{
		Name: cfg.Name, Device: cfg.Device, Memory: cfg.Memory, Notifier: notifier{d}, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	d.core = core
	return d, nil
}

// Doorbells lists one entry a queue: all at QueueNotify, told apart by the value
// written. The descriptors stay the device's and are valid until Close.
func (d *Device) Doorbells() []Doorbell {
	ds := make([]Doorbell, d.core.Queues())
	for i := range ds {
		ds[i] = Doorbell{OffsetBytes: VIRTIO_MMIO_QUEUE_NOTIFY, LenBytes: 4, Match: true, Value: uint32(i), FD: d.core.DoorbellFD(i)}
	}
	return ds
}

// Pause stops taking requests, quiesces the device half and returns when
// nothing is outstanding. When ctx ends first the device runs on, and the
// error says what was outstanding. A second Pause does nothing.
func (d *Device) Pause(ctx context.Context) error { return d.core.Pause(ctx) }

// Resume goes on after Pause: first with the requests that the half gave back.
func (d *Device) Resume() error { return d.core.Resume() }

// Reset is the machine's reset: the device half is reset, and all registers are
// as after New. It waits for the half, at most virtio.ResetWait.
func (d *Device) Reset() error {
	err := d.core.Reset()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sel = selectors{}
	return err
}

// Close resets the half, joins every goroutine and closes the eventfds. It
// leaves the device half open. A second Close does nothing.
func (d *Device) Close() error { return d.core.Close() }

// Stats is a snapshot of the counters.
func (d *Device) Stats() virtio.Stats { return d.core.Stats() }

// Read fills p, of 1, 2, 4 or 8 bytes, from the register page at off. Control
// registers are read by aligned 32 bits; anything else there reads as 0.
func (d *Device) Read(off uint64, p []byte) {
	clear(p)
	switch {
	case off >= VIRTIO_MMIO_CONFIG:
		d.core.ReadConfig(off-VIRTIO_MMIO_CONFIG, p)
	case len(p) == 4 && off%4 == 0:
		binary.LittleEndian.PutUint32(p, d.register(off))
	}
}

func (d *Device) register(off uint64) uint32 {
	d.mu.Lock()
	sel := d.sel
	d.mu.Unlock()
	switch off {
	case VIRTIO_MMIO_MAGIC_VALUE:
		return magicValue
	case VIRTIO_MMIO_VERSION:
		return version
	case VIRTIO_MMIO_DEVICE_ID:
		return uint32(d.core.ID())
	case VIRTIO_MMIO_VENDOR_ID:
		return vendorID
	case VIRTIO_MMIO_DEVICE_FEATURES:
		return d.core.DeviceFeatures(sel.deviceFeature)
	case VIRTIO_MMIO_QUEUE_NUM_MAX:
		return uint32(d.core.Queue(sel.queue).MaxSize)
	case VIRTIO_MMIO_QUEUE_READY:
		if d.core.Queue(sel.queue).Enabled {
			return 1
		}
	case VIRTIO_MMIO_INTERRUPT_STATUS:
		return d.interrupts.Load()
	case VIRTIO_MMIO_STATUS:
		return uint32(d.core.Status())
	case VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_BASE_HIGH:
		return 0xFFFF_FFFF // no such region (4.2.2)
	case VIRTIO_MMIO_CONFIG_GENERATION:
		return d.core.Generation()
	}
	return 0
}

// Write applies a driver's write of p at off of the register page. One that fits
// no register is ignored.
func (d *Device) Write(off uint64, p []byte) {
	switch {
	case off >= VIRTIO_MMIO_CONFIG:
		d.core.WriteConfig(off-VIRTIO_MMIO_CONFIG, p)
	case len(p) == 4 && off%4 == 0:
		d.setRegister(off, binary.LittleEndian.Uint32(p))
	}
}

func (d *Device) setRegister(off uint64, v uint32) {
	d.mu.Lock()
	sel := d.sel
	switch off {
	case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
		d.sel.deviceFeature = v
	case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
		d.sel.driverFeature = v
	case VIRTIO_MMIO_QUEUE_SEL:
		d.sel.queue = v
	}
	d.mu.Unlock()
	switch off {
	case VIRTIO_MMIO_DRIVER_FEATURES:
		d.core.SetDriverFeatures(sel.driverFeature, v)
	case VIRTIO_MMIO_QUEUE_NUM:
		d.core.SetQueueSize(sel.queue, v)
	case VIRTIO_MMIO_QUEUE_READY:
		switch v {
		case 0:
			d.core.DisableQueue(sel.queue)
		case 1:
			d.core.EnableQueue(sel.queue)
		}
	case VIRTIO_MMIO_QUEUE_NOTIFY:
		d.core.Notify(v)
	case VIRTIO_MMIO_INTERRUPT_ACK:
		d.interrupts.And(^v)
	case VIRTIO_MMIO_STATUS:
		d.setStatus(v)
	case VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH:
		d.core.SetQueueArea(sel.queue, virtio.AreaDesc, off&4 != 0, v)
	case VIRTIO_MMIO_QUEUE_DRIVER_LOW, VIRTIO_MMIO_QUEUE_DRIVER_HIGH:
		d.core.SetQueueArea(sel.queue, virtio.AreaDriver, off&4 != 0, v)
	case VIRTIO_MMIO_QUEUE_DEVICE_LOW, VIRTIO_MMIO_QUEUE_DEVICE_HIGH:
		d.core.SetQueueArea(sel.queue, virtio.AreaDevice, off&4 != 0, v)
	}
}

// setStatus writes the status register. A reset is waited for, because drivers
// of this transport take it as done when the write returns.
func (d *Device) setStatus(v uint32) {
	if v > 0xFF {
		return
	}
	done := d.core.SetStatus(byte(v))
	if v != 0 || done == nil {
		return
	}
	t := time.NewTimer(ResetWait)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// notifier is the Device as virtio.Core sees it. It takes no lock.
type notifier struct{ d *Device }

// QueueInterrupt sets the status bit and raises the line. An edge is sent even
// where the bit was set: the driver may have acknowledged in between.
func (n notifier) QueueInterrupt(int) error {
	n.d.interrupts.Or(VIRTIO_MMIO_INT_VRING)
	return n.d.line.Signal()
}

// ConfigInterrupt does the same for a configuration change.
func (n notifier) ConfigInterrupt() error {
	n.d.interrupts.Or(VIRTIO_MMIO_INT_CONFIG)
	return n.d.line.Signal()
}

// ResetDone clears InterruptStatus (4.2.2.1).
func (n notifier) ResetDone() { n.d.interrupts.Store(0) }
