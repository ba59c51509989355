package kvm

import (
	"encoding/binary"
	"fmt"
)

// Route is one entry of the GSI routing table: where an interrupt number leads.
type Route struct {
	// GSI is the interrupt number, below KVM_MAX_IRQ_ROUTES. Two entries with one
	// GSI lead to both (a pin on PIC and IOAPIC).
	GSI uint32
	// MSI: the route is a message of Data to Addr. Otherwise it is pin Pin of the
	// controller Chip (KVM_IRQCHIP_…).
	MSI       bool
	Chip, Pin uint32
	Addr      uint64
	Data      uint32
}

const (
	routingHeaderBytes = 8  // struct kvm_irq_routing: nr, flags
	routingEntryBytes  = 48 // struct kvm_irq_routing_entry: gsi, type, flags, pad, a union of 32 bytes
)

func encodeRoutes(routes []Route) []byte {
	b := make([]byte, routingHeaderBytes+routingEntryBytes*len(routes))
	le := binary.LittleEndian
	le.PutUint32(b, uint32(len(routes)))
	for i, r := range routes {
		e := b[routingHeaderBytes+routingEntryBytes*i:]
		le.PutUint32(e, r.GSI)
		if r.MSI {
			le.PutUint32(e[4:], kvmIRQRoutingMSI)
			le.PutUint32(e[16:], uint32(r.Addr))     // address_lo
			le.PutUint32(e[20:], uint32(r.Addr>>32)) // address_hi
			le.PutUint32(e[24:], r.Data)
		} else {
			le.PutUint32(e[4:], kvmIRQRoutingIRQChip)
			le.PutUint32(e[16:], r.Chip)
			le.PutUint32(e[20:], r.Pin)
		}
	}
	return b
}

// SetRoutes replaces the whole GSI routing table.
func (vm *VM) SetRoutes(routes []Route) error {
	if len(routes) > KVM_MAX_IRQ_ROUTES {
		return fmt.Errorf("KVM_SET_GSI_ROUTING: %d routes, the kernel takes %d", len(routes), KVM_MAX_IRQ_ROUTES)
	}
	_, err := vm.fd.buffer("KVM_SET_GSI_ROUTING", iow(0x6a, routingHeaderBytes), encodeRoutes(routes))
	return err
}

// SetIRQLine drives the pin of a GSI.
func (vm *VM) SetIRQLine(gsi uint32, high bool) error {
	l := [2]uint32{gsi, 0} // struct kvm_irq_level: irq, level
	if high {
		l[1] = 1
	}
	return write(&vm.fd, "KVM_IRQ_LINE", 0x61, &l)
}

type msi struct { // struct kvm_msi
	addrLo, addrHi, data, flags, devid uint32
	_                                  [12]byte
}

// SignalMSI sends a message without a route. delivered is false where the guest
// blocked it.
func (vm *VM) SignalMSI(addr uint64, data uint32) (delivered bool, err error) {
	m := msi{addrLo: uint32(addr), addrHi: uint32(addr >> 32), data: data}
	n, err := signalMSI(&vm.fd, &m)
	return n > 0, err
}

type irqfd struct { // struct kvm_irqfd
	fd, gsi, flags, resamplefd uint32
	_                          [16]byte
}

// AssignIRQFD makes each write to eventFD an edge of gsi, through the routing
// table. The caller keeps the eventfd open until DeassignIRQFD.
func (vm *VM) AssignIRQFD(eventFD int, gsi uint32) error {
	q := irqfd{fd: uint32(eventFD), gsi: gsi}
	return gsiError(gsi, write(&vm.fd, "KVM_IRQFD", 0x76, &q))
}

// AssignResampleIRQFD makes each write to eventFD raise the level-triggered gsi
// until the guest's end of interrupt, which is told by resampleFD.
func (vm *VM) AssignResampleIRQFD(eventFD, resampleFD int, gsi uint32) error {
	q := irqfd{fd: uint32(eventFD), gsi: gsi, flags: kvmIRQFDFlagResample, resamplefd: uint32(resampleFD)}
	return gsiError(gsi, write(&vm.fd, "KVM_IRQFD", 0x76, &q))
}

// DeassignIRQFD undoes AssignIRQFD. Interrupts under way have been delivered
// when it returns.
func (vm *VM) DeassignIRQFD(eventFD int, gsi uint32) error {
	q := irqfd{fd: uint32(eventFD), gsi: gsi, flags: kvmIRQFDFlagDeassign}
	return gsiError(gsi, write(&vm.fd, "KVM_IRQFD", 0x76, &q))
}

func gsiError(gsi uint32, err error) error {
	if err != nil {
		return fmt.Errorf("GSI %d: %w", gsi, err)
	}
	return nil
}

// IOEvent is an address at which a guest's write becomes an event.
type IOEvent struct {
	// Addr is a guest-physical address, or a port if Port is set.
	Addr uint64
	// LenBytes is the length of the write: 1, 2, 4 or 8; 0: any
	// (KVM_CAP_IOEVENTFD_ANY_LENGTH).
	LenBytes int
	Port     bool
	// Match says that only a write of Value counts. LenBytes must not be 0 then.
	Match bool
	Value uint64
	// FD is the eventfd, which the caller keeps open until DeassignIOEvent.
	FD int
}

type ioEventFD struct { // struct kvm_ioeventfd
	datamatch, addr  uint64
	bytes, fd, flags uint32
	_                [36]byte
}

func (e IOEvent) encode(flags uint32) *ioEventFD {
	k := &ioEventFD{addr: e.Addr, bytes: uint32(e.LenBytes), fd: uint32(e.FD), flags: flags}
	if e.Match {
		k.flags |= kvmIOEventFDFlagDatamatch
		k.datamatch = e.Value
	}
	if e.Port {
		k.flags |= kvmIOEventFDFlagPIO
	}
	return k
}

// AssignIOEvent connects e.Addr to e.FD: such writes no longer exit.
func (vm *VM) AssignIOEvent(e IOEvent) error {
	return ioEventError(e, write(&vm.fd, "KVM_IOEVENTFD", 0x79, e.encode(0)))
}

// DeassignIOEvent undoes AssignIOEvent of an equal e.
func (vm *VM) DeassignIOEvent(e IOEvent) error {
	return ioEventError(e, write(&vm.fd, "KVM_IOEVENTFD", 0x79, e.encode(kvmIOEventFDFlagDeassign)))
}

func ioEventError(e IOEvent, err error) error {
	if err != nil {
		return fmt.Errorf("eventfd at %#x: %w", e.Addr, err)
	}
	return nil
}
