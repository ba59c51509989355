// Command run measures and writes docs/bench.md; `make bench` calls it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kernel/bare"
	"github.com/peervisor/peervisor/tests/bench"
)

type options struct {
	rounds, seconds int
	only, out, ours string
	quiet           bool
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of each experiment")
	flag.IntVar(&o.seconds, "seconds", 2, "length of each disk run")
	flag.StringVar(&o.only, "only", "", "run only experiments whose name contains this")
	flag.StringVar(&o.out, "out", "docs/bench.md", "file whose section is replaced; - prints it")
	flag.StringVar(&o.ours, "ours", "", "command to measure instead of tests/bench/machine: words with {kernel} {append} {memory} {cpus} {disk} {queues}")
	flag.BoolVar(&o.quiet, "quiet", false, "no line for each run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return errors.New("qemu-system-x86_64 is not installed (Debian: apt-get install qemu-system-x86)")
	}
	tmp, err := os.MkdirTemp("", "peervisor-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	s, err := suite(ctx, o, tmp)
	if err != nil {
		return err
	}
	parts := ""
	s.Parts = func(p string) { parts = p }
	progress := func(line string) { fmt.Fprintln(os.Stderr, line) }
	if o.quiet {
		progress = nil
	}
	load := loadAverage()
	var outcomes []bench.Outcome
	for _, e := range append([]bench.Experiment{s.Entry(), s.Memory()}, s.Disks()...) {
		if !strings.Contains(e.Name, o.only) {
			continue
		}
		oc, err := bench.Measure(ctx, e, o.rounds, progress)
		if err != nil {
			return err
		}
		outcomes = append(outcomes, oc)
	}
	text := section(o, outcomes, parts, load+" before, "+loadAverage()+" after")
	fmt.Print(text)
	if o.out == "-" {
		return nil
	}
	return bench.WriteSection(o.out, "bare guest", text)
}

// suite builds what is measured: the guest, our program, a disk.
func suite(ctx context.Context, o options, tmp string) (bench.Suite, error) {
	kernel, err := bare.Build(tmp)
	if err != nil {
		return bench.Suite{}, err
	}
	disk := filepath.Join(tmp, "disk.img")
	if err := fill(disk, 256<<20); err != nil {
		return bench.Suite{}, err
	}
	s := bench.Suite{Kernel: kernel, Disk: disk, Seconds: o.seconds}
	if o.ours != "" {
		s.Ours = []bench.Named{{Name: "peervisor", Launch: bench.Template(strings.Fields(o.ours))}}
		return s, nil
	}
	machine := filepath.Join(tmp, "machine")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", machine, "./tests/bench/machine")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return s, fmt.Errorf("build tests/bench/machine: %w\n%s", err, text)
	}
	s.Ours = []bench.Named{{Name: "peervisor", Launch: bench.Machine(machine)}}
	return s, nil
}

// fill makes a file of random bytes, which stay in the page cache.
func fill(path string, bytes int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var seed [32]byte
	_, err = io.CopyN(f, rand.NewChaCha8(seed), bytes)
	return err
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(b), " ")
	return one
}

func section(o options, outcomes []bench.Outcome, parts, load string) string {
	var b strings.Builder
	b.WriteString("## The bare guest on /dev/kvm\n\n")
	fmt.Fprintf(&b, "Repeat: `make bench` (or `go run ./tests/bench/run -rounds %d -seconds %d`). Both VMMs boot the same file, which\n"+
		"`kernel/bare` builds, with the same command line; disks are the same cached 256 MiB file over virtio-mmio. Entry is the time from\n"+
		"before fork and exec to the arrival of the byte that the guest's first instructions write to COM1. Memory is the resident pages of\n"+
		"every mapping but the guest's RAM. Rounds are interleaved; of several references the best one counts.\n\n", o.rounds, o.seconds)
	fmt.Fprintf(&b, "Measured %s on %s; %d rounds (entry 20), load average %s.\n\n", time.Now().UTC().Format("2006-01-02"), host(), o.rounds, load)
	b.WriteString(bench.Table(outcomes))
	if parts != "" {
		fmt.Fprintf(&b, "\nOur resident memory outside the guest's RAM, in the last round: %s.\n", parts)
	}
	return b.String()
}

func host() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "an unknown kernel"
	}
	n := 0
	if entries, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*"); err == nil {
		n = len(entries)
	}
	module := "kvm_intel or kvm_amd"
	if _, err := os.Stat("/sys/module/kvm_pvm"); err == nil {
		module = "kvm_pvm, which emulates ring 0"
	}
	return fmt.Sprintf("Linux %s, %d processors, %s", unix.ByteSliceToString(u.Release[:]), n, module)
}
