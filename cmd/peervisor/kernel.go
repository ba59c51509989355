package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/peervisor/peervisor/guest"
	"github.com/peervisor/peervisor/kernel"
)

func kernelCommand() *cli.Command {
	return &cli.Command{
		Name: "kernel", Usage: "fetch and list guest kernels",
		Description: "Debian kernel packages, unpacked to a vmlinux, modules and an initramfs, and kept in the cache (PEERVISOR_CACHE).",
		Subcommands: []*cli.Command{
			{
				Name: "fetch", Usage: "fetch a kernel package with apt", ArgsUsage: "[PACKAGE]",
				Description: "Default " + kernel.DefaultPackage + ". `peervisor run --kernel deb:PACKAGE` uses it. Nothing is downloaded twice.",
				Flags:       []cli.Flag{jsonFlag()},
				Action:      kernelFetch,
			},
			{
				Name: "ls", Usage: "list what the cache has", Flags: []cli.Flag{jsonFlag()},
				Action: kernelList,
			},
		},
	}
}

// interruptible returns a context that Ctrl-C ends.
func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
}

func kernelFetch(c *cli.Context) error {
	if c.NArg() > 1 {
		return errors.New("kernel fetch takes one PACKAGE")
	}
	cache, err := guest.DefaultCacheDir()
	if err != nil {
		return err
	}
	ctx, cancel := interruptible()
	defer cancel()
	p := newProgress(os.Stderr)
	opts := kernel.Options{CacheDir: cache, Package: c.Args().First(), Progress: p.step}
	k, err := kernel.Fetch(ctx, opts) // asks apt for a newer one
	if err == nil {
		k, err = kernel.Prepare(ctx, opts)
	}
	p.end()
	if err != nil {
		if ctx.Err() != nil {
			return errors.New("kernel fetch: interrupted; nothing half-made was kept")
		}
		return err
	}
	if c.Bool("json") {
		return printJSON(kernelJSON(*k))
	}
	fmt.Printf("%s %s (%s)\n  kernel     %s\n  modules    %s\n  initramfs  %s\n", k.Package, k.Version, k.Release, k.VmlinuxPath, k.ModulesDir, k.InitrdPath)
	return nil
}

type kernelEntry struct {
	kernel.Kernel
	Vmlinux string `json:"vmlinux"`
	Modules string `json:"modules"`
	Initrd  string `json:"initrd,omitempty"`
}

func kernelJSON(k kernel.Kernel) kernelEntry {
	return kernelEntry{k, k.VmlinuxPath, k.ModulesDir, k.InitrdPath}
}

func kernelList(c *cli.Context) error {
	cache, err := guest.DefaultCacheDir()
	if err != nil {
		return err
	}
	ks, err := kernel.List(cache)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		out := []kernelEntry{}
		for _, k := range ks {
			out = append(out, kernelJSON(k))
		}
		return printJSON(out)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "PACKAGE\tVERSION\tRELEASE\tKERNEL")
	for _, k := range ks {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", k.Package, k.Version, k.Release, k.VmlinuxPath)
	}
	return w.Flush()
}
