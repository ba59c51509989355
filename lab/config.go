package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ErrUnavailable is wrapped when this machine cannot run a lab host at all, however
// it is configured: no QEMU, no apt, packages that cannot be had. Tests
// skip for it; other errors are failures.
var ErrUnavailable = errors.New("the lab is not available here")

// DefaultKernelPackage has 9p, nbd and usbip, which the cloud kernel lacks.
const DefaultKernelPackage = "linux-image-amd64"

// Places in a lab host.
const (
	// FilesDir has Config.Files; its bin directory is in PATH.
	FilesDir = "/opt/peervisor"
	// ResultsMount is Config.ResultDir, writable.
	ResultsMount = "/results"
)

// defaultPackages are in every image: what a test or a benchmark may count on.
var defaultPackages = []string{
	"bash", "busybox-static", "coreutils", "dash", "e2fsprogs", "findutils", "fio", "gawk", "grep",
	"iperf3", "iproute2", "iputils-ping", "mount", "procps", "qemu-system-x86", "qemu-utils",
	"sed", "socat", "strace", "tar", "util-linux",
}

// Defaults and bounds of Config.
const (
	defaultCPUs        = 2
	maxCPUs            = 16
	defaultMemoryMiB   = 4096
	minMemoryMiB       = 512
	maxMemoryMiB       = 64 << 10
	defaultBootTimeout = 3 * time.Minute
	maxShares          = 16
	maxFiles           = 256
	maxPackages        = 512
)

// File is a file that the lab host gets to see at FilesDir/Path. It is copied
// when the host starts: a later change of Source is not seen.
type File struct {
	// Source is a regular file on this machine.
	Source string
	// Path is relative to FilesDir, "bin/peervisor". Its mode is 0755.
	Path string
}

// Share is a directory of this machine that the lab host has mounted.
type Share struct {
	// Source is the directory here, Target the mount point there (absolute).
	Source, Target string
	// ReadOnly refuses writes from the lab host.
	ReadOnly bool
	// Cached lets the lab host keep what it read: right, and faster to run
	// programs from, where nobody changes Source. Without it both sides see each
	// other's writes at once.
	Cached bool
}

// Config of a lab host. The zero value of everything but CacheDir is good.
type Config struct {
	// Name is the host name, of letters, digits and dashes. Default "lab".
	Name string
	// CacheDir keeps images and kernels between runs. It is the same directory as
	// kernel.Options.CacheDir. The lab host sees it read-only, at the same path, and
	// PEERVISOR_CACHE names it there. Required.
	CacheDir string
	// CPUs is the number of emulated processors, each a thread of QEMU. Default 2.
	CPUs int
	// MemoryMiB is the size of the lab host's RAM in MiB, taken from this machine as
	// it is touched. Default 4096.
	MemoryMiB int
	// Binary is the peervisor executable; in the lab it is in PATH as
	// "peervisor". Empty: none.
	Binary string
	// Files and Shares are what else the lab host sees.
	Files  []File
	Shares []Share
	// Packages are Debian packages to have besides the default set (QEMU, iproute2,
	// iperf3, fio, e2fsprogs and a plain command line).
	Packages []string
	// KernelPackage is the lab host's kernel. Default DefaultKernelPackage. It needs
	// kvm-amd, 9p, ext4 and virtio as modules or built in.
	KernelPackage string
	// ResultDir is made if it is missing. serial.log, kernel.log and qemu.log are
	// kept there, and the lab host sees it at ResultsMount. Empty: the logs go
	// with the host.
	ResultDir string
	// BootTimeout bounds the time from QEMU's start to a host that takes commands.
	// Default 3 minutes: thirty times what it takes on an idle machine.
	BootTimeout time.Duration
	// Progress is told in a few words what happens next, where it takes long. It is
	// called from the goroutine that called Start. Default: nobody is told.
	Progress func(step string)
	// Log gets notices of the lab host's init and what was cleaned up. Default: none.
	Log *slog.Logger
}

