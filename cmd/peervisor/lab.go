package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/peervisor/peervisor/guest"
	"github.com/peervisor/peervisor/kernel"
	"github.com/peervisor/peervisor/kernel/agent"
	"github.com/peervisor/peervisor/lab"
)

const labDescription = `A lab host is an emulated machine (QEMU) with hardware-style KVM, for machines without a usable one. This
binary is inside as "peervisor", with this directory at the same path. It is up in seconds, and gone when the command ends.`

func labFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "cpus", Value: 2, Usage: "processors of the lab host (`N`)"},
		&cli.StringFlag{Name: "memory", Value: "4G", Usage: "its RAM (`SIZE`)"},
		&cli.StringSliceFlag{Name: "package", Usage: "another Debian `PACKAGE` to have"},
		&cli.StringFlag{Name: "results", Usage: "keep logs in `DIR`, which the lab host sees at " + lab.ResultsMount},
		&cli.BoolFlag{Name: "no-share", Usage: "do not show this directory to the lab host"},
	}
}

func labCommand() *cli.Command {
	return &cli.Command{
		Name: "lab", Usage: "run commands on an emulated host", Description: labDescription,
		Subcommands: []*cli.Command{
			{
				Name: "exec", Usage: "run a command on a fresh lab host", ArgsUsage: "[--] CMD ARG...",
				Description: labDescription + "\n\nExit status and output come through; the lab's own failures are 125.",
				Flags:       labFlags(), Action: labExec,
			},
			{
				Name: "shell", Usage: "a shell on a fresh lab host", Description: labDescription,
				Flags: labFlags(), Action: labShell,
			},
		},
	}
}

func labShell(c *cli.Context) error { return labRun(c, []string{"/bin/bash", "-l"}) }

func labExec(c *cli.Context) error {
	if c.NArg() == 0 {
		return &exitError{guest.ExitRunFailed, "lab exec needs a command: peervisor lab exec -- CMD ARG..."}
	}
	return labRun(c, c.Args().Slice())
}

func labRun(c *cli.Context, argv []string) error {
	fail := func(err error) error { return &exitError{guest.ExitRunFailed, err.Error()} }
	cfg, err := labConfig(c)
	if err != nil {
		return fail(err)
	}
	ctx, cancel := interruptible()
	defer cancel()
	p := newProgress(os.Stderr)
	cfg.Progress = p.step
	// Guests in the lab find kernel and initramfs in the shared, read-only cache.
	_, err = kernel.Prepare(ctx, kernel.Options{CacheDir: cfg.CacheDir, Progress: p.step})
	var host *lab.Host
	if err == nil {
		host, err = lab.Start(ctx, cfg)
	}
	p.end()
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("lab: interrupted")
		}
		return fail(err)
	}
	cancel() // from now on signals are the command's
	st, err := labCommandRun(host, cfg, argv)
	if cerr := host.Close(); err == nil {
		err = cerr
	}
	var se *agent.StartError
	if errors.As(err, &se) {
		return &exitError{se.Code, se.Message}
	}
	if err != nil {
		return fail(err)
	}
	if code := st.ExitCode(); code != 0 {
		return &exitError{code, ""}
	}
	return nil
}

func labConfig(c *cli.Context) (lab.Config, error) {
	cfg := lab.Config{CPUs: c.Int("cpus"), Packages: c.StringSlice("package"), ResultDir: c.String("results")}
	mem, err := guest.ParseSize(c.String("memory"))
	if err != nil {
		return cfg, fmt.Errorf("--memory: %w", err)
	}
	cfg.MemoryMiB = int(mem >> 20)
	if cfg.CacheDir, err = guest.DefaultCacheDir(); err != nil {
		return cfg, err
	}
	if cfg.Binary, err = os.Executable(); err != nil {
		return cfg, fmt.Errorf("find this program: %w", err)
	}
	if !c.Bool("no-share") {
		wd, err := os.Getwd()
		if err != nil {
			return cfg, err
		}
		cfg.Shares = []lab.Share{{Source: wd, Target: wd}}
	}
	return cfg, nil
}

// labCommandRun runs argv with this process's streams, terminal and signals.
func labCommandRun(host *lab.Host, cfg lab.Config, argv []string) (agent.Status, error) {
	cmd := agent.Command{Argv: argv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if len(cfg.Shares) > 0 {
		cmd.Dir = cfg.Shares[0].Target
	}
	cmd.Env = []string{"TERM=" + orDefault(os.Getenv("TERM"), "dumb")}
	if term.IsTerminal(0) && term.IsTerminal(1) {
		cmd.TTY = true
		if cols, rows, err := term.GetSize(0); err == nil {
			cmd.Rows, cmd.Cols = uint16(rows), uint16(cols)
		}
		old, err := term.MakeRaw(0)
		if err != nil {
			return agent.Status{}, fmt.Errorf("set up the terminal: %w", err)
		}
		defer func() { _ = term.Restore(0, old) }()
	}
	p, err := host.Run(context.Background(), cmd)
	if err != nil {
		return agent.Status{}, err
	}
	sigs := make(chan os.Signal, 8)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGWINCH)
	defer signal.Stop(sigs)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-sigs:
				if s == syscall.SIGWINCH {
					if cols, rows, err := term.GetSize(0); err == nil {
						_ = p.Resize(uint16(rows), uint16(cols))
					}
				} else if n, ok := s.(syscall.Signal); ok {
					_ = p.Signal(n)
				}
			case <-done:
				return
			}
		}
	}()
	return p.Wait()
}
