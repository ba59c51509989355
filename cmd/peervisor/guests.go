package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/peervisor/peervisor/guest"
)

// apiTimeout bounds calls that a healthy guest answers at once.
const apiTimeout = 30 * time.Second

func apiContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), apiTimeout)
}

func printJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func psCommand() *cli.Command {
	return &cli.Command{
		Name: "ps", Usage: "list guests", Aliases: []string{"ls"},
		Description: "Without -a those that have a process. Exit status 1 if a guest's state cannot be read.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "ended ones too"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "names only"},
			jsonFlag(),
		},
		Action: psAction,
	}
}

func psAction(c *cli.Context) error {
	store, err := guest.DefaultStore()
	if err != nil {
		return err
	}
	all, err := store.List()
	list := []*guest.Info{} // an empty listing is [] in JSON
	for _, g := range all {
		if c.Bool("all") || g.State.Status.Live() {
			list = append(list, g)
		}
	}
	switch {
	case c.Bool("json"):
		return errors.Join(printJSON(list), err)
	case c.Bool("quiet"):
		for _, g := range list {
			fmt.Println(g.Config.Name)
		}
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tSTATUS\tCPUS\tMEMORY\tCREATED\tCOMMAND")
	for _, g := range list {
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s ago\t%s\n", g.Config.Name, statusText(g), g.Config.CPUs,
			sizeText(g.Config.MemoryBytes), ageText(time.Since(g.State.Created)), commandText(&g.Config))
	}
	return errors.Join(w.Flush(), err)
}

func statusText(g *guest.Info) string {
	s := string(g.State.Status)
	if e := g.State.Exit; e != nil {
		s += fmt.Sprintf(" (%d", e.Code)
		if e.Reason != "command" && e.Reason != s {
			s += " " + e.Reason
		}
		s = strings.Replace(s+")", "crashed (125 crashed)", "crashed (125)", 1)
	}
	return s
}

func sizeText(n uint64) string {
	if n%(1<<30) == 0 {
		return fmt.Sprintf("%dG", n>>30)
	}
	return fmt.Sprintf("%dM", n>>20)
}

func ageText(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func commandText(cfg *guest.Config) string {
	s := "(" + orDefault(cfg.Kernel, "shell") + ")"
	if cfg.Command != nil {
		s = strings.Join(cfg.Command.Argv, " ")
	}
	if len(s) > 40 {
		s = s[:37] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7F {
			return '?'
		}
		return r
	}, s)
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name: "inspect", Usage: "all about a guest, as JSON", ArgsUsage: "NAME",
		Description: "Configuration, state and, while it runs, devices and counters: exits by kind, queues, bytes, times.",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "JSON, which is the only form", Value: true}},
		Action: func(c *cli.Context) error {
			name, err := oneName(c)
			if err != nil {
				return err
			}
			store, err := guest.DefaultStore()
			if err != nil {
				return err
			}
			info, err := store.Get(name)
			if err != nil {
				return err
			}
			if info.State.Status.Live() {
				ctx, cancel := apiContext()
				defer cancel()
				i, err := store.Client(name).Inspect(ctx)
				if err == nil {
					return printJSON(i)
				}
				if !errors.Is(err, guest.ErrUnreachable) {
					return err
				}
				// It is starting or ending: the stored state is all there is.
			}
			last, err := store.Last(name)
			if err != nil {
				return err
			}
			return printJSON(last)
		},
	}
}

// eachGuest runs f for every NAME argument, prints the name of each success,
// and returns all errors.
func eachGuest(c *cli.Context, f func(*guest.Store, string) error) error {
	ns, err := names(c)
	if err != nil {
		return err
	}
	store, err := guest.DefaultStore()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range ns {
		if err := f(store, n); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Println(n)
	}
	return errors.Join(errs...)
}

// live returns the client of a guest that has a process.
func live(store *guest.Store, name string) (*guest.Client, error) {
	g, err := store.Get(name)
	if err != nil {
		return nil, err
	}
	if !g.State.Status.Live() {
		return nil, fmt.Errorf("guest %s is %s: %w", name, statusText(g), guest.ErrNotRunning)
	}
	return store.Client(name), nil
}

func clientCommand(name, usage, description string, call func(*guest.Client, context.Context) error) *cli.Command {
	return &cli.Command{
		Name: name, Usage: usage, ArgsUsage: "NAME...", Description: description,
		Action: func(c *cli.Context) error {
			return eachGuest(c, func(store *guest.Store, n string) error {
				cl, err := live(store, n)
				if err != nil {
					return err
				}
				ctx, cancel := apiContext()
				defer cancel()
				return call(cl, ctx)
			})
		},
	}
}

func pauseCommand() *cli.Command {
	return clientCommand("pause", "stop guests' processors and drain their devices", "A paused guest uses no CPU. Pausing twice is no error.", (*guest.Client).Pause)
}

