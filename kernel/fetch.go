package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// busyboxPackage has the only program of the guest that is not ours.
const busyboxPackage = "busybox-static"

// maxAppletBytes bounds busybox's list of itself.
const maxAppletBytes = 64 << 10

func (o *Options) progress(step string) {
	if o.Progress != nil {
		o.Progress(step)
	}
}

// Fetch downloads a kernel package with apt, unless the cache has the version
// that apt would take, and returns it. It works as root or not. InitrdPath is not set.
func Fetch(ctx context.Context, opts Options) (*Kernel, error) {
	k, err := fetchKernel(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("fetch kernel: %w", err)
	}
	return k, nil
}

func fetchKernel(ctx context.Context, opts Options) (*Kernel, error) {
	if opts.Package == "" {
		opts.Package = DefaultPackage
	}
	image, err := resolveImage(ctx, opts.Package)
	if err != nil {
		return nil, err
	}
	exact := image.name + "=" + image.version
	if k, err := Lookup(opts.CacheDir, exact); err == nil {
		return k, nil
	}
	var k *Kernel
	err = withCache(ctx, opts.CacheDir, func(temp string) error {
		// Another process may have made it while this one waited.
		if k, err = Lookup(opts.CacheDir, exact); err == nil {
			return nil
		}
		k, err = addKernel(ctx, opts, image, temp)
		return err
	})
	return k, err
}

// addKernel makes the cache entry of a kernel in temp and publishes it.
func addKernel(ctx context.Context, opts Options, image *aptPackage, temp string) (*Kernel, error) {
	opts.progress("download " + image.name + " " + image.version)
	deb, err := aptDownload(ctx, temp, image)
	if err != nil {
		return nil, err
	}
	opts.progress("unpack " + image.name)
	entry := filepath.Join(temp, "entry")
	release, err := unpackKernel(ctx, deb, entry)
	if err != nil {
		return nil, fmt.Errorf("unpack package %s: %w", image.name, err)
	}
	k := &Kernel{Package: opts.Package, Image: image.name, Version: image.version, Release: release}
	k.place(entry)
	if err := writeVmlinux(k.VmlinuzPath, k.VmlinuxPath); err != nil {
		return nil, err
	}
	if err := indexModules(k.ModulesDir); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	if err := os.WriteFile(filepath.Join(entry, kernelFile), b, 0o644); err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	cacheDir, err := filepath.Abs(opts.CacheDir)
	if err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	dir := filepath.Join(cacheDir, kernelsDir, entryName(k.Package, k.Version))
	if err := publish(entry, dir); err != nil {
		return nil, err
	}
	k.place(dir)
	return k, nil
}

// Paths of a kernel package that are wanted. Newer systems have everything below usr.
var (
	vmlinuzName = regexp.MustCompile(`^boot/vmlinuz-([A-Za-z0-9.+_~-]+)$`)
	moduleName  = regexp.MustCompile(`^(?:usr/)?lib/modules/([A-Za-z0-9.+_~-]+)/(.+)$`)
)

// unpackKernel takes vmlinuz and modules out of a .deb, the latter unpacked.
func unpackKernel(ctx context.Context, deb, entry string) (release string, err error) {
	f, err := os.Open(deb)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := os.MkdirAll(filepath.Join(entry, "modules"), 0o755); err != nil {
		return "", err
	}
	modulesOf := ""
	err = walkDeb(f, func(name string, _, size int64, r io.Reader) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if m := vmlinuzName.FindStringSubmatch(name); m != nil {
			if release != "" {
				return fmt.Errorf("%w: more than one kernel", errDeb)
			}
			release = m[1]
			return writeFile(filepath.Join(entry, "vmlinuz"), r)
		}
		m := moduleName.FindStringSubmatch(name)
		if m == nil {
			return nil
		}
		if modulesOf != "" && modulesOf != m[1] {
			return fmt.Errorf("%w: modules of more than one kernel", errDeb)
		}
		modulesOf = m[1]
		return unpackModule(filepath.Join(entry, "modules"), m[2], r)
	})
	switch {
	case err != nil:
		return "", err
	case release == "":
		return "", fmt.Errorf("%w: it has no boot/vmlinuz-*: name a package linux-image-…", errDeb)
	case modulesOf != release:
		return "", fmt.Errorf("%w: kernel %s has no modules in it", errDeb, release)
	}
	return release, nil
}

// unpackModule writes one file of the modules tree. Compressed modules are
// unpacked here, once, and not in every guest.
func unpackModule(dir, name string, r io.Reader) error {
	if ext := path.Ext(name); (ext == ".xz" || ext == ".zst" || ext == ".gz") && strings.HasSuffix(strings.TrimSuffix(name, ext), ".ko") {
		z, err := decompress(name, r)
		if err != nil {
			return err
		}
		defer z.Close()
		r, name = io.LimitReader(z, maxModuleBytes+1), strings.TrimSuffix(name, ext)
	}
	// walkDeb's names are clean: they stay below dir.
	to := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return writeFile(to, r)
}

