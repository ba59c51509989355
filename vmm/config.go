package vmm

import (
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/peervisor/peervisor/memory"
	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/vmm/boot"
)

// Bounds of a Config. The host may allow less: New says so then.
const (
	// MaxCPUs is one less than the local APIC IDs that the MADT's 8-bit entries
	// can name; 255 is the broadcast ID.
	MaxCPUs = 254
	// MinMemoryBytes holds the first MiB, which belongs to the loader, and a
	// kernel above it.
	MinMemoryBytes = 2 << 20
	// MaxMemoryBytes keeps all RAM below 2^40, which every host can map.
	MaxMemoryBytes = 1<<40 - (uint64(memory.HoleEnd) - uint64(memory.HoleStart))
	// MaxPCIDevices is the number of slots on bus 0 without the host bridge's.
	MaxPCIDevices = 31
	// MaxMMIODevices is the number of virtio-mmio windows of machine version 1.
	MaxMMIODevices = 8
	// MaxNameBytes bounds Config.Name and DeviceConfig.Name.
	MaxNameBytes = 128
)

// Config says what machine New makes. New copies it; what it points to is
// borrowed until Close returned.
type Config struct {
	// Name tells machines apart in logs and in /proc/PID/maps. At most
	// MaxNameBytes; empty: "guest".
	Name string
	// CPUs is the number of vCPUs, 1..MaxCPUs; 0: 1.
	CPUs int
	// MemoryBytes is the guest's RAM, a multiple of 4096 in
	// MinMemoryBytes..MaxMemoryBytes and not more than the host has. There is no
	// default. Host memory is taken as the guest touches it.
	MemoryBytes uint64
	// Boot is the kernel, its initrd and command line. The readers are used
	// during New only.
	Boot boot.Source
	// Serial is the 16550A at port 0x3F8, ttyS0 in the guest.
	Serial SerialConfig
	// Devices are the virtio devices, in the order in which the guest finds them.
	Devices []DeviceConfig
	// Log receives what an operator may want to know. nil: nothing is logged.
	Log *slog.Logger
}

// SerialConfig is the machine's one serial port.
type SerialConfig struct {
	// Out receives what the guest writes, in order and from one goroutine at a
	// time. Writing may block: output waits in a bounded buffer, and once that is
	// full the guest sees a transmitter that is not ready. nil: the machine has no
	// serial port.
	Out io.Writer
}

// Transport is how the guest reaches a virtio device.
type Transport uint8

const (
	// TransportPCI is a function on PCI bus 0 with MSI-X. The zero value.
	TransportPCI Transport = iota
	// TransportMMIO is a register window at a fixed address with one interrupt
	// line, for the bare guest and for microVMs.
	TransportMMIO
)

// String names the transport as configuration does.
func (t Transport) String() string {
	switch t {
	case TransportPCI:
		return "pci"
	case TransportMMIO:
		return "mmio"
	}
	return fmt.Sprintf("transport(%d)", uint8(t))
}

// DeviceConfig is one virtio device.
type DeviceConfig struct {
	// Name tells devices apart in errors, logs and Stats. Unique in the machine,
	// not empty, at most MaxNameBytes.
	Name string
	// Half is the device half. The machine borrows it: it is reset by Close, never
	// closed, and can go into another machine afterwards.
	Half virtio.Device
	// Transport is how the guest reaches it.
	Transport Transport
}

// check fills in defaults and refuses what no host could run.
func (c *Config) check() error {
	if c.Name == "" {
		c.Name = "guest"
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case len(c.Name) > MaxNameBytes:
		return configErrorf("name of %d bytes: at most %d", len(c.Name), MaxNameBytes)
	case c.CPUs < 1 || c.CPUs > MaxCPUs:
		return configErrorf("%d CPUs: expected 1 to %d", c.CPUs, MaxCPUs)
	case c.MemoryBytes < MinMemoryBytes || c.MemoryBytes > MaxMemoryBytes:
		return configErrorf("%d bytes of memory: expected %d MiB to %d GiB", c.MemoryBytes, MinMemoryBytes>>20, MaxMemoryBytes>>30)
	case c.MemoryBytes%memory.PageBytes != 0:
		return configErrorf("%d bytes of memory: expected a multiple of %d", c.MemoryBytes, memory.PageBytes)
	case c.Boot.Kernel == nil:
		return configErrorf("no kernel")
	}
	return c.checkDevices()
}

func (c *Config) checkDevices() error {
	names := make(map[string]bool, len(c.Devices))
	var pci, mmio int
	for i, d := range c.Devices {
		switch {
		case d.Name == "" || len(d.Name) > MaxNameBytes:
			return configErrorf("device %d: expected a name of 1 to %d bytes", i, MaxNameBytes)
		case names[d.Name]:
			return configErrorf("device %q: the name is used twice", d.Name)
		case d.Half == nil:
			return configErrorf("device %q: no device half", d.Name)
		case d.Transport == TransportPCI:
			pci++
		case d.Transport == TransportMMIO:
			mmio++
		default:
			return configErrorf("device %q: %s is no transport", d.Name, d.Transport)
		}
		names[d.Name] = true
	}
	if pci > MaxPCIDevices {
		return configErrorf("%d PCI devices: the bus has %d free slots", pci, MaxPCIDevices)
	}
	if mmio > MaxMMIODevices {
		return configErrorf("%d virtio-mmio devices: the machine has %d windows", mmio, MaxMMIODevices)
	}
	return nil
}

func configErrorf(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrConfig, fmt.Errorf(format, args...))
}

// Errors that callers tell apart with errors.Is. Those of /dev/kvm itself are
// kvm.ErrNotPresent and kvm.ErrNotPermitted.
var (
	// ErrConfig: the Config asks for what no machine can be.
	ErrConfig = errors.New("bad machine configuration")
	// ErrState: the machine's State does not allow the call.
	ErrState = errors.New("machine is in the wrong state")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("machine is closed")
)
