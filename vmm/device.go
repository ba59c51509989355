package vmm

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/peervisor/peervisor/kvm"
	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/mmio"
	"github.com/peervisor/peervisor/virtio/pci"
	"github.com/peervisor/peervisor/vmm/chipset"
)

// Addresses of machine version 1 (docs/machine-v1.md).
const (
	pciWindowStart = 0xC000_0000
	pciWindowEnd   = 0xE000_0000
	virtioMMIOBase = 0xF000_0000
)

// transport is what pci.Function and mmio.Device have in common.
type transport interface {
	Pause(ctx context.Context) error
	Resume() error
	Close() error
	Stats() virtio.Stats
}

// device is one virtio device of the machine.
type device struct {
	name string
	half transport
	msix *msix      // PCI
	bar  *barWindow // PCI
	line edgeLine   // MMIO
}

func (d *device) close() error {
	err := d.half.Close()
	if d.msix != nil {
		d.msix.close()
	} else {
		d.line.fd.close()
	}
	if err != nil {
		return fmt.Errorf("close device %s: %w", d.name, err)
	}
	return nil
}

// addDevices makes the transport halves of the configuration's devices.
func (m *Machine) addDevices(host *chipset.PCIHost) error {
	slot, window := 1, 0
	for _, c := range m.cfg.Devices {
		var err error
		if c.Transport == TransportMMIO {
			err = m.addMMIO(c, window)
			window++
		} else {
			err = m.addPCI(c, host, slot)
			slot++
		}
		if err != nil {
			return fmt.Errorf("device %s: %w", c.Name, err)
		}
	}
	return nil
}

func (m *Machine) addPCI(c DeviceConfig, host *chipset.PCIHost, slot int) error {
	d := &device{name: c.Name, msix: &msix{router: m.router}}
	d.bar = &barWindow{m: m, counted: counted{name: c.Name + " bar"}}
	f, err := pci.New(pci.Config{
		Name: c.Name, Device: c.Half, Memory: m.ram, Log: m.cfg.Log,
		Slot: slot, BAR: pciWindowStart + uint32(slot)*pci.BARLenBytes,
		MSIX: d.msix, Mapper: d.bar,
	})
	if err != nil {
		return err
	}
	// Nothing reaches the function before the guest runs.
	d.msix.vectors = make([]vector, f.Vectors())
	d.bar.bells, d.bar.counted.h = f.Doorbells(), barHandler{f}
	d.half = f
	m.devices = append(m.devices, d)
	m.ranges = append(m.ranges, &d.bar.counted)
	return host.Add(slot, f)
}

func (m *Machine) addMMIO(c DeviceConfig, i int) error {
	line, err := newEdgeLine(m.vm, firstMMIOGSI+uint32(i))
	if err != nil {
		return err
	}
	half, err := mmio.New(mmio.Config{Name: c.Name, Device: c.Half, Memory: m.ram, Line: line, Log: m.cfg.Log})
	if err != nil {
		line.fd.close()
		return err
	}
	m.devices = append(m.devices, &device{name: c.Name, half: half, line: line})
	addr := virtioMMIOBase + uint64(i)*mmio.LenBytes
	if err := m.addRange(&m.mmio, c.Name+" registers", addr, mmio.LenBytes, half); err != nil {
		return err
	}
	m.ringBells(addr, half.Doorbells())
	return nil
}

// addRange puts a handler with counters on a bus.
func (m *Machine) addRange(bus *chipset.Bus, name string, start, lenBytes uint64, h chipset.Handler) error {
	c := &counted{name: name, h: h}
	if err := bus.Add(name, start, lenBytes, c); err != nil {
		return err
	}
	m.ranges = append(m.ranges, c)
	return nil
}

// barHandler gives a function's BAR 0 to the bus.
type barHandler struct{ f *pci.Function }

func (h barHandler) Read(off uint64, p []byte)  { h.f.ReadBAR(off, p) }
func (h barHandler) Write(off uint64, p []byte) { h.f.WriteBAR(off, p) }

func event(base uint64, b virtio.Doorbell) kvm.IOEvent {
	return kvm.IOEvent{Addr: base + b.OffsetBytes, LenBytes: b.LenBytes, Match: b.Match, Value: uint64(b.Value), FD: b.FD}
}

// ringBells connects doorbells to eventfds and returns those that KVM had room
// for. The others work by exits.
func (m *Machine) ringBells(base uint64, bells []virtio.Doorbell) []kvm.IOEvent {
	var events []kvm.IOEvent
	for _, b := range bells {
		e := event(base, b)
		if err := m.vm.AssignIOEvent(e); err != nil {
			m.lostBells.Add(1)
			continue
		}
		events = append(events, e)
	}
	return events
}

// barWindow shows a function's BAR 0 to the guest where the driver wants it: it
// implements pci.Mapper.
type barWindow struct {
	m       *Machine
	counted counted
	bells   []virtio.Doorbell

	mu     sync.Mutex
	mapped bool
	addr   uint64
	events []kvm.IOEvent
}

var errOutsideWindow = errors.New("outside the PCI memory window")

// Map implements pci.Mapper. The host bridge decodes the PCI window only: a BAR
// elsewhere, over RAM or over the interrupt controllers, is nowhere.
func (w *barWindow) Map(bar int, addr, lenBytes uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if addr < pciWindowStart || addr > pciWindowEnd-lenBytes {
		return fmt.Errorf("map BAR %d at %#x+%#x: %w", bar, addr, lenBytes, errOutsideWindow)
	}
	if w.mapped {
		return fmt.Errorf("map BAR %d at %#x: it is at %#x", bar, addr, w.addr)
	}
	if err := w.m.mmio.Add(w.counted.name, addr, lenBytes, &w.counted); err != nil {
		return fmt.Errorf("map BAR %d: %w", bar, err)
	}
	w.mapped, w.addr = true, addr
	w.events = w.m.ringBells(addr, w.bells)
	return nil
}

// Unmap implements pci.Mapper.
func (w *barWindow) Unmap(bar int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.mapped {
		return nil
	}
	var errs []error
	for _, e := range w.events {
		errs = append(errs, w.m.vm.DeassignIOEvent(e))
	}
	errs = append(errs, w.m.mmio.Remove(w.addr))
	w.mapped, w.events = false, nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("unmap BAR %d: %w", bar, err)
	}
	return nil
}
