package kernel

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCompareVersions(t *testing.T) {
	// Ascending; each differs from all before.
	order := []string{"0.9~rc1-1", "0.9-1", "1.0~~", "1.0~", "1.0", "1.0-1", "1.0-1+deb12u1", "1.0-2", "1.0-10", "1.0a", "1.0+b", "1.00001", "1.2", "1.10", "6.1.9-1", "6.1.192-2", "1:0.1", "10:0"}
	for i, a := range order {
		for j, b := range order {
			got := compareVersions(a, b)
			if (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%s and %s compare as %d", a, b, got)
			}
		}
	}
	if compareVersions("1.01", "1.1") != 0 {
		t.Error("leading zeroes count")
	}
}

// fakeApt puts programs named apt-cache and apt-get before the real ones. The
// latter counts its calls in the file that is returned.
func fakeApt(t *testing.T, deb []byte, fail string) (calls string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("package.deb", string(deb))
	write("apt-cache", `#!/bin/sh
case "$3" in
linux-image-test) printf 'Package: linux-image-test\nVersion: 6.1-2\nDepends: kmod, linux-image-6.1-test (= 6.1-2) | x\n' ;;
linux-image-6.1-test) printf 'Package: linux-image-6.1-test\nVersion: 6.1-2\nDepends: kmod, initramfs-tools\n\nPackage: x\n' ;;
linux-image-circle) printf 'Package: linux-image-circle\nVersion: 1\nDepends: linux-image-circle\n' ;;
busybox-static) printf 'Package: busybox-static\nVersion: 1:1.35-1\n' ;;
*) echo 'E: No packages found' >&2; exit 100 ;;
esac
`)
	calls = filepath.Join(dir, "calls")
	script := "#!/bin/sh\necho x >>" + calls + "\n" + fail + "\ncp " + filepath.Join(dir, "package.deb") + " ./p.deb\n"
	write("apt-get", script)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return calls
}

func kernelDeb(t *testing.T) []byte {
	t.Helper()
	return makeDeb(t, ".xz",
		debFile{"./boot/vmlinuz-6.1-test", makeModule(t, "not a module, but an ELF"), 0},
		debFile{"./boot/config-6.1-test", []byte("CONFIG"), 0},
		debFile{"./usr/lib/modules/6.1-test/kernel/virtio.ko", makeModule(t, "depends="), 0},
		debFile{"./usr/lib/modules/6.1-test/modules.builtin", []byte("kernel/loop.ko\n"), 0})
}

