package acpi

import (
	"encoding/binary"

	"github.com/peervisor/peervisor/vmm/chipset"
)

// FADT flags and boot architecture flags (5.2.9, tables 5.10 and 5.11).
const (
	fadtWBINVD    = 1 << 0  // WBINVD works
	fadtProcC1    = 1 << 2  // C1 on all processors
	fadtSlpButton = 1 << 5  // set: no fixed sleep button
	fadtFixRTC    = 1 << 6  // set: no RTC wake status in the fixed registers
	fadtTimerExt  = 1 << 8  // TMR_VAL_EXT: the PM timer has 32 bits
	fadtResetReg  = 1 << 10 // RESET_REG_SUP

	// PWR_BUTTON (bit 4) is 0: the power button is a fixed event.
	fadtFlags = fadtWBINVD | fadtProcC1 | fadtSlpButton | fadtFixRTC | fadtTimerExt | fadtResetReg

	bootLegacyDevices = 1 << 0 // COM1 and RTC are on an ISA-like bus
	bootNoVGA         = 1 << 2 // do not probe for VGA
	// 8042 (bit 1) is 0: there is no keyboard. "RTC not present" (bit 5) is 0.
	bootFlags = bootLegacyDevices | bootNoVGA

	// Latencies that say: there is no C2, no C3.
	noC2 = 101
	noC3 = 1001

	fadtBytes = 276 // revision 6
)

// Offsets in the FADT, header included (table 5.9).
const (
	fadtFirmwareCtrl = 36
	fadtDSDT         = 40
	fadtSCI          = 46
	fadtPM1aEvent    = 56
	fadtPM1aControl  = 64
	fadtPMTimer      = 76
	fadtPM1EventLen  = 88
	fadtPM1CtrlLen   = 89
	fadtPMTimerLen   = 91
	fadtC2Latency    = 96
	fadtC3Latency    = 98
	fadtCentury      = 108
	fadtBootArch     = 109
	fadtFlagsOffset  = 112
	fadtResetAddr    = 116
	fadtResetValue   = 128
	fadtMinor        = 131
	fadtXDSDT        = 140
	fadtXPM1aEvent   = 148
	fadtXPM1aControl = 172
	fadtXPMTimer     = 208
	fadtHypervisor   = 268
)

// Access sizes of a generic address (5.2.3.2).
const (
	accessByte  = 1
	accessWord  = 2
	accessDWord = 3
)

// portAddress puts a generic address structure of a port at b.
func portAddress(b []byte, port uint16, bits, access byte) {
	b[0], b[1], b[2], b[3] = systemIO, bits, 0, access
	binary.LittleEndian.PutUint64(b[4:], uint64(port))
}

// fadt is the body of the fixed description table. SMI_CMD is 0: the machine is
// always in ACPI mode.
func fadt(facs, dsdt uint64) []byte {
	t := make([]byte, fadtBytes)
	le := binary.LittleEndian
	le.PutUint32(t[fadtFirmwareCtrl:], uint32(facs)) // X_FIRMWARE_CTRL stays 0: one of them (5.2.9)
	le.PutUint32(t[fadtDSDT:], uint32(dsdt))
	le.PutUint64(t[fadtXDSDT:], dsdt)
	le.PutUint16(t[fadtSCI:], chipset.SCIGSI)

	const event, control, timer = chipset.PMPort + chipset.PM1StatusOffset, chipset.PMPort + chipset.PM1ControlOffset, chipset.PMPort + chipset.PMTimerOffset
	le.PutUint32(t[fadtPM1aEvent:], event)
	le.PutUint32(t[fadtPM1aControl:], control)
	le.PutUint32(t[fadtPMTimer:], timer)
	t[fadtPM1EventLen], t[fadtPM1CtrlLen], t[fadtPMTimerLen] = chipset.PM1EventBytes, chipset.PM1ControlBytes, chipset.PMTimerBytes
	portAddress(t[fadtXPM1aEvent:], event, chipset.PM1EventBytes*8, accessWord)
	portAddress(t[fadtXPM1aControl:], control, chipset.PM1ControlBytes*8, accessWord)
	portAddress(t[fadtXPMTimer:], timer, chipset.PMTimerBytes*8, accessDWord)

	le.PutUint16(t[fadtC2Latency:], noC2)
	le.PutUint16(t[fadtC3Latency:], noC3)
	t[fadtCentury] = chipset.RTCCentury
	le.PutUint16(t[fadtBootArch:], bootFlags)
	le.PutUint32(t[fadtFlagsOffset:], fadtFlags)
	portAddress(t[fadtResetAddr:], chipset.ResetPort, 8, accessByte)
	t[fadtResetValue] = chipset.ResetValue
	t[fadtMinor] = 4 // ACPI 6.4
	copy(t[fadtHypervisor:], "PEERVSOR")
	return t[headerBytes:]
}