// complete checks cfg and fills in defaults. The result shares nothing with cfg.
func (cfg Config) complete() (Config, error) {
	c := cfg
	if c.CacheDir == "" {
		return c, errors.New("start lab host: no cache directory is named")
	}
	var err error
	if c.CacheDir, err = filepath.Abs(c.CacheDir); err != nil {
		return c, fmt.Errorf("start lab host: cache directory: %w", err)
	}
	setDefault(&c.Name, "lab")
	setDefault(&c.CPUs, defaultCPUs)
	setDefault(&c.MemoryMiB, defaultMemoryMiB)
	setDefault(&c.KernelPackage, DefaultKernelPackage)
	setDefault(&c.BootTimeout, defaultBootTimeout)
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := c.check(); err != nil {
		return c, fmt.Errorf("start lab host: %w", err)
	}
	if c.Packages, err = packageList(c.Packages); err != nil {
		return c, fmt.Errorf("start lab host: %w", err)
	}
	c.Files = slices.Clone(c.Files)
	if c.Binary != "" {
		c.Files = append(c.Files, File{Source: c.Binary, Path: "bin/peervisor"})
	}
	if c.Shares, err = shareList(c); err != nil {
		return c, fmt.Errorf("start lab host: %w", err)
	}
	return c, nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (cfg Config) check() error {
	if cfg.CPUs < 1 || cfg.CPUs > maxCPUs {
		return fmt.Errorf("%d CPUs: expected 1 to %d", cfg.CPUs, maxCPUs)
	}
	if cfg.MemoryMiB < minMemoryMiB || cfg.MemoryMiB > maxMemoryMiB {
		return fmt.Errorf("%d MiB of memory: expected %d to %d", cfg.MemoryMiB, minMemoryMiB, maxMemoryMiB)
	}
	if !validHostName(cfg.Name) {
		return fmt.Errorf("name %q: expected up to 63 letters, digits and inner dashes", cfg.Name)
	}
	if len(cfg.Files) > maxFiles || len(cfg.Shares) > maxShares || len(cfg.Packages) > maxPackages {
		return fmt.Errorf("%d files, %d shares, %d packages: at most %d, %d and %d are possible",
			len(cfg.Files), len(cfg.Shares), len(cfg.Packages), maxFiles, maxShares, maxPackages)
	}
	for _, f := range cfg.Files {
		if !filepath.IsLocal(f.Path) || f.Path != path.Clean(f.Path) {
			return fmt.Errorf("file %s: %q is not a plain relative path below %s", f.Source, f.Path, FilesDir)
		}
	}
	return nil
}

func validHostName(s string) bool {
	for i, c := range s {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '-' && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return len(s) > 0 && len(s) <= 63
}

// packageList is the whole list of packages, sorted, each once.
func packageList(extra []string) ([]string, error) {
	all := slices.Concat(defaultPackages, extra)
	for _, p := range all {
		if !validPackageName(p) {
			return nil, fmt.Errorf("package %q: not the name of a Debian package", p)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// validPackageName follows Debian policy 5.6.7. It also keeps options, versions
// and removals ("name-") away from apt's command line.
func validPackageName(name string) bool {
	for i, c := range name {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case i > 0 && strings.ContainsRune("+-.", c):
		default:
			return false
		}
	}
	return len(name) >= 2 && !strings.HasSuffix(name, "-") && (!strings.HasSuffix(name, "+") || strings.HasSuffix(name, "++"))
}

// ownDirs are what a lab host cannot do without.
var ownDirs = []string{"/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/sbin", FilesDir}

// within says whether file is dir or lies below it.
func within(file, dir string) bool {
	return file == dir || strings.HasPrefix(file, dir+"/")
}

// shareList adds the lab's own shares to the caller's and makes sources absolute.
func shareList(cfg Config) ([]Share, error) {
	shares := []Share{{Source: cfg.CacheDir, Target: cfg.CacheDir, ReadOnly: true}}
	if cfg.ResultDir != "" {
		shares = append(shares, Share{Source: cfg.ResultDir, Target: ResultsMount})
	}
	shares = append(shares, cfg.Shares...)
	for i := range shares {
		s := &shares[i]
		if !path.IsAbs(s.Target) || path.Clean(s.Target) != s.Target || s.Target == "/" {
			return nil, fmt.Errorf("share %s: %q is not a plain absolute path", s.Source, s.Target)
		}
		if strings.ContainsRune(s.Target, 0) {
			return nil, fmt.Errorf("share %s: mount point %q has a NUL byte", s.Source, s.Target)
		}
		if i := slices.IndexFunc(ownDirs, func(own string) bool { return within(own, s.Target) }); i >= 0 {
			return nil, fmt.Errorf("share %s: mounted on %s it would hide %s of the lab host: choose another mount point, as /work",
				s.Source, s.Target, ownDirs[i])
		}
		abs, err := filepath.Abs(s.Source)
		if err != nil {
			return nil, fmt.Errorf("share %s: %w", s.Source, err)
		}
		s.Source = abs
		if s.Source == cfg.ResultDir || s.Source == cfg.CacheDir {
			continue // made by Start
		}
		if info, err := os.Stat(s.Source); err != nil {
			return nil, fmt.Errorf("share: %w", err)
		} else if !info.IsDir() {
			return nil, fmt.Errorf("share %s: not a directory", s.Source)
		}
	}
	return shares, nil
}
