package acpi

import (
	"bytes"
	"strings"
	"testing"
)

// ACPI 6.4, 20.2.4: 63, 4095, 1,048,575 and 268,435,455 are the last lengths of
// each form; the number counts its own bytes.
func TestPkgLength(t *testing.T) {
	for _, c := range []struct {
		content int
		want    []byte
	}{
		{0, []byte{0x01}},
		{62, []byte{0x3F}},
		{63, []byte{0x41, 0x04}}, // 65
		{4093, []byte{0x4F, 0xFF}},
		{4094, []byte{0x81, 0x00, 0x01}}, // 4097
		{1<<20 - 4, []byte{0x8F, 0xFF, 0xFF}},
		{1<<20 - 3, []byte{0xC1, 0x00, 0x00, 0x01}}, // 1,048,577
		{maxPkgBytes - 4, []byte{0xCF, 0xFF, 0xFF, 0xFF}},
	} {
		if got := pkgLength(c.content); !bytes.Equal(got, c.want) {
			t.Errorf("content of %d bytes: % x, want % x", c.content, got, c.want)
		}
	}
}

// The length read back is the content's and its own, on both sides of each limit.
func TestPkgLengthDecodes(t *testing.T) {
	for _, limit := range []int{1 << 6, 1 << 12, 1 << 20} {
		for n := limit - 8; n < limit+8; n++ {
			b := pkgLength(n)
			value := int(b[0])
			if follow := int(b[0] >> 6); follow > 0 {
				value = int(b[0] & 0xF)
				for i, v := range b[1:] {
					value |= int(v) << (4 + 8*i)
				}
				if follow != len(b)-1 {
					t.Errorf("content of %d bytes: %d bytes follow, but the lead byte says %d", n, len(b)-1, follow)
				}
			}
			if value != n+len(b) {
				t.Errorf("content of %d bytes: the length says %d, want %d", n, value, n+len(b))
			}
		}
	}
}

// 20.2.2.
func TestPath(t *testing.T) {
	for in, want := range map[string]string{
		"PCI0": "PCI0", "_S5": "_S5_", `\_SB`: `\_SB_`, `\_SB.PCI0`: `\` + "\x2E_SB_PCI0",
		"A.B.C": "\x2F\x03A___B___C___", "^X": "^X___", `\`: "\\\x00",
	} {
		if got := path(in); string(got) != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

// 20.2.3: the shortest form.
func TestInteger(t *testing.T) {
	for v, want := range map[uint64]string{
		0: "\x00", 1: "\x01", 2: "\x0A\x02", 0xFF: "\x0A\xFF", 0x100: "\x0B\x00\x01", 0xFFFF: "\x0B\xFF\xFF",
		0x1_0000: "\x0C\x00\x00\x01\x00", 0xFFFF_FFFF: "\x0C\xFF\xFF\xFF\xFF", 1 << 32: "\x0E\x00\x00\x00\x00\x01\x00\x00\x00",
	} {
		if got := integer(v); string(got) != want {
			t.Errorf("%#x: % x, want % x", v, got, want)
		}
	}
}

func TestEISAID(t *testing.T) {
	for id, want := range map[string]uint64{
		"PNP0A08": 0x080AD041, "PNP0A03": 0x030AD041, "PNP0C02": 0x020CD041, "PNP0501": 0x0105D041, "PNP0B00": 0x000BD041,
	} {
		if got := eisaID(id); !bytes.Equal(got, integer(want)) {
			t.Errorf("%s: % x, want % x", id, got, integer(want))
		}
	}
	if got := eisaID("LNRO0005"); !bytes.Equal(got, append(append([]byte{amlString}, "LNRO0005"...), 0)) {
		t.Errorf("an ID of another form: % x", got)
	}
}

func TestTerms(t *testing.T) {
	for _, c := range []struct {
		name string
		got  term
		want string
	}{
		{"name", name("_UID", integer(1)), "\x08_UID\x01"},
		{"scope", scope(`\_SB`, term{0xA3}), "\x10\x07\\_SB_\xA3"},
		{"device", device("COM1"), "\x5B\x82\x05COM1"},
		{"method", method("RDPT", 0, ret(path("PEPT"))), "\x14\x0BRDPT\x00\xA4PEPT"},
		{"method with an argument", method("WRPT", 1, store(arg(0), path("PEPT"))), "\x14\x0CWRPT\x01\x70\x68PEPT"},
		{"package", pack(integer(5), integer(0)), "\x12\x05\x02\x0A\x05\x00"},
		{"buffer", buffer([]byte{7, 8}), "\x11\x05\x0A\x02\x07\x08"},
		{"string", text("QEMU0001"), "\x0DQEMU0001\x00"},
		{"region", operationRegion("PEOR", systemIO, 0x505, 1), "\x5B\x80PEOR\x01\x0B\x05\x05\x01"},
		{"field", byteField("PEOR", "PEPT"), "\x5B\x81\x0BPEOR\x01PEPT\x08"},
	} {
		if string(c.got) != c.want {
			t.Errorf("%s: %q, want %q", c.name, c.got, c.want)
		}
	}
}

// ACPI 6.4, 6.4.2.5, 6.4.2.9, 6.4.3.4 to 6.4.3.6.
func TestResources(t *testing.T) {
	for _, c := range []struct {
		name string
		got  resource
		want string
	}{
		{"I/O", ioPorts(0x3F8, 8), "\x47\x01\xF8\x03\xF8\x03\x01\x08"},
		{"interrupt", interrupt(4), "\x89\x06\x00\x03\x01\x04\x00\x00\x00"},
		{"fixed memory", memory32Fixed(0xE000_0000, 0x10_0000), "\x86\x09\x00\x01\x00\x00\x00\xE0\x00\x00\x10\x00"},
		{"memory window", dwordMemory(0xC000_0000, 0x2000_0000), "\x87\x17\x00\x00\x0C\x01" + "\x00\x00\x00\x00" + "\x00\x00\x00\xC0" + "\xFF\xFF\xFF\xDF" + "\x00\x00\x00\x00" + "\x00\x00\x00\x20"},
		{"buses", wordBusNumber(0, 0), "\x88\x0D\x00\x02\x0C\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00"},
	} {
		if string(c.got) != c.want {
			t.Errorf("%s: % x, want % x", c.name, c.got, c.want)
		}
	}
	if got := string(resourceTemplate(ioPorts(0x70, 2))); !strings.HasSuffix(got, "\x79\x00") {
		t.Errorf("no end tag: %q", got)
	}
}
