package acpi

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// term is encoded AML (ACPI 6.4, chapter 20): an object, a statement or a value.
type term []byte

// AML opcodes and prefixes (20.3).
const (
	amlZero        = 0x00
	amlOne         = 0x01
	amlName        = 0x08
	amlByte        = 0x0A
	amlWord        = 0x0B
	amlDWord       = 0x0C
	amlString      = 0x0D
	amlQWord       = 0x0E
	amlScope       = 0x10
	amlBuffer      = 0x11
	amlPackage     = 0x12
	amlMethod      = 0x14
	amlDualName    = 0x2E
	amlMultiName   = 0x2F
	amlExt         = 0x5B
	amlExtOpRegion = 0x80
	amlExtField    = 0x81
	amlExtDevice   = 0x82
	amlRoot        = '\\'
	amlParent      = '^'
	amlArg0        = 0x68
	amlStore       = 0x70
	amlReturn      = 0xA4
)

// maxPkgBytes is what a PkgLength can say: 28 bits (20.2.4).
const maxPkgBytes = 1<<28 - 1

// pkgLength encodes the length of a package whose content, after the length
// itself, has n bytes. The encoded number counts its own bytes (20.2.4).
func pkgLength(n int) []byte {
	switch {
	case n+1 < 1<<6:
		return []byte{byte(n + 1)}
	case n+2 < 1<<12:
		n += 2
		return []byte{1<<6 | byte(n&0xF), byte(n >> 4)}
	case n+3 < 1<<20:
		n += 3
		return []byte{2<<6 | byte(n&0xF), byte(n >> 4), byte(n >> 12)}
	default: // Build bounds the tables far below maxPkgBytes
		n += 4
		return []byte{3<<6 | byte(n&0xF), byte(n >> 4), byte(n >> 12), byte(n >> 20)}
	}
}

func join(parts ...term) term {
	var out term
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// sized is an opcode, a PkgLength and what it spans.
func sized(opcode []byte, parts ...term) term {
	body := join(parts...)
	return join(opcode, pkgLength(len(body)), body)
}

// path encodes a name such as `\_SB.PCI0` (20.2.2); segments shorter than four
// characters are filled with underscores.
func path(s string) term {
	var out term
	for s != "" && (s[0] == amlRoot || s[0] == amlParent) {
		out = append(out, s[0])
		s = s[1:]
	}
	if s == "" {
		return append(out, amlZero) // NullName
	}
	segments := strings.Split(s, ".")
	switch len(segments) {
	case 1:
	case 2:
		out = append(out, amlDualName)
	default:
		out = append(out, amlMultiName, byte(len(segments)))
	}
	for _, seg := range segments {
		out = append(out, (seg + "____")[:4]...)
	}
	return out
}

// integer encodes v in the shortest form (20.2.3).
func integer(v uint64) term {
	switch {
	case v == 0:
		return term{amlZero}
	case v == 1:
		return term{amlOne}
	case v <= 0xFF:
		return term{amlByte, byte(v)}
	case v <= 0xFFFF:
		return binary.LittleEndian.AppendUint16(term{amlWord}, uint16(v))
	case v <= 0xFFFF_FFFF:
		return binary.LittleEndian.AppendUint32(term{amlDWord}, uint32(v))
	default:
		return binary.LittleEndian.AppendUint64(term{amlQWord}, v)
	}
}

// text encodes an ASCII string.
func text(s string) term { return append(append(term{amlString}, s...), 0) }

// eisaID encodes an EISA identifier of the form "PNP0A08" as its compressed
// 32-bit number (ACPI 6.4, 19.3.4).
func eisaID(id string) term {
	var product uint16
	_, err := fmt.Sscanf(id[3:], "%04X", &product)
	if err != nil {
		return text(id) // not of that form: a plain hardware ID
	}
	letter := func(i int) uint32 { return uint32(id[i]-0x40) & 0x1F }
	vendor := letter(0)<<10 | letter(1)<<5 | letter(2)
	return integer(uint64(vendor>>8 | vendor&0xFF<<8 | uint32(product)>>8<<16 | uint32(product)&0xFF<<24))
}

func name(n string, value term) term { return join(term{amlName}, path(n), value) }

func scope(p string, body ...term) term {
	return sized([]byte{amlScope}, append([]term{path(p)}, body...)...)
}

func device(n string, body ...term) term {
	return sized([]byte{amlExt, amlExtDevice}, append([]term{path(n)}, body...)...)
}

// method is a method of args (0..7) arguments, not serialized.
func method(n string, args int, body ...term) term {
	return sized([]byte{amlMethod}, append([]term{path(n), {byte(args & 7)}}, body...)...)
}

// pack is a Package of at most 255 elements.
func pack(elements ...term) term {
	return sized([]byte{amlPackage}, append([]term{{byte(len(elements))}}, elements...)...)
}

func buffer(b []byte) term { return sized([]byte{amlBuffer}, integer(uint64(len(b))), b) }

func ret(value term) term           { return join(term{amlReturn}, value) }
func store(value, target term) term { return join(term{amlStore}, value, target) }
func arg(i int) term                { return term{amlArg0 + byte(i)} }

// systemIO is the RegionSpace of ports (20.2.5.2).
const systemIO = 0x01

func operationRegion(n string, space byte, offset, lenBytes uint64) term {
	return join(term{amlExt, amlExtOpRegion}, path(n), term{space}, integer(offset), integer(lenBytes))
}

// byteField declares one field of 8 bits at the start of region: ByteAcc,
// NoLock, Preserve (20.2.5.2).
func byteField(region, field string) term {
	return sized([]byte{amlExt, amlExtField}, path(region), term{0x01}, path(field), pkgLengthOfBits(8))
}

// pkgLengthOfBits encodes a field's width, which does not count itself.
func pkgLengthOfBits(bits int) term { return pkgLength(bits - 1) }
