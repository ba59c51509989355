package acpi

import (
	"bytes"
	"encoding/binary"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew: only for a new machine version")

var goldens = map[string]Config{
	"one-cpu":  {CPUs: 1},
	"two-cpus": {CPUs: 2, Serial: true, VirtioMMIO: []MMIODevice{{0xF000_0000, 16}, {0xF000_1000, 17}}},
	"x2apic":   {CPUs: 300, Serial: true},
}

func build(t *testing.T, cfg Config) []byte {
	t.Helper()
	b, rsdp, err := Build(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if rsdp != Base {
		t.Fatalf("RSDP at %#x", rsdp)
	}
	return b
}

// A saved guest has parsed these bytes: they change with the machine version only.
func TestGolden(t *testing.T) {
	for name, cfg := range goldens {
		file := filepath.Join("testdata", name+".bin")
		got := build(t, cfg)
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the tables differ from the golden file", name)
		}
	}
}

func sum(b []byte) (s byte) {
	for _, v := range b {
		s += v
	}
	return s
}

// tableAt cuts out the table at a guest-physical address and checks its sum.
func tableAt(t *testing.T, b []byte, addr uint64, signature string) []byte {
	t.Helper()
	if addr < Base || addr+headerBytes > Base+uint64(len(b)) {
		t.Fatalf("%s at %#x is not in the tables", signature, addr)
	}
	b = b[addr-Base:]
	n := binary.LittleEndian.Uint32(b[4:])
	if string(b[:4]) != signature || uint64(n) > uint64(len(b)) {
		t.Fatalf("%s at %#x: signature %q, %d bytes", signature, addr, b[:4], n)
	}
	if signature != "FACS" && sum(b[:n]) != 0 {
		t.Errorf("%s: wrong checksum", signature)
	}
	return b[:n]
}

// walk finds every table as an operating system does, from the RSDP.
func walk(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	le := binary.LittleEndian
	if string(b[:8]) != "RSD PTR " || b[15] != 2 || le.Uint32(b[20:]) != 36 || sum(b[:20]) != 0 || sum(b[:36]) != 0 {
		t.Fatalf("RSDP: % x", b[:36])
	}
	out := map[string][]byte{"XSDT": tableAt(t, b, le.Uint64(b[24:]), "XSDT")}
	list := out["XSDT"][headerBytes:]
	for i, signature := range []string{"FACP", "APIC", "MCFG"} {
		out[signature] = tableAt(t, b, le.Uint64(list[i*8:]), signature)
	}
	if len(list) != 3*8 {
		t.Errorf("XSDT lists %d bytes", len(list))
	}
	out["DSDT"] = tableAt(t, b, le.Uint64(out["FACP"][140:]), "DSDT")
	out["FACS"] = tableAt(t, b, uint64(le.Uint32(out["FACP"][36:])), "FACS")
	return out
}

func TestTablesAreLinked(t *testing.T) {
	for _, cfg := range goldens {
		b := build(t, cfg)
		walk(t, b)
		le := binary.LittleEndian
		if facs := le.Uint32(walk(t, b)["FACP"][36:]); facs%64 != 0 { // 5.2.10
			t.Errorf("FACS at %#x is not aligned to 64", facs)
		}
	}
}

// docs/machine-v1.md and ACPI 6.4, 5.2.9.
func TestFADT(t *testing.T) {
	f := walk(t, build(t, Config{CPUs: 1}))["FACP"]
	le := binary.LittleEndian
	if len(f) != 276 || f[8] != 6 {
		t.Fatalf("%d bytes, revision %d", len(f), f[8])
	}
	gas := func(off int) (space, bits byte, port uint64) { return f[off], f[off+1], le.Uint64(f[off+4:]) }
	for _, c := range []struct {
		off  int
		bits byte
		port uint64
	}{{116, 8, 0xCF9}, {148, 32, 0x600}, {172, 16, 0x604}, {208, 32, 0x608}} {
		if space, bits, port := gas(c.off); space != 1 || bits != c.bits || port != c.port {
			t.Errorf("address at %d: space %d, %d bits, port %#x", c.off, space, bits, port)
		}
	}
	flags := le.Uint32(f[112:])
	for name, c := range map[string]struct {
		bit  int
		want uint32
	}{"PWR_BUTTON": {4, 0}, "SLP_BUTTON": {5, 1}, "TMR_VAL_EXT": {8, 1}, "RESET_REG_SUP": {10, 1}, "HW_REDUCED_ACPI": {20, 0}} {
		if flags>>c.bit&1 != c.want {
			t.Errorf("flag %s is not %d", name, c.want)
		}
	}
	if f[128] != 6 || le.Uint16(f[46:]) != 9 || le.Uint32(f[48:]) != 0 || f[108] != 0x32 {
		t.Errorf("reset value %d, SCI %d, SMI_CMD %#x, century %#x", f[128], le.Uint16(f[46:]), le.Uint32(f[48:]), f[108])
	}
	if boot := le.Uint16(f[109:]); boot&2 != 0 || boot&0x20 != 0 {
		t.Errorf("boot flags %#x: want no 8042 and a CMOS RTC", boot)
	}
}

// docs/machine-v1.md: processor i has APIC ID i; ACPI 6.4, 5.2.12.12: IDs from
// 255 on need the x2APIC structure.
func TestMADT(t *testing.T) {
	le := binary.LittleEndian
	for _, cpus := range []int{1, 2, 255, 256, 300, MaxCPUs} {
		m := walk(t, build(t, Config{CPUs: cpus}))["APIC"]
		if le.Uint32(m[36:]) != 0xFEE0_0000 || le.Uint32(m[40:]) != 1 {
			t.Errorf("local APIC at %#x, flags %d", le.Uint32(m[36:]), le.Uint32(m[40:]))
		}
		next, overrides, ioapics := 0, map[byte][2]uint32{}, 0
		for e := m[44:]; len(e) > 0; e = e[e[1]:] {
			switch e[0] {
			case 0:
				if int(e[2]) != next || int(e[3]) != next || next >= 255 || le.Uint32(e[4:]) != 1 {
					t.Fatalf("processor %d: % x", next, e[:8])
				}
				next++
			case 9:
				if int(le.Uint32(e[4:])) != next || int(le.Uint32(e[12:])) != next || next < 255 || le.Uint32(e[8:]) != 1 {
					t.Fatalf("processor %d: % x", next, e[:16])
				}
				next++
			case 1:
				ioapics++
				if le.Uint32(e[4:]) != 0xFEC0_0000 || le.Uint32(e[8:]) != 0 {
					t.Errorf("IOAPIC: % x", e[:12])
				}
			case 2:
				overrides[e[3]] = [2]uint32{le.Uint32(e[4:]), uint32(le.Uint16(e[8:]))}
			case 4, 10: // NMI
			default:
				t.Errorf("unknown entry % x", e[:e[1]])
			}
		}
		if next != cpus || ioapics != 1 {
			t.Errorf("%d processors and %d IOAPICs, want %d and 1", next, ioapics, cpus)
		}
		if overrides[0] != [2]uint32{2, 0} || overrides[9] != [2]uint32{9, 0xD} || len(overrides) != 2 {
			t.Errorf("overrides %v: want 0 to 2, and 9 level, active high", overrides)
		}
	}
}

// PCI Firmware 3.2, table 4-3.
func TestMCFG(t *testing.T) {
	m := walk(t, build(t, Config{CPUs: 1}))["MCFG"]
	if len(m) != 60 || binary.LittleEndian.Uint64(m[44:]) != 0xE000_0000 || !bytes.Equal(m[52:], make([]byte, 8)) {
		t.Errorf("% x", m)
	}
}

func TestBuildRefuses(t *testing.T) {
	for want, cfg := range map[string]Config{
		"for 0 processors: 1 to 1024 are possible":       {},
		"for 1025 processors":                            {CPUs: 1025},
		"for 9 virtio-mmio devices: at most 8":           {CPUs: 1, VirtioMMIO: make([]MMIODevice, 9)},
		"device 0 at 0xf0000001 with GSI 16: want":       {CPUs: 1, VirtioMMIO: []MMIODevice{{0xF000_0001, 16}}},
		"device 0 at 0x100000000 with GSI 16: want":      {CPUs: 1, VirtioMMIO: []MMIODevice{{1 << 32, 16}}},
		"GSI 24: want a page below 4 GiB and a GSI belo": {CPUs: 1, VirtioMMIO: []MMIODevice{{0xF000_0000, 24}}},
	} {
		if _, _, err := Build(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// iasl reads every table without a word of complaint, and compiles what it read
// to the same bytes again.
func TestIASL(t *testing.T) {
	iasl, err := exec.LookPath("iasl")
	if err != nil {
		t.Skip("no iasl here (Debian package acpica-tools)")
	}
	for name, cfg := range goldens {
		for signature, table := range walk(t, build(t, cfg)) {
			t.Run(name+"/"+signature, func(t *testing.T) { iaslRoundTrip(t, iasl, signature, table) })
		}
	}
}

func iaslRoundTrip(t *testing.T, iasl, signature string, table []byte) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in.aml"), table, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		cmd := exec.Command(iasl, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("iasl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	if out := run("-d", "in.aml"); strings.Contains(out, "arning") || strings.Contains(out, "rror") {
		t.Errorf("iasl -d: %s", out)
	}
	out := run("-oa", "-p", "again", "in.dsl") // -oa: leave names as they are written
	if !strings.Contains(out, "0 Errors, 0 Warnings, 0 Remarks") {
		t.Errorf("iasl: %s", out)
	}
	again, err := os.ReadFile(filepath.Join(dir, "again.aml"))
	if err != nil {
		t.Fatal(err)
	}
	if signature != "FACS" { // iasl puts its own name and a new sum into the header
		table = append(bytes.Clone(table[:checksumOffset]), table[headerBytes:]...)
		again = append(bytes.Clone(again[:checksumOffset]), again[headerBytes:]...)
	}
	if !bytes.Equal(table, again) {
		t.Errorf("iasl compiles its own listing to other bytes:\n% x\n% x", table, again)
	}
}
