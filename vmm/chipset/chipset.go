// Package chipset models the board of machine version 1: the port and
// memory-mapped buses, serial port, real-time clock, keyboard controller, power
// management, reset control, pvpanic, and the PCI host bridge.
//
// It is not a machine: which thread exits from the guest, how an interrupt
// reaches a vCPU and what happens on power-off are package vmm's. It knows no
// KVM and no virtio; interrupt pins, clocks and the consumers of power events
// are handed in. Addresses and ports are those of docs/machine-v1.md and are
// named here as constants; vmm adds the devices to its buses.
//
// # Threads and locks
//
// Any vCPU thread may call any Handler at any time; each device has one mutex
// of its own, held only for register work. Nothing is called with it held: a
// device decides under its lock what its pin shall be, lets go, and then moves
// the pin under the pin's own lock, the only one held while Line.Set runs.
// Lock order: device, then pin. Functions that are handed in (Line.Set, the
// power function, Clock) must not call back into the device that calls them.
//
// # Saved state
//
// Devices start in their power-on state. A machine reset is a new machine.
//
// Specifications: PC16550D (National Semiconductor, 1995), MC146818A
// (Motorola, 1984), Intel 82371SB and ICH9 (reset control), ACPI 6.4 section
// 4.8, PCI Local Bus 3.0 section 3.2.2.3, PCI Express 4.0 section 7.2.
package chipset

// Ports of machine version 1 (docs/machine-v1.md).
const (
	SerialPort   = 0x3F8
	SerialBytes  = 8
	I8042Port    = 0x60 // data, and 0x64 status and command
	I8042Bytes   = 5    // 0x60..0x64; 0x61..0x63 answer as unclaimed
	RTCPort      = 0x70
	RTCBytes     = 2
	PVPanicPort  = 0x505
	PVPanicBytes = 1
	PMPort       = 0x600
	PMBytes      = 16
	PCIPort      = 0xCF8
	PCIPortBytes = 8
	ResetPort    = 0xCF9 // inside the PCI ports; PCIHost.Ports hands it on
)

// Interrupt pins of machine version 1, as GSIs.
const (
	SerialGSI = 4
	RTCGSI    = 8
	SCIGSI    = 9
)

// Memory-mapped ranges of machine version 1.
const (
	ECAMStart uint64 = 0xE000_0000
	ECAMBytes uint64 = 1 << 20 // one bus: 32 devices x 8 functions x 4096 bytes
)

// Handler is what answers in a range of a Bus.
//
// Both methods are called on a vCPU thread, from several at once, and must not
// block: the guest's processor stands still meanwhile. off counts from the
// start of the range; the access lies wholly inside it. len(p) is 1, 2, 4 or 8.
type Handler interface {
	// Read fills p, little-endian.
	Read(off uint64, p []byte)
	// Write takes p, little-endian, borrowed for the call.
	Write(off uint64, p []byte)
}

// PowerEvent is something that ends or may end the machine.
type PowerEvent int

const (
	// PowerOff: the guest entered ACPI sleep state S5.
	PowerOff PowerEvent = iota + 1
	// Reset: the guest asked for a reset, by port 0xCF9 or the keyboard controller.
	Reset
	// Panic: the guest's kernel reported a panic through pvpanic.
	Panic
	// CrashLoaded: the guest's kernel panicked and goes on into a crash kernel.
	// The machine goes on too.
	CrashLoaded
)

func (e PowerEvent) String() string {
	switch e {
	case PowerOff:
		return "power-off"
	case Reset:
		return "reset"
	case Panic:
		return "panic"
	case CrashLoaded:
		return "crash kernel started"
	}
	return "unknown power event"
}
