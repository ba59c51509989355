// Command peervisor runs, lists and controls guests.
//
// It is the only place that knows of terminals, exit statuses and colours; all
// work is done by packages guest, kernel, lab and vmm.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"
)

// version is set by the linker (Makefile).
var version = "unknown"

// exitError ends the program with a status; msg may be empty.
type exitError struct {
	code int
	msg  string
}

func (e *exitError) Error() string { return e.msg }

// failed is the status of commands other than run; run's own failures are 125.
const failed = 1

func main() {
	// A reader that went away shows as an error of the write; the default for
	// standard output would be to die by SIGPIPE in the middle of a guest.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(run(os.Args, os.Stderr))
}

func run(args []string, stderr io.Writer) int {
	app := newApp()
	err := app.Run(args)
	if err == nil {
		return 0
	}
	var xe *exitError
	if errors.As(err, &xe) {
		if xe.msg != "" {
			fmt.Fprintln(stderr, "peervisor: "+xe.msg)
		}
		return xe.code
	}
	fmt.Fprintln(stderr, "peervisor: "+err.Error())
	if len(args) > 1 && args[1] == "run" {
		return 125
	}
	return failed
}

func newApp() *cli.App {
	app := &cli.App{
		Name:    "peervisor",
		Usage:   "run guests that are not tied to one machine",
		Version: version,
		Description: "peervisor boots unmodified Linux kernels on /dev/kvm and gives them virtio devices.\n" +
			"Each guest is one process; there is no daemon. `peervisor COMMAND --help` says all about a command.\n\n" +
			"Environment: PEERVISOR_HOME (guests' state), PEERVISOR_CACHE (kernels and images).",
		Commands: []*cli.Command{
			runCommand(), psCommand(), inspectCommand(), logsCommand(), consoleCommand(),
			pauseCommand(), resumeCommand(), stopCommand(), killCommand(), waitCommand(), rmCommand(),
			kernelCommand(), doctorCommand(), labCommand(),
			completionCommand(), manCommand(), guestProcessCommand(),
		},
		EnableBashCompletion: true,
		HideHelpCommand:      true,
		// A SPEC has commas of its own.
		DisableSliceFlagSeparator: true,
		Suggest:                   true,
		ExitErrHandler:            func(*cli.Context, error) {}, // run decides
		OnUsageError:              usageError,
		CommandNotFound: func(c *cli.Context, name string) {
			fmt.Fprintf(os.Stderr, "peervisor: there is no command %q; `peervisor --help` lists them\n", name)
			os.Exit(failed)
		},
	}
	complete(app.Commands)
	return app
}

// complete gives every command what all have.
func complete(cmds []*cli.Command) {
	for _, c := range cmds {
		c.OnUsageError = usageError
		c.UseShortOptionHandling = true // ps -aq
		complete(c.Subcommands)
	}
}

// usageError makes one line of a wrong flag.
func usageError(c *cli.Context, err error, _ bool) error {
	name := "peervisor"
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != "peervisor" {
		name += " " + c.Command.Name
	}
	code := failed
	if c.Command != nil && (c.Command.Name == "run" || c.Command.Name == "exec" || c.Command.Name == "shell") {
		code = 125
	}
	return &exitError{code, fmt.Sprintf("%s (see `%s --help`)", err, name)}
}

// names returns the NAME arguments; at least one.
func names(c *cli.Context) ([]string, error) {
	if c.NArg() == 0 {
		return nil, &exitError{failed, fmt.Sprintf("%s needs the NAME of a guest; `peervisor ps -a` lists them", c.Command.Name)}
	}
	return c.Args().Slice(), nil
}

// oneName returns the only NAME argument.
func oneName(c *cli.Context) (string, error) {
	ns, err := names(c)
	if err == nil && len(ns) > 1 {
		err = &exitError{failed, fmt.Sprintf("%s takes one NAME, not %d", c.Command.Name, len(ns))}
	}
	if err != nil {
		return "", err
	}
	return ns[0], nil
}

func jsonFlag() *cli.BoolFlag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON"}
}
