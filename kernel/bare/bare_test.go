package bare

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"strings"
	"testing"
)

func build(t *testing.T) string {
	t.Helper()
	path, err := Build(t.TempDir())
	if errors.Is(err, ErrNoCompiler) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBuildMakesAnELFWithAPVHEntry(t *testing.T) {
	f, err := elf.Open(build(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC {
		t.Fatalf("ELF is %v %v, want an x86-64 executable", f.Machine, f.Type)
	}
	var note []byte
	for _, p := range f.Progs {
		if p.Type == elf.PT_NOTE {
			note = make([]byte, p.Filesz)
			if _, err := p.ReadAt(note, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Name "Xen", type 18 (XEN_ELFNOTE_PHYS32_ENTRY), value the entry point.
	want := append([]byte{4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, 'X', 'e', 'n', 0},
		byte(f.Entry), byte(f.Entry>>8), byte(f.Entry>>16), byte(f.Entry>>24))
	if !bytes.Equal(note, want) {
		t.Fatalf("PVH note is % x, want % x", note, want)
	}
}

func TestBuildUsesWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	first, err := Build(dir)
	if errors.Is(err, ErrNoCompiler) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(first, []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	second, err := Build(dir)
	if err != nil || second != first {
		t.Fatalf("second build: %q, %v; want %q", second, err, first)
	}
	if b, _ := os.ReadFile(second); string(b) != "kept" {
		t.Fatal("the second build compiled again")
	}
	left, _ := os.ReadDir(dir)
	if len(left) != 1 {
		t.Fatalf("%d files in the directory, want 1", len(left))
	}
}

func TestReadResult(t *testing.T) {
	var lines []string
	r, err := ReadResult(strings.NewReader("B\nF 1\r\n{\"test\":\"blk\",\"ops\":10,\"ns\":1000000000,\"ok\":true}\nrest"),
		func(s string) { lines = append(lines, s) })
	if err != nil || !r.OK || r.Rate() != 10 || r.Check() != nil {
		t.Fatalf("result %+v, %v", r, err)
	}
	if got := strings.Join(lines, "|"); got != "B|F 1" {
		t.Fatalf("lines %q", got)
	}
	if _, err := ReadResult(strings.NewReader("B\n"), nil); !errors.Is(err, ErrNoResult) {
		t.Fatalf("no result: %v", err)
	}
	if _, err := ReadResult(strings.NewReader("{\n"), nil); err == nil {
		t.Fatal("half a result was taken")
	}
}

func TestPatternTellsGenerationAndDamage(t *testing.T) {
	p := make([]byte, SectorBytes)
	for _, gen := range []uint32{0, 1, 77, 1 << 31} {
		FillSector(p, 9, gen)
		if got, ok := SectorGeneration(p, 9); !ok || got != gen {
			t.Errorf("generation %d reads as %d, %v", gen, got, ok)
		}
		if _, ok := SectorGeneration(p, 10); ok && gen != 0 {
			t.Errorf("generation %d of sector 9 passes for sector 10", gen)
		}
		p[500]++
		if _, ok := SectorGeneration(p, 9); ok {
			t.Errorf("generation %d with a damaged byte passes", gen)
		}
	}
}

func FuzzReadResult(f *testing.F) {
	f.Add("B\n{\"test\":\"hello\",\"ok\":true}\n")
	f.Add("{\"ops\":-1}\n")
	f.Add("F 1\nF 2\n{")
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ReadResult(strings.NewReader(s), nil); err == nil && r.Line == "" {
			t.Fatal("a result without its line")
		}
	})
}
