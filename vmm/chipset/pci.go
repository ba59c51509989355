package chipset

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
)

// PCIConfigBytes is the size of a function's configuration space (PCI Express
// 4.0, 7.2): 256 bytes by mechanism 1, all 4096 by ECAM.
const PCIConfigBytes = 4096

// PCISlots is the number of device numbers on a bus; slot 0 is the host bridge.
const PCISlots = 32

// PCIFunction is the configuration space of function 0 of a slot. The access is
// naturally aligned, 1, 2 or 4 bytes, and lies in the 4096 bytes. Both methods
// are called on vCPU threads, possibly from several at once, and must not block.
type PCIFunction interface {
	ReadConfig(off int, p []byte)
	WriteConfig(off int, p []byte)
}

// PCIHost is bus 0 of segment 0: a host bridge at 00:00.0 and up to 31
// functions, reached by ECAM and by configuration mechanism 1.
type PCIHost struct {
	slots   [PCISlots]atomic.Pointer[PCIFunction]
	address atomic.Uint32 // CONFIG_ADDRESS
	reset   Handler       // port 0xCF9; nil: unclaimed
}

// NewPCIHost makes a bus with the host bridge only. reset takes the accesses to
// port 0xCF9, which lies in the midst of mechanism 1's ports; nil leaves it
// unclaimed.
func NewPCIHost(reset Handler) *PCIHost {
	h := &PCIHost{reset: reset}
	var bridge PCIFunction = newHostBridge()
	h.slots[0].Store(&bridge)
	return h
}

// Add puts f into slot 1..31.
func (h *PCIHost) Add(slot int, f PCIFunction) error {
	if slot < 1 || slot >= PCISlots || f == nil {
		return fmt.Errorf("add PCI function to slot %d: slots 1 to %d take one function each", slot, PCISlots-1)
	}
	if !h.slots[slot].CompareAndSwap(nil, &f) {
		return fmt.Errorf("add PCI function to slot %d: it is taken", slot)
	}
	return nil
}

// function returns what sits at bus, device, function, or nil.
func (h *PCIHost) function(bus, dev, fn uint32) PCIFunction {
	if bus != 0 || dev >= PCISlots || fn != 0 {
		return nil
	}
	if f := h.slots[dev].Load(); f != nil {
		return *f
	}
	return nil
}

// configAccess says whether an access to configuration space has a form that
// exists on the wire: 1, 2 or 4 bytes, naturally aligned.
func configAccess(off uint64, n int) bool {
	return (n == 1 || n == 2 || n == 4) && off%uint64(n) == 0
}

// ECAM is the memory-mapped configuration space of bus 0, ECAMBytes long
// (PCI Express 4.0, 7.2.2). Where no function is, and for accesses that hardware
// does not define (8 bytes, unaligned), reads give all ones and writes vanish.
func (h *PCIHost) ECAM() Handler { return (*ecam)(h) }

type ecam PCIHost

func (e *ecam) target(off uint64, n int) (PCIFunction, int) {
	if !configAccess(off, n) || off >= ECAMBytes {
		return nil, 0
	}
	o := uint32(off)
	return (*PCIHost)(e).function(o>>20, o>>15&0x1F, o>>12&7), int(o & 0xFFF)
}

func (e *ecam) Read(off uint64, p []byte) {
	f, reg := e.target(off, len(p))
	if f == nil {
		fillFF(p)
		return
	}
	f.ReadConfig(reg, p)
}

func (e *ecam) Write(off uint64, p []byte) {
	if f, reg := e.target(off, len(p)); f != nil {
		f.WriteConfig(reg, p)
	}
}

// Ports is configuration mechanism 1 at ports 0xCF8 to 0xCFF (PCI Local Bus
// 3.0, 3.2.2.3.2). CONFIG_ADDRESS takes 32-bit accesses only; a byte at 0xCF9 is
// the reset control register; what is left of 0xCF8 to 0xCFB is unclaimed.
//
// The address register is one for the whole machine, as on hardware: a guest
// whose processors use it at once without a lock of their own mixes them up.
func (h *PCIHost) Ports() Handler { return (*pciPorts)(h) }

type pciPorts PCIHost

const (
	configAddressEnable = 1 << 31
	// configAddressMask: bits 30..24 are reserved, 1..0 are always 0.
	configAddressMask = 0x80FF_FFFC
)

func (m *pciPorts) target(off uint64, n int) (PCIFunction, int) {
	addr := m.address.Load()
	if off < 4 || !configAccess(off, n) || addr&configAddressEnable == 0 {
		return nil, 0
	}
	return (*PCIHost)(m).function(addr>>16&0xFF, addr>>11&0x1F, addr>>8&7), int(addr&0xFC) + int(off-4)
}

func (m *pciPorts) Read(off uint64, p []byte) {
	switch {
	case off == 0 && len(p) == 4:
		binary.LittleEndian.PutUint32(p, m.address.Load())
		return
	case off == ResetPort-PCIPort && len(p) == 1 && m.reset != nil:
		m.reset.Read(0, p)
		return
	}
	if f, reg := m.target(off, len(p)); f != nil {
		f.ReadConfig(reg, p)
		return
	}
	fillFF(p)
}

func (m *pciPorts) Write(off uint64, p []byte) {
	switch {
	case off == 0 && len(p) == 4:
		m.address.Store(binary.LittleEndian.Uint32(p) & configAddressMask)
		return
	case off == ResetPort-PCIPort && len(p) == 1 && m.reset != nil:
		m.reset.Write(0, p)
		return
	}
	if f, reg := m.target(off, len(p)); f != nil {
		f.WriteConfig(reg, p)
	}
}

// hostBridge is function 00:00.0: it has an identity and nothing to set.
type hostBridge struct{ config [64]byte }

// Type 0 header (PCI Local Bus 3.0, 6.1) of the host bridge.
const (
	pciVendorID = 0x00
	pciDeviceID = 0x02
	pciClass    = 0x0A // subclass, then base class

	hostBridgeVendor = 0x1B36 // Red Hat
	hostBridgeDevice = 0x0008 // generic PCIe host bridge
	hostBridgeClass  = 0x0600 // bridge, host (PCI Code and ID Assignment, 1.7)
)

func newHostBridge() *hostBridge {
	b := &hostBridge{}
	binary.LittleEndian.PutUint16(b.config[pciVendorID:], hostBridgeVendor)
	binary.LittleEndian.PutUint16(b.config[pciDeviceID:], hostBridgeDevice)
	binary.LittleEndian.PutUint16(b.config[pciClass:], hostBridgeClass)
	return b
}

// ReadConfig implements PCIFunction. Registers that are not there read as 0.
func (b *hostBridge) ReadConfig(off int, p []byte) {
	clear(p)
	if off >= 0 && off < len(b.config) {
		copy(p, b.config[off:])
	}
}

// WriteConfig implements PCIFunction: every register is read-only.
func (b *hostBridge) WriteConfig(int, []byte) {}
