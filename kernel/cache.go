package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Names in the cache directory.
const (
	kernelsDir   = "kernels"
	toolsDir     = "tools"
	initramfsDir = "initramfs"
	lockName     = ".lock"
	tempPattern  = ".tmp-*"
	kernelFile   = "kernel.json"
)

// lockRetry is how often a lock that another process has is tried again.
const lockRetry = 50 * time.Millisecond

// maxKernelFileBytes bounds kernel.json, which is some hundred bytes.
const maxKernelFileBytes = 64 << 10

// withCache calls f with the cache locked against other writers, and with a
// temporary directory in it. When f returns the directory is gone, unless f renamed it.
func withCache(ctx context.Context, cacheDir string, f func(temp string) error) error {
	if cacheDir == "" {
		return errors.New("kernel cache: no directory is named")
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return fmt.Errorf("kernel cache: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(cacheDir, lockName), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("kernel cache: %w", err)
	}
	defer lock.Close() // this unlocks
	if err := flock(ctx, int(lock.Fd())); err != nil {
		return fmt.Errorf("lock kernel cache %s: %w", cacheDir, err)
	}
	// Whoever left these died: nobody works here without the lock.
	stale, _ := filepath.Glob(filepath.Join(cacheDir, tempPattern))
	for _, dir := range stale {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("kernel cache: remove what a killed process left: %w", err)
		}
	}
	temp, err := os.MkdirTemp(cacheDir, tempPattern)
	if err != nil {
		return fmt.Errorf("kernel cache: %w", err)
	}
	defer func() { _ = os.RemoveAll(temp) }()
	return f(temp)
}

func flock(ctx context.Context, fd int) error {
	retry := time.NewTicker(lockRetry)
	defer retry.Stop()
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		switch err {
		case nil:
			return nil
		case unix.EWOULDBLOCK, unix.EINTR:
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("another process holds it: %w", context.Cause(ctx))
		case <-retry.C:
		}
	}
}

// publish makes what is at from the cache entry to, whole and durable, or not at all.
func publish(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("kernel cache: %w", err)
	}
	f, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("kernel cache: %w", err)
	}
	// After a crash the name must not be there without the bytes.
	err = unix.Syncfs(int(f.Fd()))
	f.Close()
	if err != nil {
		return fmt.Errorf("kernel cache: write %s: %w", to, err)
	}
	// What is there already is damaged, or the caller would have used it.
	if err := os.RemoveAll(to); err != nil {
		return fmt.Errorf("kernel cache: %w", err)
	}
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("kernel cache: %w", err)
	}
	return nil
}

// entryName is the name of a package's cache entry. Versions may have colons,
// which are in the way in mount options and paths; Debian's own files write them so.
func entryName(pkg, version string) string {
	return pkg + "_" + strings.ReplaceAll(version, ":", "%3a")
}

// readKernel reads one entry. What is not whole is no entry.
func readKernel(dir string) (*Kernel, error) {
	f, err := os.Open(filepath.Join(dir, kernelFile))
	if err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	if info.Size() > maxKernelFileBytes {
		return nil, fmt.Errorf("kernel cache: %s is %d bytes, at most %d are right", f.Name(), info.Size(), maxKernelFileBytes)
	}
	k := &Kernel{}
	if err := json.NewDecoder(f).Decode(k); err != nil {
		return nil, fmt.Errorf("kernel cache: read %s: %w", f.Name(), err)
	}
	k.place(dir)
	for _, need := range []string{k.VmlinuxPath, k.ModulesDir} {
		if _, err := os.Stat(need); err != nil {
			return nil, fmt.Errorf("kernel cache: damaged entry: %w", err)
		}
	}
	return k, nil
}

// place sets the paths of an entry in dir.
func (k *Kernel) place(dir string) {
	k.Dir = dir
	k.VmlinuxPath = filepath.Join(dir, "vmlinux")
	k.VmlinuzPath = filepath.Join(dir, "vmlinuz")
	k.ModulesDir = filepath.Join(dir, "modules")
}

// List returns the kernels in the cache, newest version of each package first. A
// cache that does not exist is empty. Damaged entries are not listed; Fetch replaces them.
func List(cacheDir string) ([]Kernel, error) {
	abs, err := filepath.Abs(cacheDir)
	if err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	entries, err := os.ReadDir(filepath.Join(abs, kernelsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	var kernels []Kernel
	for _, e := range entries {
		if k, err := readKernel(filepath.Join(abs, kernelsDir, e.Name())); err == nil {
			kernels = append(kernels, *k)
		}
	}
	sort.SliceStable(kernels, func(i, j int) bool {
		if kernels[i].Package != kernels[j].Package {
			return kernels[i].Package < kernels[j].Package
		}
		return compareVersions(kernels[i].Version, kernels[j].Version) > 0
	})
	return kernels, nil
}

// Lookup finds a kernel in the cache without asking apt. name is a package
// name, which means its newest version, or PACKAGE=VERSION as apt writes it, or a
// release. An empty name is DefaultPackage. InitrdPath is not set.
func Lookup(cacheDir, name string) (*Kernel, error) {
	if name == "" {
		name = DefaultPackage
	}
	pkg, version, exact := strings.Cut(name, "=")
	kernels, err := List(cacheDir)
	if err != nil {
		return nil, err
	}
	for _, k := range kernels {
		if exact && k.Version != version {
			continue
		}
		if k.Package == pkg || k.Image == pkg || !exact && k.Release == pkg {
			return &k, nil
		}
	}
	return nil, fmt.Errorf("kernel %s: %w", name, ErrNotFetched)
}

// compareVersions orders Debian versions (policy 5.6.12): epoch, upstream, revision;
// in each, runs of digits by value and other runs by character, '~' before the end.
func compareVersions(a, b string) int {
	ea, a := splitEpoch(a)
	eb, b := splitEpoch(b)
	if c := compareRuns(ea, eb); c != 0 {
		return c
	}
	ua, ra := splitRevision(a)
	ub, rb := splitRevision(b)
	if c := compareRuns(ua, ub); c != 0 {
		return c
	}
	return compareRuns(ra, rb)
}

func splitEpoch(v string) (epoch, rest string) {
	if e, r, ok := strings.Cut(v, ":"); ok {
		return e, r
	}
	return "0", v
}

func splitRevision(v string) (upstream, revision string) {
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		return v[:i], v[i+1:]
	}
	return v, "0"
}

func compareRuns(a, b string) int {
	for a != "" || b != "" {
		na, nb := 0, 0
		for na < len(a) && !isDigit(a[na]) {
			na++
		}
		for nb < len(b) && !isDigit(b[nb]) {
			nb++
		}
		for i := range max(na, nb) {
			if c := weight(a[:na], i) - weight(b[:nb], i); c != 0 {
				return c
			}
		}
		a, b = a[na:], b[nb:]
		na, nb = 0, 0
		for na < len(a) && isDigit(a[na]) {
			na++
		}
		for nb < len(b) && isDigit(b[nb]) {
			nb++
		}
		da, db := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
		if len(da) != len(db) {
			return len(da) - len(db)
		}
		if c := strings.Compare(da, db); c != 0 {
			return c
		}
		a, b = a[na:], b[nb:]
	}
	return 0
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// weight orders one character: '~', the end, letters, the others.
func weight(run string, i int) int {
	if i >= len(run) {
		return 0
	}
	switch c := run[i]; {
	case c == '~':
		return -1
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		return int(c)
	default:
		return int(c) + 256
	}
}
