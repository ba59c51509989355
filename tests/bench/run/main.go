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

	"github.com/peervisor/peervisor/guest"
	"github.com/peervisor/peervisor/kernel/bare"
	"github.com/peervisor/peervisor/lab"
	"github.com/peervisor/peervisor/tests/bench"
)

type options struct {
	rounds, seconds             int
	only, out, ours, bin, cache string
	quiet                       bool
}

// limit bounds the whole run.
const limit = 30 * time.Minute

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of each experiment")
	flag.IntVar(&o.seconds, "seconds", 1, "length of each disk run")
	flag.StringVar(&o.only, "only", "", "run only experiments whose names begin with one of these, separated by commas: entry, memory, 4 KiB, 256 KiB, lab entry, lab boot, lab default, lab net; "+
		"bare and lab name all of a kind. The section of docs/bench.md then has only these")
	flag.StringVar(&o.out, "out", "docs/bench.md", "file whose sections are replaced; - prints them only")
	flag.StringVar(&o.ours, "ours", "", "command to measure instead of tests/bench/machine: words with {kernel} {append} {memory} {cpus} {disk} {queues}")
	flag.StringVar(&o.bin, "bin", "bin/peervisor", "the peervisor binary")
	flag.BoolVar(&o.quiet, "quiet", false, "no line for each run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return errors.New("qemu-system-x86_64 is not installed (Debian: apt-get install qemu-system-x86)")
	}
	var err error
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	if _, err := os.Stat(o.bin); err != nil {
		return fmt.Errorf("%w; run `make build` first", err)
	}
	if o.cache, err = guest.DefaultCacheDir(); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "peervisor-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	// The guests of this run are not among the user's.
	if err := os.Setenv("PEERVISOR_HOME", filepath.Join(tmp, "home")); err != nil {
		return err
	}
	b := bencher{options: o, tmp: tmp, progress: func(line string) { fmt.Fprintln(os.Stderr, line) }}
	if o.quiet {
		b.progress = func(string) {}
	}
	if b.wants("bare", "entry", "memory", "4 KiB", "256 KiB") {
		if err := b.bare(ctx); err != nil {
			return err
		}
	}
	if !b.wants("lab", "lab entry", "lab boot", "lab default", "lab net") {
		return nil
	}
	err = b.lab(ctx)
	if errors.Is(err, lab.ErrUnavailable) {
		fmt.Fprintln(os.Stderr, "bench: left out:", err)
		return nil
	}
	return err
}

// bencher runs experiments and writes sections.
type bencher struct {
	options
	tmp      string
	progress func(string)
}

// wants says whether one of the kinds or names was asked for.
func (b *bencher) wants(names ...string) bool {
	for _, only := range strings.Split(b.only, ",") {
		for _, name := range names {
			if strings.HasPrefix(name, only) || (only == "bare" && !strings.HasPrefix(name, "lab")) {
				return true
			}
		}
	}
	return false
}

// measure runs an experiment if it is wanted; ok says whether it was.
func (b *bencher) measure(ctx context.Context, e bench.Experiment) (o bench.Outcome, ok bool, err error) {
	if !b.wants(e.Name) {
		return o, false, nil
	}
	o, err = bench.Measure(ctx, e, b.rounds, b.progress)
	return o, err == nil, err
}

func (b *bencher) write(id, text string) error {
	fmt.Print(text)
	if b.out == "-" {
		return nil
	}
	return bench.WriteSection(b.out, id, text)
}

// bare measures with the bare guest, here.
func (b *bencher) bare(ctx context.Context) error {
	s, err := b.suite(ctx)
	if err != nil {
		return err
	}
	parts := ""
	s.Parts = func(p string) { parts = p }
	load := loadAverage()
	var outcomes []bench.Outcome
	for _, e := range append([]bench.Experiment{s.Entry(), s.Memory()}, s.Disks()...) {
		o, ok, err := b.measure(ctx, e)
		if err != nil {
			return err
		}
		if ok {
			outcomes = append(outcomes, o)
		}
	}
	return b.write("bare guest", bareSection(b.options, outcomes, parts, load+" before, "+loadAverage()+" after"))
}

// suite builds what is measured: the guest, our program, a disk.
func (b *bencher) suite(ctx context.Context) (bench.Suite, error) {
	kernel, err := bare.Build(b.tmp)
	if err != nil {
		return bench.Suite{}, err
	}
	disk := filepath.Join(b.tmp, "disk.img")
	if err := fill(disk, 256<<20); err != nil {
		return bench.Suite{}, err
	}
	s := bench.Suite{Kernel: kernel, Disk: disk, Seconds: b.seconds, Binary: bench.Named{Name: "peervisor run", Launch: bench.Run(b.bin)}}
	if b.ours != "" {
		s.Ours = []bench.Named{{Name: "peervisor", Launch: bench.Template(strings.Fields(b.ours))}}
		return s, nil
	}
	machine := filepath.Join(b.tmp, "machine")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", machine, "./tests/bench/machine")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return s, fmt.Errorf("build tests/bench/machine: %w\n%s", err, text)
	}
	s.Ours = []bench.Named{{Name: "peervisor, package vmm alone", Launch: bench.Machine(machine)}}
	return s, nil
}

// lab measures with Debian's kernel on a lab host.
func (b *bencher) lab(ctx context.Context) (err error) {
	l, err := bench.StartLab(ctx, bench.LabConfig{CacheDir: b.cache, Binary: b.bin, Temp: b.tmp, Progress: b.progress})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	load := loadAverage()
	var boots, nets []bench.Outcome
	if o, ok, err := b.measure(ctx, l.Entry()); err != nil {
		return err
	} else if ok {
		boots = append(boots, o)
	}
	if o, ok, err := b.measure(ctx, l.Boot()); err != nil {
		return err
	} else if ok {
		qemu, gokvm := bench.BootFigures()
		boots = append(boots, o.Among(qemu, func(name string) bool { return name != bench.NameGokvm }),
			o.Among(gokvm, func(name string) bool { return name == bench.NameGokvm }))
	}
	if o, ok, err := b.measure(ctx, l.Default()); err != nil {
		return err
	} else if ok {
		boots = append(boots, o)
	}
	if o, ok, err := b.measure(ctx, l.Net()); err != nil {
		return err
	} else if ok {
		nets = append(nets, o)
	}
	load += " before, " + loadAverage() + " after"
	if len(boots) > 0 {
		if err := b.write("lab boot", bootSection(b.options, boots, load)); err != nil {
			return err
		}
	}
	if len(nets) > 0 {
		return b.write("lab net", netSection(nets, load))
	}
	return nil
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
