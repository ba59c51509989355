// Package acpi builds the ACPI tables of machine version 1 (docs/machine-v1.md)
// as plain bytes: RSDP, XSDT, FADT, FACS, MADT, MCFG and DSDT.
//
// It is not an interpreter and knows neither guest memory nor KVM: vmm puts
// the bytes at Base. The same Config gives the same bytes, always: a saved guest
// has parsed them. The DSDT's AML is written by the small encoder in aml.go, which
// can say what these tables say and no more.
//
// Specification: Advanced Configuration and Power Interface 6.4 (UEFI Forum,
// 2021); PCI Firmware 3.2 for MCFG; QEMU docs/specs/pvpanic.rst.
package acpi

import (
	"encoding/binary"
	"fmt"

	"github.com/peervisor/peervisor/vmm/chipset"
)

const (
	// Base is the guest-physical address at which the tables must be put; the
	// RSDP comes first.
	Base = 0xE_0000
	// MaxBytes is the room that the memory map keeps for them.
	MaxBytes = 0x2_0000

	// MaxCPUs bounds the processors: one MADT entry of 16 bytes each.
	MaxCPUs = 1024
	// MaxVirtioMMIO bounds the virtio-mmio devices.
	MaxVirtioMMIO = 8
	// ioapicPins is the number of GSIs that the IOAPIC has.
	ioapicPins = 24

	ioapicAddr = 0xFEC0_0000
	lapicAddr  = 0xFEE0_0000

	pciWindowStart = 0xC000_0000
	pciWindowBytes = 0x2000_0000

	virtioMMIOBytes = 0x1000
)

// Config says what of machine version 1 this machine has.
type Config struct {
	// CPUs is the number of processors, 1..MaxCPUs. Processor i has APIC ID i.
	CPUs int
	// Serial says that COM1 is there.
	Serial bool
	// VirtioMMIO lists the virtio-mmio devices, at most MaxVirtioMMIO.
	VirtioMMIO []MMIODevice
}

// MMIODevice is a virtio-mmio device.
type MMIODevice struct {
	// Addr is its guest-physical address, below 4 GiB and page aligned.
	Addr uint64
	// GSI is its interrupt, 0..23, edge triggered.
	GSI uint32
}

func (c *Config) check() error {
	if c.CPUs < 1 || c.CPUs > MaxCPUs {
		return fmt.Errorf("build ACPI tables for %d processors: 1 to %d are possible", c.CPUs, MaxCPUs)
	}
	if len(c.VirtioMMIO) > MaxVirtioMMIO {
		return fmt.Errorf("build ACPI tables for %d virtio-mmio devices: at most %d are possible", len(c.VirtioMMIO), MaxVirtioMMIO)
	}
	for i, d := range c.VirtioMMIO {
		if d.Addr%virtioMMIOBytes != 0 || d.Addr > 1<<32-virtioMMIOBytes || d.GSI >= ioapicPins {
			return fmt.Errorf("build ACPI tables: virtio-mmio device %d at %#x with GSI %d: want a page below 4 GiB and a GSI below %d", i, d.Addr, d.GSI, ioapicPins)
		}
	}
	return nil
}

// Build returns the tables, to be put at Base, and the guest-physical address
// of the RSDP in them.
func Build(cfg Config) (tables []byte, rsdp uint64, err error) {
	if err := cfg.check(); err != nil {
		return nil, 0, err
	}
	var l layout
	l.reserve(rsdpBytes)
	facsAddr := l.put(facs(), 64)
	dsdtAddr := l.put(table("DSDT", 2, dsdt(&cfg)), 16)
	entries := []uint64{
		l.put(table("FACP", 6, fadt(facsAddr, dsdtAddr)), 16),
		l.put(table("APIC", 5, madt(cfg.CPUs)), 16),
		l.put(table("MCFG", 1, mcfg()), 16),
	}
	var list []byte
	for _, e := range entries {
		list = binary.LittleEndian.AppendUint64(list, e)
	}
	xsdtAddr := l.put(table("XSDT", 1, list), 16)
	copy(l.b, rsdpTable(xsdtAddr))
	if len(l.b) > MaxBytes {
		return nil, 0, fmt.Errorf("build ACPI tables: they take %d bytes of %d", len(l.b), MaxBytes)
	}
	return l.b, Base, nil
}

// layout appends tables and tells where they will be.
type layout struct{ b []byte }

func (l *layout) reserve(n int) { l.b = append(l.b, make([]byte, n)...) }

func (l *layout) put(t []byte, align int) uint64 {
	l.reserve((align - len(l.b)%align) % align)
	at := Base + uint64(len(l.b))
	l.b = append(l.b, t...)
	return at
}

