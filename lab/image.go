package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kernel"
)

// recipe is part of an image's hash: it grows whenever the same packages make
// another image.
const recipe = 1

// Names below CacheDir/lab.
const (
	imagesDir    = "images"
	resolvedDir  = "resolved"
	runDir       = "run"
	lockName     = ".lock"
	tempPattern  = ".tmp-*"
	rootName     = "root.img"
	manifestName = "manifest.json"
)

const (
	keyBytes         = 16 // of SHA-256, in a name
	lockRetry        = 50 * time.Millisecond
	maxResolvedBytes = 64 << 10 // of a file of some hundred bytes
	maxRequests      = 4        // whose images are kept, of 0.7 GiB each
)

// store is the part of the cache that has images.
type store struct {
	dir      string // CacheDir/lab
	cacheDir string
	progress func(string)
}

// request is what decides about an image, before apt says which versions that means.
type request struct {
	Recipe   int      `json:"recipe"`
	Packages []string `json:"packages"`
	Kernel   string   `json:"kernel"`
}

func (r request) name() string { return hashJSON(r)[:2*keyBytes] }

// resolution is what a request led to.
type resolution struct {
	// AptStamp names the state of apt's lists.
	AptStamp string `json:"aptStamp"`
	// Key is the image.
	Key string `json:"key"`
	// Kernel is PACKAGE=VERSION for kernel.Lookup.
	Kernel string `json:"kernel"`
}

// manifest is all that an image is made of; its hash is the image's key.
type manifest struct {
	Request request   `json:"request"`
	Image   string    `json:"image"`   // kernel package
	Version string    `json:"version"` // of it
	Debs    []debFile `json:"debs"`
}

func (m manifest) key() string { return hashJSON(m)[:2*keyBytes] }

func hashJSON(v any) string {
	// Structures of strings and numbers: encoding cannot fail.
	b, _ := json.Marshal(v)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// image is a root file system, open, and the kernel that goes with it.
type image struct {
	root   *os.File
	kernel *kernel.Kernel
}

// get returns the image of a request, from the cache if nothing changed since it
// was made, and builds it otherwise. The caller closes root; an image that is
// removed meanwhile stays readable.
func (s *store) get(ctx context.Context, req request) (*image, error) {
	stamp, err := aptStamp(aptListsDir, aptConfDir)
	if err != nil {
		return nil, err
	}
	if img, err := s.cached(req, stamp); err == nil {
		return img, nil
	}
	unlock, err := lockFile(ctx, s.dir, lockName)
	if err != nil {
		return nil, fmt.Errorf("lock the lab's images: %w", err)
	}
	defer unlock()
	// Another process may have made it while this one waited.
	if img, err := s.cached(req, stamp); err == nil {
		return img, nil
	}
	if err := s.makeLocked(ctx, req, stamp); err != nil {
		return nil, fmt.Errorf("build lab image: %w", err)
	}
	return s.cached(req, stamp)
}

// cached opens what an earlier resolution of the same request led to.
func (s *store) cached(req request, stamp string) (*image, error) {
	res, err := s.readResolution(req)
	if err != nil {
		return nil, err
	}
	if res.AptStamp != stamp {
		return nil, errors.New("apt's lists changed")
	}
	k, err := kernel.Lookup(s.cacheDir, res.Kernel)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(s.imagePath(res.Key))
	if err != nil {
		return nil, err
	}
	// So that removeUnusedLocked knows; if it fails, the image is built again some day.
	_ = os.Chtimes(s.resolutionPath(req.name()), time.Time{}, time.Now())
	return &image{root: f, kernel: k}, nil
}

func (s *store) imagePath(key string) string {
	return filepath.Join(s.dir, imagesDir, key, rootName)
}

func (s *store) resolutionPath(name string) string {
	return filepath.Join(s.dir, resolvedDir, name+".json")
}

func (s *store) readResolution(req request) (resolution, error) {
	return readResolutionFile(s.resolutionPath(req.name()))
}

func readResolutionFile(file string) (resolution, error) {
	var res resolution
	info, err := os.Stat(file)
	if err != nil {
		return res, err
	}
	if info.Size() > maxResolvedBytes {
		return res, fmt.Errorf("%s: %d bytes, at most %d are right", file, info.Size(), maxResolvedBytes)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return res, err
	}
	if err := json.Unmarshal(b, &res); err != nil {
		return res, fmt.Errorf("read %s: %w", file, err)
	}
	if raw, err := hex.DecodeString(res.Key); err != nil || len(raw) != keyBytes {
		return res, fmt.Errorf("read %s: %q is no image", file, res.Key)
	}
	return res, nil
}

// makeLocked finds out what the request means today, builds the image unless it is
// there, and writes the resolution down.
func (s *store) makeLocked(ctx context.Context, req request, stamp string) error {
	if err := s.removeStaleLocked(); err != nil {
		return err
	}
	k, err := kernel.Fetch(ctx, kernel.Options{CacheDir: s.cacheDir, Package: req.Kernel, Progress: s.progress})
	if err != nil {
		return unavailable(ctx, err)
	}
	temp, err := os.MkdirTemp(s.dir, tempPattern)
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(temp) }() // the next one to build tries again
	s.progress("find the packages of the lab host")
	a, err := newApt(filepath.Join(temp, "apt"))
	if err != nil {
		return err
	}
	m := manifest{Request: req, Image: k.Image, Version: k.Version}
	if m.Debs, err = a.resolve(ctx, req.Packages); err != nil {
		return err
	}
	if _, err := os.Stat(s.imagePath(m.key())); errors.Is(err, fs.ErrNotExist) {
		if err := s.buildLocked(ctx, a, m, k, temp); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	res := resolution{AptStamp: stamp, Key: m.key(), Kernel: k.Image + "=" + k.Version}
	if err := s.writeResolution(req, res, temp); err != nil {
		return err
	}
	return s.removeUnusedLocked()
}

func (s *store) buildLocked(ctx context.Context, a *apt, m manifest, k *kernel.Kernel, temp string) error {
	s.progress(fmt.Sprintf("download %d packages for the lab host", len(m.Debs)))
	debs, err := a.download(ctx, m.Request.Packages, m.Debs)
	if err != nil {
		return err
	}
	entry := filepath.Join(temp, "image")
	if err := os.Mkdir(entry, 0o755); err != nil {
		return err
	}
	s.progress("unpack the packages of the lab host")
	root := filepath.Join(temp, "root")
	if err := makeRoot(ctx, root, debs, k); err != nil {
		return err
	}
	s.progress("write the image of the lab host")
	if err := makeFileSystem(ctx, root, filepath.Join(entry, rootName)); err != nil {
		return err
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(entry, manifestName), append(b, '\n'), 0o644); err != nil {
		return err
	}
	if err := syncFS(entry); err != nil {
		return err
	}
	final := filepath.Dir(s.imagePath(m.key()))
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return err
	}
	return os.Rename(entry, final)
}

