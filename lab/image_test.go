package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestImageKeyIsItsContent(t *testing.T) {
	base := func() manifest {
		return manifest{Request: request{Recipe: 1, Packages: []string{"a", "b"}, Kernel: "k"}, Image: "i", Version: "1",
			Debs: []debFile{{"a_1.deb", "SHA256:1"}}}
	}
	key := base().key()
	if len(key) != 2*keyBytes || key != base().key() {
		t.Fatalf("key %q, then %q", key, base().key())
	}
	for name, change := range map[string]func(*manifest){
		"recipe":         func(m *manifest) { m.Request.Recipe++ },
		"packages":       func(m *manifest) { m.Request.Packages = []string{"a b"} },
		"kernel version": func(m *manifest) { m.Version = "2" },
		"package hash":   func(m *manifest) { m.Debs[0].Hash = "SHA256:2" },
		"package file":   func(m *manifest) { m.Debs[0].Name = "a_2.deb" },
	} {
		m := base()
		if change(&m); m.key() == key {
			t.Errorf("another %s has the same key", name)
		}
	}
}

func TestResolutions(t *testing.T) {
	dir := t.TempDir()
	s := &store{dir: dir, cacheDir: dir}
	old, kept := strings.Repeat("0a", keyBytes), strings.Repeat("0b", keyBytes)
	for _, key := range []string{old, kept} {
		if err := os.MkdirAll(filepath.Dir(s.imagePath(key)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	req := request{Recipe: 1, Packages: []string{"a"}, Kernel: "k"}
	if _, err := s.cached(req, "s"); err == nil {
		t.Error("an empty cache has an image")
	}
	if err := s.writeResolution(req, resolution{AptStamp: "s", Key: kept, Kernel: "k=1"}, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if res, err := s.readResolution(req); err != nil || res.Key != kept {
		t.Errorf("%+v, %v", res, err)
	}
	if err := s.removeUnusedLocked(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(s.imagePath(kept))); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(s.imagePath(old))); !os.IsNotExist(err) {
		t.Errorf("an image that nothing leads to: %v", err)
	}
	// Requests that were not used for long are forgotten with their images.
	for i := range maxRequests {
		other := request{Recipe: 1, Packages: []string{"a"}, Kernel: strings.Repeat("k", i+2)}
		if err := s.writeResolution(other, resolution{AptStamp: "s", Key: old, Kernel: "k=1"}, t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(s.resolutionPath(req.name()), time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := s.removeUnusedLocked(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(s.imagePath(kept))); !os.IsNotExist(err) {
		t.Errorf("the image of a request that was forgotten: %v", err)
	}
	for _, bad := range []string{"", "{}", `{"key":"../../../../etc"}`, `{"key":"` + strings.Repeat("zz", keyBytes) + `"}`, strings.Repeat(" ", maxResolvedBytes+1)} {
		if err := os.WriteFile(s.resolutionPath(req.name()), []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if res, err := s.readResolution(req); err == nil {
			t.Errorf("%.40q is taken for %+v", bad, res)
		}
	}
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	unlock, err := lockFile(context.Background(), dir, lockName)
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithTimeoutCause(context.Background(), time.Millisecond, cause)
	defer cancel()
	if _, err := lockFile(ctx, dir, lockName); !errors.Is(err, cause) {
		t.Errorf("a lock that is held: %v", err)
	}
	unlock()
	unlock, err = lockFile(context.Background(), dir, lockName)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestRunDirectories(t *testing.T) {
	parent := t.TempDir()
	live, err := newRunDirectory(context.Background(), parent)
	if err != nil {
		t.Fatal(err)
	}
	dead, err := newRunDirectory(context.Background(), parent)
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(parent, "host-half") // killed before it had a lock
	if err := os.Mkdir(half, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := dead.lock.Close(); err != nil { // as the kernel does for a process that is killed
		t.Fatal(err)
	}
	third, err := newRunDirectory(context.Background(), parent)
	if err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{dead.path, half} {
		if _, err := os.Stat(gone); !os.IsNotExist(err) {
			t.Errorf("%s: %v", gone, err)
		}
	}
	for _, d := range []*runDirectory{live, third} {
		if _, err := os.Stat(d.path); err != nil {
			t.Error(err)
		}
		if err := d.remove(); err != nil {
			t.Error(err)
		}
	}
}

func TestCopyFiles(t *testing.T) {
	dir, from := t.TempDir(), filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(from, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := copyFiles(dir, []File{{from, "bin/a"}, {from, "share/b"}}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "bin/a")); err != nil || info.Mode().Perm() != 0o755 || info.Size() != 4 {
		t.Errorf("%v, %v", info, err)
	}
	for _, bad := range []File{{from, "bin/a"}, {t.TempDir(), "c"}, {from + "y", "d"}} {
		if err := copyFiles(dir, []File{bad}); err == nil || !strings.Contains(err.Error(), bad.Source) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}
