package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/peervisor/peervisor/guest"
)

const runDescription = `Without --kernel a Debian kernel (fetched by apt at first use) boots with a small initramfs, and
CMD runs in it: its standard input, output and error are separate and 8-bit clean, signals, the window size
and the end of input arrive. Without CMD it is a shell. With --kernel FILE the guest is yours: ttyS0 is the terminal.

SPEC is key=value,key=value; the first key may be left out where one is obvious; a comma in a value is written twice.

  --disk  [path=]FILE[,readonly][,snapshot][,direct][,id=ID][,serial=S][,queues=N]
          a raw file or block device; snapshot keeps writes in a throw-away overlay; direct is O_DIRECT
  --net   user[,hostfwd=tcp|udp:[ADDR]:PORT-[ADDR]:PORT]...[,hostaccess][,restrict] | tap=NAME[,bridge=BR] | none
          [,mac=MAC][,mtu=N][,id=ID]; default user. hostaccess lets the guest reach the host's own loopback
  --console, --serial   stdio | log | none | pty | file=PATH | socket=PATH
  --rng   host | none | path=FILE [,rate=BYTES]

Leaving a terminal: Ctrl-a x ends the guest, Ctrl-a d detaches, Ctrl-a h helps, Ctrl-a Ctrl-a sends one Ctrl-a.

Exit status: CMD's own, 128+n if signal n ended it; 120 the guest's kernel panicked, 121 it triple faulted or KVM could not
go on, 122 it was stopped or killed, 123 it powered off before CMD reported, 125 run itself failed, 126 CMD is not
runnable, 127 CMD was not found. A guest without CMD that powers off gives 0.

Examples:
  peervisor run                                          a shell
  peervisor run -- uname -a
  tar c . | peervisor run --disk out.img -- sh -c 'mount /dev/vda /mnt && tar xC /mnt'
  peervisor run --detach --name web --net user,hostfwd=tcp:127.0.0.1:8080-:80 -- httpd -f
  peervisor run --kernel vmlinux --append 'root=/dev/vda console=ttyS0' --disk root.img`

func runCommand() *cli.Command {
	return &cli.Command{
		Name: "run", Usage: "start a guest", ArgsUsage: "[-- CMD ARG...]", Description: runDescription,
		Action: runAction,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "kernel", Usage: "`FILE` (ELF vmlinux or bzImage), or deb:PACKAGE"},
			&cli.StringFlag{Name: "initrd", Usage: "initramfs `FILE`"},
			&cli.StringFlag{Name: "append", Usage: "add `STR` to the kernel command line"},
			&cli.IntFlag{Name: "cpus", Value: 1, Usage: "virtual processors, 1 to `N`=64"},
			&cli.StringFlag{Name: "memory", Aliases: []string{"m"}, Value: "512M", Usage: "`SIZE` of RAM: 128M, 2G"},
			&cli.StringSliceFlag{Name: "disk", Usage: "add a disk (`SPEC`)"},
			&cli.StringSliceFlag{Name: "net", Usage: "add a network device (`SPEC`)"},
			&cli.StringFlag{Name: "console", Usage: "where hvc0 leads (`SPEC`)"},
			&cli.StringFlag{Name: "serial", Usage: "where ttyS0 leads (`SPEC`)"},
			&cli.StringFlag{Name: "rng", Usage: "entropy (`SPEC`)"},
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the guest; made up if not given"},
			&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "`K=V` for CMD's environment"},
			&cli.StringFlag{Name: "workdir", Usage: "`DIR` in which CMD starts"},
			&cli.StringFlag{Name: "tty", Value: "auto", Usage: "give CMD a terminal: `auto`, on, off; auto: if standard input and output are one"},
			&cli.StringFlag{Name: "transport", Value: "pci", Usage: "virtio `TRANSPORT`: pci or mmio"},
			&cli.BoolFlag{Name: "no-reboot", Usage: "end when the guest reboots"},
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "run in the background and print the name"},
			&cli.BoolFlag{Name: "rm", Usage: "remove the guest's state when it ended"},
		},
	}
}

