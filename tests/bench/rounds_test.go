package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func fixed(name string, log *[]string, values ...float64) Contender {
	n := 0
	return Contender{Name: name, Run: func(context.Context) (Metrics, error) {
		*log = append(*log, name)
		n++
		return Metrics{"x": values[n-1]}, nil
	}}
}

func TestMeasureInterleavesAndComparesRoundByRound(t *testing.T) {
	var order []string
	e := Experiment{
		Name:       "t",
		Contenders: []Contender{fixed("a", &order, 1, 2, 9), fixed("b", &order, 2, 2, 3), fixed("c", &order, 1, 1, 1)},
		Figures:    []Figure{{Metric: "x", Title: "X", Unit: "u", Goal: 1}},
	}
	o, err := Measure(context.Background(), e, 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(order, ""); got != "abccbaabc" {
		t.Errorf("order %s, want abccbaabc", got)
	}
	f := e.Figures[0]
	if ref := o.Reference(f); ref != 1 {
		t.Errorf("reference is contender %d, want the better one, 1", ref)
	}
	if r := o.Ratios(1, "x"); r.Median() != 1 || r.Min() != 0.5 || r.Max() != 3 {
		t.Errorf("ratios %v, want 0.5, 1, 3", r)
	}
	if v := o.Judge(f); v != Met {
		t.Errorf("verdict %d, want met", v)
	}
	f.SmallerIsBetter = true
	if ref := o.Reference(f); ref != 2 {
		t.Errorf("reference is contender %d, want the smaller one, 2", ref)
	}
	o.Contenders[2].Own = true
	if ref := o.Reference(f); ref != 1 {
		t.Errorf("reference is contender %d, want 1: 2 is ours", ref)
	}
	o.Contenders[2].Own = false
	if a := o.Among(e.Figures, func(name string) bool { return name == "c" }); len(a.Contenders) != 2 || a.Of(1, "x").Max() != 1 || len(o.Contenders) != 3 {
		t.Errorf("among c: %v", a)
	}
	f.GoalAbsolute = 1
	if v := o.Judge(f); v != Missed {
		t.Errorf("verdict %d, want missed", v)
	}
	if text := Table([]Outcome{o}); !strings.Contains(text, "| X, u | a | 2 | 1 – 9 | | | ratio ≥ 1 | reached |") {
		t.Errorf("table lacks our line:\n%s", text)
	}
}

func TestMeasureStopsAtAnError(t *testing.T) {
	boom := errors.New("boom")
	_, err := Measure(context.Background(), Experiment{Name: "t", Contenders: []Contender{{Name: "a", Run: func(context.Context) (Metrics, error) {
		return nil, boom
	}}}}, 1, nil)
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if _, err := Measure(context.Background(), Experiment{}, 1, nil); !errors.Is(err, ErrNoContender) {
		t.Fatal(err)
	}
}

func TestSeriesOfNoneIsZero(t *testing.T) {
	var s Series
	if s.Median() != 0 || s.Min() != 0 || s.Max() != 0 {
		t.Fatal("an empty series has values")
	}
	if m := (Series{4, 1, 3, 2}).Median(); m != 2.5 {
		t.Fatalf("median %g, want 2.5", m)
	}
}

func TestWriteSectionReplacesOnlyItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bench.md")
	write := func(id, text string) {
		t.Helper()
		if err := WriteSection(path, id, text); err != nil {
			t.Fatal(err)
		}
	}
	write("one", "1\n")
	write("two", "2")
	write("one", "changed")
	want := "<!-- begin one -->\nchanged\n<!-- end one -->\n\n<!-- begin two -->\n2\n<!-- end two -->\n"
	if b, _ := os.ReadFile(path); string(b) != want {
		t.Fatalf("file is\n%s\nwant\n%s", b, want)
	}
	if err := os.WriteFile(path, []byte("<!-- begin one -->\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := WriteSection(path, "one", "x"); err == nil {
		t.Fatal("a marker without its end was accepted")
	}
}

func TestReadSmapsTellsGuestRAMFromTheRest(t *testing.T) {
	text := `00400000-00500000 r-xp 00000000 fe:00 10   /usr/bin/vmm
Size:               1024 kB
Rss:                 512 kB
VmFlags: rd ex
c000000000-c000400000 rw-p 00000000 00:00 0    [anon: Go: heap]
Size:               4096 kB
Rss:                 300 kB
7f0000000000-7f0008000000 rw-s 00000000 00:01 9 /memfd:guest (deleted)
Size:             131072 kB
Rss:               65536 kB
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]
Size:                132 kB
Rss:                  16 kB
`
	r, err := readSmaps(strings.NewReader(text), 128<<20)
	if err != nil {
		t.Fatal(err)
	}
	if r.OutsideBytes != (512+300+16)<<10 || r.GuestBytes != 64<<20 {
		t.Fatalf("outside %d, guest %d", r.OutsideBytes, r.GuestBytes)
	}
	if r.Parts["[anon: Go: heap]"] != 300<<10 || r.Parts["file /usr/bin/vmm"] != 512<<10 {
		t.Fatalf("parts %v", r.Parts)
	}
	if _, err := readSmaps(strings.NewReader("zz\n"), 1); err == nil {
		t.Fatal("nonsense was accepted")
	}
	if _, err := readSmaps(strings.NewReader(text), 256<<20); err == nil {
		t.Fatal("guest RAM that is not there was not missed")
	}
}