// facs is the firmware control structure (5.2.10): no waking vector, no global
// lock. It has a length but no checksum.
func facs() []byte {
	const facsBytes = 64
	t := make([]byte, facsBytes)
	copy(t, "FACS")
	binary.LittleEndian.PutUint32(t[4:], facsBytes)
	t[32] = 2 // version
	return t
}

// MADT structures (5.2.12) and what is said in them.
const (
	madtLocalAPIC   = 0
	madtIOAPIC      = 1
	madtOverride    = 2
	madtAPICNMI     = 4
	madtLocalX2APIC = 9
	madtX2APICNMI   = 10

	madtPCATCompat = 1 // flags of the table: two 8259 are there
	madtEnabled    = 1 // flags of a processor

	// firstX2APIC is the first APIC ID that needs the 32-bit form: 255 is the
	// broadcast of the 8-bit one.
	firstX2APIC = 255

	// MPS INTI flags: active high, and level triggered.
	intiActiveHigh = 1
	intiLevel      = 3 << 2
)

// madt is the body of the interrupt controller table.
func madt(cpus int) []byte {
	le := binary.LittleEndian
	t := le.AppendUint32(nil, lapicAddr)
	t = le.AppendUint32(t, madtPCATCompat)
	for id := range cpus {
		if id < firstX2APIC {
			t = append(t, madtLocalAPIC, 8, byte(id), byte(id)) // UID, APIC ID
			t = le.AppendUint32(t, madtEnabled)
			continue
		}
		t = append(t, madtLocalX2APIC, 16, 0, 0)
		t = le.AppendUint32(t, uint32(id))
		t = le.AppendUint32(t, madtEnabled)
		t = le.AppendUint32(t, uint32(id)) // UID
	}
	t = append(t, madtIOAPIC, 12, 0, 0) // ID 0
	t = le.AppendUint32(t, ioapicAddr)
	t = le.AppendUint32(t, 0) // its first GSI
	t = append(t, override(0, 2, 0)...)
	t = append(t, override(chipset.SCIGSI, chipset.SCIGSI, intiActiveHigh|intiLevel)...)
	t = append(t, madtAPICNMI, 6, 0xFF, 0, 0, 1) // LINT1 of all processors
	if cpus > firstX2APIC {
		t = append(t, madtX2APICNMI, 12, 0, 0)
		t = le.AppendUint32(t, 0xFFFF_FFFF)
		t = append(t, 1, 0, 0, 0)
	}
	return t
}

// override maps an ISA interrupt to a GSI (5.2.12.5). Flags 0 means as the bus
// has it: edge, active high.
func override(irq byte, gsi uint32, flags uint16) []byte {
	t := binary.LittleEndian.AppendUint32([]byte{madtOverride, 10, 0, irq}, gsi)
	return binary.LittleEndian.AppendUint16(t, flags)
}

// mcfg is the body of the ECAM table: bus 0 of segment 0.
func mcfg() []byte {
	t := make([]byte, 8, 24) // reserved
	t = binary.LittleEndian.AppendUint64(t, chipset.ECAMStart)
	return append(t, 0, 0, 0, 0, 0, 0, 0, 0) // segment, first and last bus, reserved
}