func resumeCommand() *cli.Command {
	return clientCommand("resume", "let paused guests go on", "", (*guest.Client).Resume)
}

func killCommand() *cli.Command {
	return clientCommand("kill", "end guests at once, as by pulling the plug", "What a guest has flushed is safe. Its exit status is 122.", (*guest.Client).Kill)
}

func stopCommand() *cli.Command {
	return &cli.Command{
		Name: "stop", Usage: "ask guests to power off, and kill those that do not in time", ArgsUsage: "NAME...",
		Description: "A guest with the built-in initramfs syncs, unmounts and powers off; others see their power button pressed.",
		Flags:       []cli.Flag{&cli.DurationFlag{Name: "timeout", Aliases: []string{"t"}, Value: 10 * time.Second, Usage: "`DURATION` to wait before the kill, 0s to 1h"}},
		Action: func(c *cli.Context) error {
			timeout := c.Duration("timeout")
			if timeout < 0 || timeout > time.Hour {
				return fmt.Errorf("--timeout %s: from 0s to 1h", timeout)
			}
			return eachGuest(c, func(store *guest.Store, n string) error {
				cl, err := live(store, n)
				if err != nil {
					return err
				}
				r, err := cl.Stop(context.Background(), timeout)
				if err != nil {
					return err
				}
				if r.Forced {
					fmt.Fprintf(os.Stderr, "peervisor: guest %s did not power off within %s and was killed\n", n, timeout)
				}
				return store.WaitGone(n)
			})
		},
	}
}

func waitCommand() *cli.Command {
	return &cli.Command{
		Name: "wait", Usage: "wait until guests have ended, and print their exit statuses", ArgsUsage: "NAME...",
		Description: "The program's own exit status is 0 if all could be waited for.",
		Flags:       []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			ns, err := names(c)
			if err != nil {
				return err
			}
			store, err := guest.DefaultStore()
			if err != nil {
				return err
			}
			var errs []error
			exits := map[string]*guest.Exit{}
			for _, n := range ns {
				if _, err := store.Get(n); err != nil {
					errs = append(errs, err)
					continue
				}
				if err := store.WaitGone(n); err != nil {
					errs = append(errs, err)
					continue
				}
				g, err := store.Get(n)
				if errors.Is(err, guest.ErrNoGuest) {
					err = fmt.Errorf("guest %s ended and was removed (--rm), with its exit status", n)
				}
				if err != nil {
					errs = append(errs, err)
					continue
				}
				exits[n] = g.State.Exit
				if !c.Bool("json") && g.State.Exit != nil {
					fmt.Println(g.State.Exit.Code)
				}
			}
			if c.Bool("json") {
				errs = append(errs, printJSON(exits))
			}
			return errors.Join(errs...)
		},
	}
}

func rmCommand() *cli.Command {
	return &cli.Command{
		Name: "rm", Usage: "remove ended guests: their state and logs, not their disks", ArgsUsage: "NAME...",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "kill those that run; a NAME that does not exist is no error"}},
		Action: func(c *cli.Context) error {
			force := c.Bool("force")
			return eachGuest(c, func(store *guest.Store, n string) error {
				g, err := store.Get(n)
				if force && errors.Is(err, guest.ErrNoGuest) {
					return nil
				}
				if err != nil {
					return err
				}
				if force && g.State.Status.Live() {
					ctx, cancel := apiContext()
					defer cancel()
					if err := store.Client(n).Kill(ctx); err != nil && !errors.Is(err, guest.ErrNotRunning) {
						return err
					}
					if err := store.WaitGone(n); err != nil {
						return err
					}
				}
				err = store.RemoveEnded(n)
				if force && errors.Is(err, guest.ErrNoGuest) { // run --rm was quicker
					return nil
				}
				return err
			})
		},
	}
}

func consoleCommand() *cli.Command {
	return &cli.Command{
		Name: "console", Usage: "attach this terminal to a guest's command or console", ArgsUsage: "NAME",
		Description: "Ctrl-a d detaches, Ctrl-a x ends the guest, Ctrl-a h helps. Input that is not a terminal is sent as it is;\n" +
			"its end does not end the guest's input. Exit status: the guest's if it ends meanwhile, 0 after detaching.",
		Action: func(c *cli.Context) error {
			name, err := oneName(c)
			if err != nil {
				return err
			}
			store, err := guest.DefaultStore()
			if err != nil {
				return err
			}
			cl, err := live(store, name)
			if err != nil {
				return err
			}
			att, err := cl.Attach(context.Background(), false)
			if err != nil {
				return err
			}
			if term.IsTerminal(0) {
				fmt.Fprintf(os.Stderr, "peervisor: attached to %s; Ctrl-a h helps\n", name)
			}
			exit, err := session(store, name, att, false)
			if err != nil || exit == nil {
				return err
			}
			return exitStatus(name, exit)
		},
	}
}