// leftovers lists what a failed attempt must not leave.
func leftovers(t *testing.T, cache string) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{".tmp-*", "kernels/*", "tools/*"} {
		found, err := filepath.Glob(filepath.Join(cache, pattern))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

func TestFetchAndLookup(t *testing.T) {
	calls := fakeApt(t, kernelDeb(t), "")
	cache := filepath.Join(t.TempDir(), "not yet there")
	if _, err := Lookup(cache, "linux-image-test"); !errors.Is(err, ErrNotFetched) {
		t.Fatalf("before: %v", err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			k, err := Fetch(t.Context(), Options{CacheDir: cache, Package: "linux-image-test"})
			if err != nil {
				t.Error(err)
				return
			}
			if k.Image != "linux-image-6.1-test" || k.Version != "6.1-2" || k.Release != "6.1-test" || !filepath.IsAbs(k.VmlinuxPath) {
				t.Errorf("got %+v", k)
			}
		})
	}
	wg.Wait()
	if b, err := os.ReadFile(calls); err != nil || strings.Count(string(b), "x") != 1 {
		t.Errorf("four at once downloaded %q (%v)", b, err)
	}
	for _, name := range []string{"linux-image-test", "linux-image-test=6.1-2", "linux-image-6.1-test", "linux-image-6.1-test=6.1-2", "6.1-test"} {
		k, err := Lookup(cache, name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, p := range []string{k.VmlinuxPath, k.VmlinuzPath, filepath.Join(k.ModulesDir, "kernel/virtio.ko"), filepath.Join(k.ModulesDir, "modules.dep")} {
			if _, err := os.Stat(p); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := Lookup(cache, "linux-image-test=6.1-3"); !errors.Is(err, ErrNotFetched) {
		t.Errorf("another version: %v", err)
	}
	if err := os.Remove(filepath.Join(cache, "kernels/linux-image-test_6.1-2/vmlinux")); err != nil {
		t.Fatal(err)
	}
	if list, err := List(cache); err != nil || len(list) != 0 {
		t.Errorf("a damaged entry is listed: %v, %v", list, err)
	}
	if _, err := Fetch(t.Context(), Options{CacheDir: cache, Package: "linux-image-test"}); err != nil {
		t.Errorf("a damaged entry is not replaced: %v", err)
	}
}

func TestFetchFailures(t *testing.T) {
	for name, tc := range map[string]struct {
		pkg, fail, want string
		deb             []byte
	}{
		"unknown package":   {"linux-image-none", "", "apt-get update", nil},
		"bad name":          {"-o=x", "", "not the name of a Debian package", nil},
		"metapackage":       {"linux-image-circle", "", "metapackage", nil},
		"download fails":    {"linux-image-test", "echo 'E: 404  Not Found' >&2; exit 100", "404  Not Found", nil},
		"nothing came":      {"linux-image-test", "exit 0", "left 0 files", nil},
		"no package":        {"linux-image-test", "", "no ar archive", []byte("junk")},
		"no kernel":         {"linux-image-test", "", "no boot/vmlinuz", makeDeb(t, ".gz", debFile{"./bin/x", nil, 0})},
		"no modules":        {"linux-image-test", "", "no modules", makeDeb(t, ".gz", debFile{"./boot/vmlinuz-6.1-test", []byte("x"), 0})},
		"kernel is no such": {"linux-image-test", "", "unpack vmlinuz", makeDeb(t, ".gz", debFile{"./boot/vmlinuz-6.1-test", []byte("x"), 0}, debFile{"./lib/modules/6.1-test/a.ko", makeModule(t), 0})},
		"module is no such": {"linux-image-test", "", "modules tree", makeDeb(t, ".gz", debFile{"./boot/vmlinuz-6.1-test", makeModule(t), 0}, debFile{"./lib/modules/6.1-test/a.ko", []byte("x"), 0})},
	} {
		t.Run(name, func(t *testing.T) {
			fakeApt(t, tc.deb, tc.fail)
			cache := t.TempDir()
			_, err := Fetch(t.Context(), Options{CacheDir: cache, Package: tc.pkg})
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want %q in one line", err, tc.want)
			}
			if left := leftovers(t, cache); len(left) > 0 {
				t.Errorf("left %v", left)
			}
		})
	}
	t.Run("no apt", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if _, err := Fetch(t.Context(), Options{CacheDir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "not installed") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		fakeApt(t, nil, "exec sleep 1000")
		cache := t.TempDir()
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("asked to stop")
		_, err := Fetch(ctx, Options{CacheDir: cache, Package: "linux-image-test", Progress: func(string) { cancel(why) }})
		if !errors.Is(err, why) || len(leftovers(t, cache)) > 0 {
			t.Errorf("error %v, left %v", err, leftovers(t, cache))
		}
	})
}

func TestFetchOnAFullDisk(t *testing.T) {
	cache := t.TempDir()
	if err := unix.Mount("tmpfs", cache, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("needs the right to mount a small file system: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(cache, 0) })
	deb := makeDeb(t, ".gz",
		debFile{"./boot/vmlinuz-6.1-test", makeModule(t, strings.Repeat("x", 200<<10)), 0},
		debFile{"./lib/modules/6.1-test/a.ko", makeModule(t), 0})
	fakeApt(t, deb, "")
	_, err := Fetch(t.Context(), Options{CacheDir: cache, Package: "linux-image-test"})
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error %v", err)
	}
	if left := leftovers(t, cache); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestFetchBusybox(t *testing.T) {
	program := []byte("#!/bin/sh\necho bin/sh\necho sbin/ip\n")
	fakeApt(t, makeDeb(t, ".gz", debFile{"./bin/busybox", program, 0}), "")
	cache := t.TempDir()
	if _, err := LookupBusybox(cache); !errors.Is(err, ErrNotFetched) {
		t.Errorf("before: %v", err)
	}
	p, err := FetchBusybox(t.Context(), Options{CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	if q, err := LookupBusybox(cache); err != nil || q != p {
		t.Errorf("looked up: %s, %v", q, err)
	}
	if b, err := os.ReadFile(p + appletsSuffix); err != nil || string(b) != "bin/sh\nsbin/ip\n" {
		t.Errorf("applets %q, %v", b, err)
	}
	fakeApt(t, makeDeb(t, ".gz", debFile{"./bin/other", program, 0}), "")
	empty := t.TempDir()
	if _, err := FetchBusybox(t.Context(), Options{CacheDir: empty}); err == nil || len(leftovers(t, empty)) > 0 {
		t.Errorf("a package without busybox: %v, left %v", err, leftovers(t, empty))
	}
}

// A writer that was killed leaves its directory; one that lives keeps others out.
func TestCacheLock(t *testing.T) {
	cache := t.TempDir()
	stale := filepath.Join(cache, ".tmp-dead")
	if err := os.MkdirAll(filepath.Join(stale, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	err := withCache(t.Context(), cache, func(temp string) error {
		if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what a dead writer left is there: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err := withCache(ctx, cache, func(string) error { return nil })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("second writer: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