// Identification in every table's header (5.2.6).
const (
	oemID       = "PEERVR"
	oemTableID  = "MACHINE1"
	oemRevision = 1
	creatorID   = "PEER"

	headerBytes    = 36
	checksumOffset = 9
)

// table puts a header with its checksum before body.
func table(signature string, revision byte, body []byte) []byte {
	t := make([]byte, 0, headerBytes+len(body))
	t = append(t, signature...)
	t = binary.LittleEndian.AppendUint32(t, uint32(headerBytes+len(body)))
	t = append(t, revision, 0)
	t = append(t, oemID...)
	t = append(t, oemTableID...)
	t = binary.LittleEndian.AppendUint32(t, oemRevision)
	t = append(t, creatorID...)
	t = binary.LittleEndian.AppendUint32(t, 1)
	t = append(t, body...)
	t[checksumOffset] = checksum(t)
	return t
}

// checksum is the byte that makes the sum of b zero, where b has 0 in its place.
func checksum(b []byte) byte {
	var sum byte
	for _, v := range b {
		sum += v
	}
	return -sum
}

const rsdpBytes = 36

// rsdpTable is the root pointer, revision 2 (5.2.5.3): two checksums, one over
// the 20 bytes of revision 0 and one over all.
func rsdpTable(xsdt uint64) []byte {
	t := make([]byte, rsdpBytes)
	copy(t, "RSD PTR ")
	copy(t[9:], oemID)
	t[15] = 2
	binary.LittleEndian.PutUint32(t[20:], rsdpBytes)
	binary.LittleEndian.PutUint64(t[24:], xsdt)
	t[8] = checksum(t[:20])
	t[32] = checksum(t)
	return t
}

// dsdt describes the devices that no bus can enumerate.
func dsdt(cfg *Config) []byte {
	devices := []term{
		device("PCI0",
			name("_HID", eisaID("PNP0A08")),
			name("_CID", eisaID("PNP0A03")),
			name("_UID", integer(0)),
			name("_SEG", integer(0)),
			name("_BBN", integer(0)),
			name("_CRS", resourceTemplate(
				wordBusNumber(0, 0),
				ioPorts(chipset.PCIPort, chipset.PCIPortBytes),
				dwordMemory(pciWindowStart, pciWindowBytes),
			)),
		),
		// Firmware says here that ECAM is taken (PCI Firmware 3.2, 4.1.2);
		// without it Linux does not use MCFG.
		device("ECAM",
			name("_HID", eisaID("PNP0C02")),
			name("_UID", integer(0)),
			name("_CRS", resourceTemplate(memory32Fixed(uint32(chipset.ECAMStart), uint32(chipset.ECAMBytes)))),
		),
		device("RTC0",
			name("_HID", eisaID("PNP0B00")),
			name("_CRS", resourceTemplate(ioPorts(chipset.RTCPort, chipset.RTCBytes), interrupt(chipset.RTCGSI))),
		),
		pvpanic(),
	}
	if cfg.Serial {
		devices = append(devices, device("COM1",
			name("_HID", eisaID("PNP0501")),
			name("_UID", integer(1)),
			name("_CRS", resourceTemplate(ioPorts(chipset.SerialPort, chipset.SerialBytes), interrupt(chipset.SerialGSI))),
		))
	}
	for i, d := range cfg.VirtioMMIO {
		devices = append(devices, device(fmt.Sprintf("VM%02X", i),
			name("_HID", text("LNRO0005")),
			name("_UID", integer(uint64(i))),
			name("_CRS", resourceTemplate(memory32Fixed(uint32(d.Addr), virtioMMIOBytes), interrupt(d.GSI))),
		))
	}
	return join(
		// The type for PM1a and PM1b, two reserved (7.4.2.6).
		name(`\_S5`, pack(integer(chipset.SleepTypeS5), integer(chipset.SleepTypeS5), integer(0), integer(0))),
		scope(`\_SB`, devices...),
	)
}

// pvpanic is the device with the two methods that its specification names:
// RDPT tells the supported events, WRPT reports one.
func pvpanic() term {
	return device("PEVT",
		name("_HID", text("QEMU0001")),
		name("_STA", integer(0x0F)),
		name("_CRS", resourceTemplate(ioPorts(chipset.PVPanicPort, chipset.PVPanicBytes))),
		operationRegion("PEOR", systemIO, chipset.PVPanicPort, chipset.PVPanicBytes),
		byteField("PEOR", "PEPT"),
		method("RDPT", 0, ret(path("PEPT"))),
		method("WRPT", 1, store(arg(0), path("PEPT"))),
	)
}
