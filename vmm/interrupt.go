package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kvm"
)

// Interrupt numbers of machine version 1 (docs/machine-v1.md).
const (
	ioapicPins   = 24
	picPins      = 16
	cascadePin   = 2
	timerPin     = 2 // of the IOAPIC
	firstMSIGSI  = ioapicPins
	firstMMIOGSI = 16 // virtio-mmio device i has GSI 16 + i
)

// routeTable is the part of kvm.VM that a router needs.
type routeTable interface {
	SetRoutes([]kvm.Route) error
	AssignIRQFD(eventFD int, gsi uint32) error
	DeassignIRQFD(eventFD int, gsi uint32) error
}

// router owns the GSI routing table: the IOAPIC's and PICs' pins, and one MSI
// route for each vector in use.
type router struct {
	vm routeTable

	mu     sync.Mutex
	routes []kvm.Route // pins first, then GSI firstMSIGSI+i at index pins+i
	pins   int
}

// newRouter puts the pins' routes into the kernel. Pin i of the IOAPIC, and of
// the PICs below 16, has GSI i, but for the PIT: KVM gives it GSI 0, and on a PC it
// sits at pin 0 of the PIC and pin 2 of the IOAPIC, as MADT's override says. GSI 2,
// which would be the PICs' cascade, leads nowhere.
func newRouter(vm routeTable) (*router, error) {
	r := &router{vm: vm, routes: make([]kvm.Route, 0, ioapicPins+picPins)}
	for i := range uint32(ioapicPins) {
		if i == cascadePin {
			continue
		}
		pin := i
		if i == 0 {
			pin = timerPin
		}
		r.routes = append(r.routes, kvm.Route{GSI: i, Chip: kvm.KVM_IRQCHIP_IOAPIC, Pin: pin})
		if i < picPins {
			r.routes = append(r.routes, kvm.Route{GSI: i, Chip: kvm.KVM_IRQCHIP_PIC_MASTER + i/8, Pin: i % 8})
		}
	}
	r.pins = len(r.routes)
	if err := vm.SetRoutes(r.routes); err != nil {
		return nil, fmt.Errorf("route interrupt pins: %w", err)
	}
	return r, nil
}

var errNoGSI = errors.New("no interrupt route is left")

// set routes gsi to a message; gsi 0 takes a new one. It returns the GSI.
func (r *router) set(gsi uint32, addr uint64, data uint32) (uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.routes
	fresh := gsi == 0
	if fresh {
		if len(next) == kvm.KVM_MAX_IRQ_ROUTES {
			return 0, errNoGSI
		}
		gsi = uint32(firstMSIGSI + len(next) - r.pins)
		next = append(next, kvm.Route{})
	}
	i := r.pins + int(gsi) - firstMSIGSI
	old, route := next[i], kvm.Route{GSI: gsi, MSI: true, Addr: addr, Data: data}
	if old == route {
		return gsi, nil // saves the kernel a grace period
	}
	next[i] = route
	if err := r.vm.SetRoutes(next); err != nil {
		next[i] = old // a refused address must not poison the table
		return gsi, fmt.Errorf("route GSI %d to %#x:%#x: %w", gsi, addr, data, err)
	}
	r.routes = next
	return gsi, nil
}

// eventFD is an interrupt's trigger.
type eventFD int

func newEventFD() (eventFD, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("eventfd: %w", err)
	}
	return eventFD(fd), nil
}

// signal adds one. A counter that is full (EAGAIN) has signalled already.
func (e eventFD) signal() error {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	if _, err := unix.Write(int(e), one[:]); err != nil && err != unix.EAGAIN {
		return fmt.Errorf("signal interrupt: %w", err)
	}
	return nil
}

func (e eventFD) close() {
	if e >= 0 {
		_ = unix.Close(int(e)) // an eventfd's close reports nothing
	}
}

// msix raises the MSI-X vectors of one function: it implements pci.MSIX. Each
// vector gets an eventfd and a GSI when the driver first unmasks it.
type msix struct {
	router  *router
	vectors []vector
}

// vector is one MSI-X vector. While masked, a signal is kept.
//
//	          SetVector               Signal: pending
//	masked ─────────────► unmasked       (masked)
//	   ▲                     │
//	   └───── MaskVector ────┘        Signal: eventfd
//	                                     (unmasked)
type vector struct {
	mu       sync.Mutex
	fd       eventFD // valid if gsi != 0
	gsi      uint32
	unmasked bool
	pending  bool
}

func (x *msix) vector(i int) (*vector, error) {
	if i < 0 || i >= len(x.vectors) {
		return nil, fmt.Errorf("MSI-X vector %d: the function has %d", i, len(x.vectors))
	}
	return &x.vectors[i], nil
}

// SetVector implements pci.MSIX.
func (x *msix) SetVector(i int, addr uint64, data uint32) error {
	v, err := x.vector(i)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gsi == 0 {
		if err := v.openLocked(x.router, addr, data); err != nil {
			return fmt.Errorf("MSI-X vector %d: %w", i, err)
		}
	} else if _, err := x.router.set(v.gsi, addr, data); err != nil {
		v.unmasked = false
		return fmt.Errorf("MSI-X vector %d: %w", i, err)
	}
	v.unmasked = true
	if v.pending {
		v.pending = false
		return v.fd.signal()
	}
	return nil
}

func (v *vector) openLocked(r *router, addr uint64, data uint32) error {
	fd, err := newEventFD()
	if err != nil {
		return err
	}
	gsi, err := r.set(0, addr, data)
	if err == nil {
		// A GSI whose irqfd fails stays unused: there are more than vectors.
		err = r.vm.AssignIRQFD(int(fd), gsi)
	}
	if err != nil {
		fd.close()
		return err
	}
	v.fd, v.gsi = fd, gsi
	return nil
}

// MaskVector implements pci.MSIX.
func (x *msix) MaskVector(i int) error {
	v, err := x.vector(i)
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.unmasked = false
	v.mu.Unlock()
	return nil
}

// Signal implements pci.MSIX.
func (x *msix) Signal(i int) error {
	v, err := x.vector(i)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.unmasked {
		v.pending = true
		return nil
	}
	return v.fd.signal()
}

// close gives the eventfds back. Nobody signals any more.
func (x *msix) close() {
	for i := range x.vectors {
		if v := &x.vectors[i]; v.gsi != 0 {
			v.fd.close()
			v.gsi = 0
		}
	}
}

// pinLine drives an IOAPIC and PIC pin: it implements chipset.Line.
type pinLine struct {
	vm  *kvm.VM
	gsi uint32
}

// Set implements chipset.Line.
func (l pinLine) Set(high bool) error { return l.vm.SetIRQLine(l.gsi, high) }

// edgeLine is an edge-triggered pin behind an eventfd: it implements mmio.Line.
type edgeLine struct{ fd eventFD }

// Signal implements mmio.Line.
func (l edgeLine) Signal() error { return l.fd.signal() }

func newEdgeLine(vm routeTable, gsi uint32) (edgeLine, error) {
	fd, err := newEventFD()
	if err != nil {
		return edgeLine{-1}, err
	}
	if err := vm.AssignIRQFD(int(fd), gsi); err != nil {
		fd.close()
		return edgeLine{-1}, err
	}
	return edgeLine{fd}, nil
}