// runConfig reads the flags.
func runConfig(c *cli.Context) (guest.Config, error) {
	cfg := guest.Config{
		Name: c.String("name"), CPUs: c.Int("cpus"), Kernel: c.String("kernel"), Initrd: c.String("initrd"), Append: c.String("append"),
		Transport: c.String("transport"), NoReboot: c.Bool("no-reboot"), Remove: c.Bool("rm"),
	}
	if c.IsSet("name") && cfg.Name == "" {
		return cfg, errors.New("--name is empty")
	}
	if cfg.CPUs == 0 {
		return cfg, errors.New("--cpus 0: a guest has at least one processor")
	}
	var err error
	if cfg.MemoryBytes, err = guest.ParseSize(c.String("memory")); err != nil {
		return cfg, fmt.Errorf("--memory: %w", err)
	}
	for _, s := range c.StringSlice("disk") {
		d, err := guest.ParseDisk(s)
		if err != nil {
			return cfg, err
		}
		cfg.Disks = append(cfg.Disks, d)
	}
	specs := c.StringSlice("net")
	if len(specs) == 0 {
		specs = []string{"user"}
	}
	for _, s := range specs {
		n, err := guest.ParseNet(s)
		if err != nil {
			return cfg, err
		}
		cfg.Nets = append(cfg.Nets, n)
	}
	for flag, p := range map[string]*guest.PortSpec{"console": &cfg.Console, "serial": &cfg.Serial} {
		if s := c.String(flag); c.IsSet(flag) {
			if *p, err = guest.ParsePort(flag, s); err != nil {
				return cfg, err
			}
		}
	}
	if c.IsSet("rng") {
		if cfg.RNG, err = guest.ParseRNG(c.String("rng")); err != nil {
			return cfg, err
		}
	}
	if err := absolutePaths(&cfg); err != nil {
		return cfg, err
	}
	return cfg, setCommand(c, &cfg)
}

// absolutePaths: the guest's process and later readers of its config have other
// working directories.
func absolutePaths(cfg *guest.Config) error {
	paths := []*string{&cfg.Initrd, &cfg.RNG.Path, &cfg.Console.File, &cfg.Console.Socket, &cfg.Serial.File, &cfg.Serial.Socket}
	if !strings.HasPrefix(cfg.Kernel, "deb:") {
		paths = append(paths, &cfg.Kernel)
	}
	for i := range cfg.Disks {
		paths = append(paths, &cfg.Disks[i].Path)
	}
	for _, p := range paths {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	var err error
	cfg.CacheDir, err = guest.DefaultCacheDir()
	return err
}

func setCommand(c *cli.Context, cfg *guest.Config) error {
	argv := c.Args().Slice()
	stdinTTY, stdoutTTY := term.IsTerminal(0), term.IsTerminal(1)
	tty := stdinTTY && stdoutTTY
	switch c.String("tty") {
	case "auto":
	case "on":
		tty = true
	case "off":
		tty = false
	default:
		return fmt.Errorf("--tty %s: it is auto, on or off", c.String("tty"))
	}
	builtin := cfg.Initrd == "" && (cfg.Kernel == "" || strings.HasPrefix(cfg.Kernel, "deb:"))
	if len(argv) == 0 {
		if !builtin || c.Bool("detach") || tty {
			return nil // a terminal's shell, or the user's own system
		}
		argv = []string{"/bin/sh"}
	}
	if c.Bool("detach") && c.String("tty") == "auto" {
		tty = false
	}
	cmd := &guest.Command{Argv: argv, Env: c.StringSlice("env"), Dir: c.String("workdir"), TTY: tty}
	for _, e := range cmd.Env {
		if k, _, ok := strings.Cut(e, "="); !ok || k == "" {
			return fmt.Errorf("--env %s: write NAME=VALUE", e)
		}
	}
	cmd.Rows, cmd.Cols = 24, 80
	if cols, rows, err := term.GetSize(1); err == nil {
		cmd.Rows, cmd.Cols = rows, cols
	}
	if t := os.Getenv("TERM"); tty && t != "" {
		cmd.Env = append([]string{"TERM=" + t}, cmd.Env...)
	}
	if len(cmd.Env) > 0 {
		cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}, cmd.Env...)
	}
	cfg.Command = cmd
	return nil
}

func runAction(c *cli.Context) error {
	cfg, err := runConfig(c)
	if err != nil {
		return &exitError{guest.ExitRunFailed, err.Error()}
	}
	if err := checkKVM(&cfg); err != nil {
		return &exitError{guest.ExitRunFailed, err.Error()}
	}
	store, err := guest.DefaultStore()
	if err != nil {
		return &exitError{guest.ExitRunFailed, err.Error()}
	}
	dir, err := store.Create(cfg)
	if err != nil {
		return &exitError{guest.ExitRunFailed, err.Error()}
	}
	cfg = dir.Config()
	terminal := term.IsTerminal(0) && term.IsTerminal(1) &&
		(cfg.Command == nil || cfg.Command.TTY) && !c.Bool("detach")
	var exit *guest.Exit
	switch {
	case c.Bool("detach"):
		if err = launch(dir, false); err == nil {
			fmt.Println(cfg.Name)
			return dir.Close()
		}
	case terminal:
		exit, err = runInTerminal(store, dir)
	default:
		exit, err = runHere(dir)
	}
	if err != nil {
		return &exitError{guest.ExitRunFailed, errors.Join(err, dir.Remove()).Error()}
	}
	if exit == nil {
		return nil // detached
	}
	return exitStatus(cfg.Name, exit)
}