// syncFS: after a crash the name must not be there without the bytes.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("write %s: %w", dir, err)
	}
	return nil
}

func (s *store) writeResolution(req request, res resolution, temp string) error {
	b, err := json.Marshal(res)
	if err != nil {
		return err
	}
	file := filepath.Join(temp, "resolution")
	if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
		return err
	}
	final := s.resolutionPath(req.name())
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return err
	}
	return os.Rename(file, final)
}

// removeStaleLocked removes what processes left that died while they built: nobody
// works here without the lock.
func (s *store) removeStaleLocked() error {
	stale, err := filepath.Glob(filepath.Join(s.dir, tempPattern))
	if err != nil {
		return err
	}
	for _, dir := range stale {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove what a killed process left: %w", err)
		}
	}
	return nil
}

// removeUnusedLocked forgets all but the requests that were used last, and removes
// the images that no request leads to any more. Hosts that run from one have it open.
func (s *store) removeUnusedLocked() error {
	files, err := filepath.Glob(s.resolutionPath("*"))
	if err != nil {
		return err
	}
	lastUse := func(file string) time.Time {
		info, err := os.Stat(file)
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	slices.SortFunc(files, func(a, b string) int { return lastUse(b).Compare(lastUse(a)) })
	var used []string
	for i, file := range files {
		res, err := readResolutionFile(file)
		if err == nil && i < maxRequests {
			used = append(used, res.Key)
		} else if err := os.Remove(file); err != nil {
			return fmt.Errorf("forget an old image: %w", err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, imagesDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if slices.Contains(used, e.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.dir, imagesDir, e.Name())); err != nil {
			return fmt.Errorf("remove an old image: %w", err)
		}
	}
	return nil
}

// lockFile waits for an exclusive flock on dir/name and returns what gives it
// back. The kernel gives it back when the process dies.
func lockFile(ctx context.Context, dir, name string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	retry := time.NewTicker(lockRetry)
	defer retry.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch err {
		case nil:
			return func() { _ = f.Close() }, nil // closing unlocks
		case unix.EWOULDBLOCK, unix.EINTR:
		default:
			_ = f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("another process holds %s: %w", f.Name(), context.Cause(ctx))
		case <-retry.C:
		}
	}
}
