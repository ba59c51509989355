package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/peervisor/peervisor/guest"
	"github.com/peervisor/peervisor/kernel"
	"github.com/peervisor/peervisor/kvm/probe"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "say what this machine can do, what that means and what to do about it",
		Description: "Exit status 0 if guests with an ordinary kernel can run here, else 1.",
		Flags: []cli.Flag{
			jsonFlag(),
			&cli.BoolFlag{Name: "linux", Usage: "only whether an ordinary kernel can run: silent and 0 if so, else the reason on standard output and 1"},
		},
		Action: doctorAction,
	}
}

func doctorAction(c *cli.Context) error {
	if c.Bool("linux") {
		ok, why, err := probe.CanRunLinux()
		if err != nil {
			why = err.Error()
		}
		if !ok {
			fmt.Println(why)
			return &exitError{code: failed}
		}
		return nil
	}
	findings := append(probe.Examine(), hostFindings()...)
	good := true
	for _, f := range findings {
		good = good && (f.OK || !f.Needed)
	}
	if c.Bool("json") {
		if err := printJSON(findings); err != nil {
			return err
		}
	} else {
		printFindings(findings)
	}
	if !good {
		return &exitError{code: failed}
	}
	return nil
}

func printFindings(findings []probe.Finding) {
	colour := term.IsTerminal(1) && os.Getenv("NO_COLOR") == ""
	paint := func(code, s string) string {
		if colour {
			return "\x1b[" + code + "m" + s + "\x1b[0m"
		}
		return s
	}
	for _, f := range findings {
		mark := paint("32", "ok      ")
		switch {
		case !f.OK && f.Needed:
			mark = paint("31", "MISSING ")
		case !f.OK:
			mark = paint("33", "no      ")
		}
		fmt.Printf("%s %s\n", mark, f.What)
		if f.Meaning != "" {
			fmt.Printf("         %s\n", f.Meaning)
		}
		if !f.OK && f.WhatToDo != "" {
			fmt.Printf("         → %s\n", f.WhatToDo)
		}
	}
}

// hostFindings are about what surrounds KVM.
func hostFindings() []probe.Finding {
	var out []probe.Finding
	_, err := os.Stat("/dev/net/tun")
	out = append(out, probe.Finding{ID: "tun", OK: err == nil, What: "taps (/dev/net/tun)",
		Meaning: "--net tap= needs it; the user network does not", WhatToDo: "modprobe tun"})
	_, err = exec.LookPath("qemu-system-x86_64")
	out = append(out, probe.Finding{ID: "lab", OK: err == nil, What: "QEMU, for the lab",
		Meaning: "`peervisor lab` emulates a host with hardware-style KVM", WhatToDo: "apt-get install qemu-system-x86"})
	cache, err := guest.DefaultCacheDir()
	if err == nil {
		_, err = kernel.Lookup(cache, "")
	}
	f := probe.Finding{ID: "kernel", OK: err == nil, What: "a guest kernel in the cache " + cache,
		Meaning: "`peervisor run` without --kernel boots it", WhatToDo: "peervisor kernel fetch (run does it by itself)"}
	if err != nil && !errors.Is(err, kernel.ErrNotFetched) {
		f.Meaning = err.Error()
	}
	return append(out, f)
}

// checkKVM refuses early what would die in the guest's first instructions: an
// ordinary kernel on a KVM that cannot run one.
func checkKVM(cfg *guest.Config) error {
	if cfg.Kernel != "" && !isDebKernel(cfg.Kernel) {
		return nil // the user's own: it may be made for this machine
	}
	ok, why, err := probe.CanRunLinux()
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("this machine's KVM cannot run an ordinary kernel: %s; run it on an emulated host: peervisor lab exec -- peervisor run …", why)
	}
	return nil
}

func isDebKernel(s string) bool { return len(s) > 4 && s[:4] == "deb:" }
