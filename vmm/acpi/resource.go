package acpi

import "encoding/binary"

// resource is one descriptor of a resource template (ACPI 6.4, 6.4).
type resource []byte

// Small and large descriptor tags (6.4.2, 6.4.3).
const (
	tagIO          = 0x47 // small, type 8, 7 bytes
	tagEnd         = 0x79 // small, type 15, 1 byte
	tagMemory32Fix = 0x86
	tagDWordSpace  = 0x87
	tagWordSpace   = 0x88
	tagInterrupt   = 0x89

	spaceMemory = 0
	spaceBus    = 2

	// General flags of an address space descriptor: the range's ends are fixed,
	// positive decode, the device produces it (passes it on to its children).
	spaceFixed = 1<<2 | 1<<3
	// Memory flags: read-write, not cacheable.
	memoryReadWrite = 1

	// Interrupt vector flags: consumer, edge, active high, exclusive.
	interruptEdgeHigh = 1<<0 | 1<<1
)

// resourceTemplate encodes the descriptors as a buffer. The end tag's checksum
// 0 means "not given" (6.4.2.9).
func resourceTemplate(rs ...resource) term {
	var b []byte
	for _, r := range rs {
		b = append(b, r...)
	}
	return buffer(append(b, tagEnd, 0))
}

// ioPorts claims a fixed range of ports with 16-bit decode (6.4.2.5).
func ioPorts(base uint16, n byte) resource {
	r := resource{tagIO, 0x01}
	r = binary.LittleEndian.AppendUint16(r, base)
	r = binary.LittleEndian.AppendUint16(r, base)
	return append(r, 1, n)
}

// interrupt claims one GSI, edge triggered, active high, not shared (6.4.3.6).
func interrupt(gsi uint32) resource {
	return binary.LittleEndian.AppendUint32(resource{tagInterrupt, 6, 0, interruptEdgeHigh, 1}, gsi)
}

// memory32Fixed claims a range of memory below 4 GiB (6.4.3.4).
func memory32Fixed(start, lenBytes uint32) resource {
	r := resource{tagMemory32Fix, 9, 0, memoryReadWrite}
	r = binary.LittleEndian.AppendUint32(r, start)
	return binary.LittleEndian.AppendUint32(r, lenBytes)
}

// dwordMemory is a window of memory that a bridge passes on (6.4.3.5.2).
func dwordMemory(start, lenBytes uint32) resource {
	r := resource{tagDWordSpace, 23, 0, spaceMemory, spaceFixed, memoryReadWrite}
	for _, v := range [...]uint32{0, start, start + (lenBytes - 1), 0, lenBytes} { // granularity, min, max, translation, length
		r = binary.LittleEndian.AppendUint32(r, v)
	}
	return r
}

// wordBusNumber is the range of buses below a host bridge (6.4.3.5.3).
func wordBusNumber(first, last uint16) resource {
	r := resource{tagWordSpace, 13, 0, spaceBus, spaceFixed, 0}
	for _, v := range [...]uint16{0, first, last, 0, last - first + 1} {
		r = binary.LittleEndian.AppendUint16(r, v)
	}
	return r
}