// exitStatus turns a guest's end into the program's.
func exitStatus(name string, e *guest.Exit) error {
	msg := ""
	if e.Reason != "command" || e.Code == guest.ExitRunFailed || e.Code == guest.ExitNotRunnable || e.Code == guest.ExitNotFound {
		msg = e.Detail
		if e.Reason != "command" && e.Code != 0 {
			msg = fmt.Sprintf("guest %s ended: %s", name, e.Reason)
			if e.Detail != "" {
				msg += ": " + e.Detail
			}
		}
	}
	if e.Code == 0 {
		return nil
	}
	return &exitError{e.Code, msg}
}

// runHere runs the guest in this process, with this process's streams.
func runHere(dir *guest.Dir) (*guest.Exit, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	sigs := make(chan os.Signal, 8)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(sigs)
	forward, done := make(chan int, 8), make(chan struct{})
	defer close(done)
	started := make(chan struct{})
	go forwardSignals(sigs, forward, started, done, cancel)
	p := newProgress(os.Stderr)
	g, err := guest.Start(ctx, dir, guest.Options{
		Streams:  &guest.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Signal: forward},
		Progress: p.step,
	})
	p.end()
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("interrupted: %w", err)
		}
		return nil, err
	}
	close(started)
	defer shedStartup()()
	exit, err := g.Wait(context.Background())
	if err = errors.Join(err, g.Close()); err != nil {
		return nil, err
	}
	if dir.Config().Remove {
		return &exit, dir.Remove()
	}
	return &exit, dir.Close()
}

// forwardSignals passes signals to the guest's command. Before the guest runs
// they break off its start.
func forwardSignals(sigs <-chan os.Signal, forward chan<- int, started, done <-chan struct{}, cancel func()) {
	for {
		select {
		case s := <-sigs:
			select {
			case <-started:
			default:
				cancel()
				continue
			}
			n, ok := s.(syscall.Signal)
			if !ok {
				continue
			}
			select {
			case forward <- int(n):
			case <-done:
				return
			}
		case <-done:
			return
		}
	}
}

// runInTerminal runs the guest in a process of its own, so that Ctrl-a d can leave
// it running, and attaches this terminal to it.
func runInTerminal(store *guest.Store, dir *guest.Dir) (*guest.Exit, error) {
	name := dir.Config().Name
	if err := launch(dir, true); err != nil {
		return nil, err
	}
	if err := dir.Close(); err != nil { // the guest's process holds the lock
		return nil, err
	}
	att, err := store.Client(name).Attach(context.Background(), true)
	if err != nil {
		// It may have ended already.
		if e := endedExit(store, name); e != nil {
			return e, nil
		}
		return nil, err
	}
	return session(store, name, att, true)
}

// endedExit waits a little for a guest that is ending and returns its exit.
func endedExit(store *guest.Store, name string) *guest.Exit {
	done := make(chan struct{})
	go func() { defer close(done); _ = store.WaitGone(name) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		return nil
	}
	if g, err := store.Get(name); err == nil {
		return g.State.Exit
	}
	return nil
}

// guestProcessCommand is the background process of a guest; launch starts it.
func guestProcessCommand() *cli.Command {
	return &cli.Command{
		Name: "guest-process", Hidden: true, HideHelp: true,
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "owned"}},
		Action: guestProcessAction,
	}
}

func guestProcessAction(c *cli.Context) error {
	// A background guest ends by the control API, not with its launcher's terminal.
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	lock, ready := os.NewFile(lockFD, "lock"), os.NewFile(readyFD, "ready")
	if lock == nil || ready == nil {
		return errors.New("guest-process is started by `peervisor run --detach`")
	}
	unix.CloseOnExec(readyFD)
	rep := newReporter(ready)
	store, err := guest.DefaultStore()
	if err != nil {
		return rep.fail(err)
	}
	dir, err := store.Adopt(c.Args().First(), lock)
	if err != nil {
		return rep.fail(err)
	}
	g, err := guest.Start(context.Background(), dir, guest.Options{Owned: c.Bool("owned"), Progress: rep.step})
	if err != nil {
		return rep.fail(err)
	}
	go func() {
		<-term
		_, _ = g.Stop(10 * time.Second)
	}()
	rep.ok()
	defer shedStartup()()
	_, err = g.Wait(context.Background())
	if err = errors.Join(err, g.Close()); err != nil {
		return err
	}
	if dir.Config().Remove {
		return dir.Remove()
	}
	return dir.Close()
}