func writeFile(name string, r io.Reader) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		f.Close()
		return fmt.Errorf("write %s: %w", filepath.Base(name), err)
	}
	return f.Close()
}

// FetchBusybox returns the path of a static busybox, from the Debian package
// busybox-static, and from the cache if that has the version that apt would
// take. opts.Package is not used.
func FetchBusybox(ctx context.Context, opts Options) (string, error) {
	p, err := fetchBusybox(ctx, opts)
	if err != nil {
		return "", fmt.Errorf("fetch busybox: %w", err)
	}
	return p, nil
}

func fetchBusybox(ctx context.Context, opts Options) (string, error) {
	cacheDir, err := filepath.Abs(opts.CacheDir)
	if err != nil {
		return "", fmt.Errorf("kernel cache: %w", err)
	}
	pkg, err := aptShow(ctx, busyboxPackage)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cacheDir, toolsDir, entryName(pkg.name, pkg.version))
	busybox := filepath.Join(dir, "busybox")
	if _, err := os.Stat(busybox); err == nil {
		return busybox, nil
	}
	err = withCache(ctx, cacheDir, func(temp string) error {
		if _, err := os.Stat(busybox); err == nil {
			return nil
		}
		opts.progress("download " + pkg.name + " " + pkg.version)
		deb, err := aptDownload(ctx, temp, pkg)
		if err != nil {
			return err
		}
		entry := filepath.Join(temp, "entry")
		if err := unpackBusybox(ctx, deb, entry); err != nil {
			return fmt.Errorf("unpack package %s: %w", pkg.name, err)
		}
		return publish(entry, dir)
	})
	return busybox, err
}

// LookupBusybox finds the newest busybox in the cache without asking apt.
func LookupBusybox(cacheDir string) (string, error) {
	abs, err := filepath.Abs(cacheDir)
	if err != nil {
		return "", fmt.Errorf("kernel cache: %w", err)
	}
	found, _ := filepath.Glob(filepath.Join(abs, toolsDir, busyboxPackage+"_*", "busybox"))
	newest, newestVersion := "", ""
	for _, p := range found {
		version := strings.TrimPrefix(filepath.Base(filepath.Dir(p)), busyboxPackage+"_")
		version = strings.ReplaceAll(version, "%3a", ":")
		if newest == "" || compareVersions(version, newestVersion) > 0 {
			newest, newestVersion = p, version
		}
	}
	if newest == "" {
		return "", fmt.Errorf("busybox: %w", ErrNotFetched)
	}
	return newest, nil
}

func unpackBusybox(ctx context.Context, deb, entry string) error {
	f, err := os.Open(deb)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Mkdir(entry, 0o755); err != nil {
		return err
	}
	busybox := filepath.Join(entry, "busybox")
	err = walkDeb(f, func(name string, _, _ int64, r io.Reader) error {
		if name != "bin/busybox" && name != "usr/bin/busybox" {
			return nil
		}
		return writeFile(busybox, r)
	})
	if err != nil {
		return err
	}
	if err := os.Chmod(busybox, 0o755); err != nil {
		return err
	}
	applets, err := busyboxApplets(ctx, busybox)
	if err != nil {
		return err
	}
	return os.WriteFile(busybox+appletsSuffix, applets, 0o644)
}

// appletsSuffix makes the name of the file that lists a busybox's applets, beside it.
const appletsSuffix = ".applets"

// busyboxApplets asks a busybox for its applets ("bin/ls"), one a line.
func busyboxApplets(ctx context.Context, busybox string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, busybox, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("ask busybox for its applets: %w", err)
	}
	if len(out) == 0 || len(out) > maxAppletBytes {
		return nil, fmt.Errorf("ask busybox for its applets: it gave %d bytes", len(out))
	}
	return out, nil
}

// Prepare does what Fetch and FetchBusybox do, builds the default initramfs, and
// sets InitrdPath. Whatever the cache has is taken from there without asking apt, so
// that a second call costs nothing; Fetch is what looks for newer versions.
func Prepare(ctx context.Context, opts Options) (*Kernel, error) {
	k, err := Lookup(opts.CacheDir, opts.Package)
	if errors.Is(err, ErrNotFetched) {
		k, err = Fetch(ctx, opts)
	}
	if err != nil {
		return nil, err
	}
	busybox, err := LookupBusybox(opts.CacheDir)
	if errors.Is(err, ErrNotFetched) {
		busybox, err = FetchBusybox(ctx, opts)
	}
	if err != nil {
		return nil, err
	}
	k.InitrdPath, err = Initramfs(ctx, opts.CacheDir, InitramfsOptions{Kernel: k, Busybox: busybox})
	return k, err
}
