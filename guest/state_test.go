package guest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func testStore(t *testing.T) *Store {
	t.Helper()
	home := t.TempDir()
	return &Store{Home: home, RunDir: filepath.Join(home, "run")}
}

func TestStoreNameIsTakenOnce(t *testing.T) {
	s := testStore(t)
	d, err := s.Create(Config{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(Config{Name: "a"}); !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), "rm -f a") {
		t.Errorf("second guest of one name: %v", err)
	}
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	d, err = s.Create(Config{Name: "a"})
	if err != nil {
		t.Fatalf("name after Remove: %v", err)
	}
	if err := d.Remove(); err != nil {
		t.Error(err)
	}
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("left behind: %v, %v", list, err)
	}
}

func TestStoreTellsACrashFromALife(t *testing.T) {
	s := testStore(t)
	d, err := s.Create(Config{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if g, err := s.Get("a"); err != nil || g.State.Status != StatusStarting {
		t.Fatalf("locked guest: %+v, %v", g, err)
	}
	if err := s.RemoveEnded("a"); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("removed a live guest: %v", err)
	}
	// The process dies: its lock goes, its last word stays "starting".
	if err := os.WriteFile(filepath.Join(d.Path(), "stderr.log"), []byte("x\npanic: boom [recovered]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	g, err := s.Get("a")
	if err != nil || g.State.Status != StatusCrashed || !strings.Contains(g.State.Exit.Detail, "panic: boom") {
		t.Fatalf("dead guest: %+v, %v", g, err)
	}
	if err := s.RemoveEnded("a"); err != nil {
		t.Error(err)
	}
	if _, err := s.Get("a"); !errors.Is(err, ErrNoGuest) {
		t.Errorf("after removal: %v", err)
	}
}

func TestStoreRefusesHostileNames(t *testing.T) {
	s := testStore(t)
	for _, n := range []string{"../x", ".", "-rf", "a b", strings.Repeat("x", 65), "a\n"} {
		if _, err := s.Create(Config{Name: n}); err == nil {
			t.Errorf("%q was taken", n)
		}
		if _, err := s.Get(n); err == nil {
			t.Errorf("%q was read", n)
		}
	}
	long := &Store{Home: s.Home, RunDir: "/" + strings.Repeat("d/", 60)}
	if _, err := long.Create(Config{Name: "a"}); err == nil || !strings.Contains(err.Error(), "107") {
		t.Errorf("socket path: %v", err)
	}
}

func TestLogTurnsOver(t *testing.T) {
	p := filepath.Join(t.TempDir(), "console.log")
	l, err := openLog(p)
	if err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, 1<<20)
	for range 40 {
		if n, err := l.Write(chunk); n != len(chunk) || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, f := range []string{p, p + ".1"} {
		st, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		total += st.Size()
	}
	if total > logLimitBytes || total < logLimitBytes/4 {
		t.Errorf("kept %d bytes of %d allowed", total, logLimitBytes)
	}
}
