package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/peervisor/peervisor/kernel"
	"github.com/peervisor/peervisor/vmm/boot"
)

// builtinCmdline is what a guest with the built-in initramfs starts with.
//
//	console=ttyS0 loglevel=4   the serial line is slow (one exit a byte): errors and panics only; init
//	                           sends the whole ring buffer to the log by virtio-console
//	panic=-1 reboot=k          reset at once after a panic, by the keyboard controller
//	no_timer_check, tsc=reliable   KVM's clocks need no probing
//	8250.nr_uarts=1, i8042.*, pci=lastbus=0   do not look for what is not there
//	random.trust_cpu=on        do not wait for entropy
const builtinCmdline = "console=ttyS0 loglevel=4 panic=-1 reboot=k no_timer_check tsc=reliable 8250.nr_uarts=1 i8042.nokbd i8042.noaux i8042.nomux i8042.dumbkbd pci=lastbus=0 random.trust_cpu=on"

// source is the open kernel and initrd of a guest, read at every boot.
type source struct {
	name, cmdline  string
	kernel, initrd *os.File
	kernelSize     int64
	initrdSize     int64
}

// openSource finds and opens the kernel and initrd, fetching them if the cache
// does not have them.
func openSource(ctx context.Context, cfg *Config, progress func(string)) (*source, error) {
	kernelPath, initrdPath := cfg.Kernel, cfg.Initrd
	s := &source{name: cfg.Kernel, cmdline: cfg.Append}
	if kernelPath == "" || isPackage(kernelPath) {
		k, err := preparedKernel(ctx, cfg, progress)
		if err != nil {
			return nil, err
		}
		kernelPath, s.name = k.VmlinuxPath, k.Package+" "+k.Version
		if cfg.builtin() {
			initrdPath = k.InitrdPath
			s.cmdline = joinWords(builtinCmdline, cfg.Append)
		}
	}
	if len(s.cmdline) > 0 && strings.ContainsAny(s.cmdline, "\n\x00") {
		return nil, fmt.Errorf("--append: a kernel command line has no line feeds and no NUL bytes")
	}
	var err error
	if s.kernel, s.kernelSize, err = openRegular("kernel", kernelPath); err != nil {
		return nil, err
	}
	if initrdPath != "" {
		if s.initrd, s.initrdSize, err = openRegular("initrd", initrdPath); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

// preparedKernel takes a kernel and its initramfs from the cache, or fetches them.
func preparedKernel(ctx context.Context, cfg *Config, progress func(string)) (*kernel.Kernel, error) {
	cache := cfg.CacheDir
	if cache == "" {
		var err error
		if cache, err = DefaultCacheDir(); err != nil {
			return nil, err
		}
	}
	k, err := kernel.Prepare(ctx, kernel.Options{CacheDir: cache, Package: strings.TrimPrefix(cfg.Kernel, "deb:"), Progress: progress})
	if err != nil {
		return nil, fmt.Errorf("guest kernel: %w", err)
	}
	return k, nil
}

func openRegular(what, path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", what, err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("%s: %w", what, err), f.Close())
	}
	return f, st.Size(), nil
}

// boot is the source as the loader wants it.
func (s *source) boot() boot.Source {
	b := boot.Source{Kernel: s.kernel, KernelSize: s.kernelSize, KernelName: s.kernel.Name(), Cmdline: s.cmdline}
	if s.initrd != nil {
		b.Initrd, b.InitrdSize, b.InitrdName = s.initrd, s.initrdSize, s.initrd.Name()
	}
	return b
}

func (s *source) close() error {
	var errs []error
	for _, f := range []*os.File{s.kernel, s.initrd} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
