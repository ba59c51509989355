package bench

import (
	"context"
	"fmt"
	"time"
)

// Bench parameters of the bare guest's experiments.
const (
	entryRounds = 20
	runLimit    = 60 * time.Second // of one process
	residentMiB = 128
	settle      = 1500 * time.Millisecond // of I/O before memory is counted
)

// Suite is what the experiments with the bare guest need.
type Suite struct {
	Kernel  string // the bare guest
	Disk    string // a raw file, cached, without holes
	Seconds int    // of each disk run
	// Binary is the program that users run; Ours is the machine alone.
	Binary Named
	Ours   []Named
	// Parts, if set, is told of what our memory outside the guest is made of.
	Parts func(string)
}

// Named is a Launcher with the name that tables show.
type Named struct {
	Name   string
	Launch Launcher
}

// qemus are the ways to run QEMU's disk; the best one counts.
func qemus() []Named {
	return []Named{
		{"QEMU microvm, iothread, aio=threads", QEMU("threads", true)},
		{"QEMU microvm, iothread, aio=io_uring", QEMU("io_uring", true)},
	}
}

// withBinary is the binary, what else is ours, and the others.
func (s Suite) withBinary(others ...Named) []Named {
	list := s.Ours
	if s.Binary.Launch != nil {
		list = append([]Named{s.Binary}, list...)
	}
	return append(append([]Named(nil), list...), others...)
}

// own says whether number i of withBinary is ours, but not the first.
func (s Suite) own(i int) bool {
	n := len(s.Ours)
	if s.Binary.Launch != nil {
		n++
	}
	return i > 0 && i < n
}

// Entry measures from exec to the guest's first instruction with an effect.
func (s Suite) Entry() Experiment {
	e := Experiment{
		Name: "entry", Rounds: entryRounds,
		Figures: []Figure{{Metric: "entry_s", Title: "exec to guest entry", Unit: "ms", Scale: 1e-3, SmallerIsBetter: true, Goal: 0.5}},
	}
	for i, l := range s.withBinary(Named{"QEMU microvm", QEMU("", false)}) {
		e.Contenders = append(e.Contenders, Contender{Name: l.Name, Own: s.own(i), Run: func(ctx context.Context) (Metrics, error) {
			ctx, cancel := context.WithTimeout(ctx, runLimit)
			defer cancel()
			p, err := Start(ctx, l.Launch(Guest{Kernel: s.Kernel, Append: "bare.test=hello tsc_khz=1000000", MemMiB: residentMiB}))
			if err != nil {
				return nil, err
			}
			if _, _, err := p.Result(); err != nil {
				return nil, err
			}
			return Metrics{"entry_s": p.Entry.Seconds()}, nil
		}})
	}
	return e
}

// Memory measures what the VMM holds outside the guest's RAM while the guest
// uses its disk.
func (s Suite) Memory() Experiment {
	e := Experiment{
		Name: "memory",
		Figures: []Figure{{Metric: "outside", Title: fmt.Sprintf("resident outside guest RAM, %d MiB guest", residentMiB), Unit: "MiB",
			Scale: 1 << 20, SmallerIsBetter: true, GoalAbsolute: 12}},
	}
	for i, l := range s.withBinary(qemus()[0]) {
		e.Contenders = append(e.Contenders, Contender{Name: l.Name, Own: s.own(i), Run: func(ctx context.Context) (Metrics, error) {
			return s.resident(ctx, l, i == 0)
		}})
	}
	return e
}

func (s Suite) resident(ctx context.Context, l Named, tell bool) (Metrics, error) {
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	p, err := Start(ctx, l.Launch(Guest{Kernel: s.Kernel, MemMiB: residentMiB, Disk: s.Disk,
		Append: "bare.test=blk op=randread depth=32 wait=irq seconds=60"}))
	if err != nil {
		return nil, err
	}
	defer p.Kill()
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r, err := ReadResident(p.PID(), residentMiB<<20)
	if err != nil {
		return nil, err
	}
	if tell && s.Parts != nil {
		s.Parts(r.Largest(8))
	}
	return Metrics{"outside": float64(r.OutsideBytes)}, nil
}

// workload measures one workload of the guest's blk test.
func (s Suite) workload(title, keys, wait string, figures ...Figure) Experiment {
	e := Experiment{Name: title + " " + wait, Figures: figures}
	for _, l := range append(append([]Named(nil), s.Ours...), qemus()...) {
		e.Contenders = append(e.Contenders, Contender{Name: l.Name, Run: func(ctx context.Context) (Metrics, error) {
			ctx, cancel := context.WithTimeout(ctx, runLimit)
			defer cancel()
			p, err := Start(ctx, l.Launch(Guest{Kernel: s.Kernel, MemMiB: residentMiB, Disk: s.Disk,
				Append: fmt.Sprintf("bare.test=blk %s wait=%s seconds=%d", keys, wait, s.Seconds)}))
			if err != nil {
				return nil, err
			}
			r, cpu, err := p.Result()
			if err != nil {
				return nil, err
			}
			return Metrics{
				"ops": r.Rate(), "bytes": r.BytesPerSecond(), "cpu_s": cpu.Seconds() / float64(r.Ops),
				"p50_s": float64(r.P50NS) / 1e9, "p99_s": float64(r.P99NS) / 1e9,
			}, nil
		}})
	}
	return e
}

// Disks are the disk workloads. A guest that polls shows the bare path and keeps
// a processor busy; one that sleeps for interrupts is what kernels do.
func (s Suite) Disks() []Experiment {
	var out []Experiment
	for _, wait := range []string{"poll", "irq"} {
		how := map[string]string{"poll": "guest polls", "irq": "guest sleeps"}[wait]
		rate := func(what string) Figure {
			return Figure{Metric: "ops", Title: what + ", " + how, Unit: "1000/s", Scale: 1e3, Goal: 1}
		}
		cpu := func(what string) Figure {
			return Figure{Metric: "cpu_s", Title: what + ", " + how + ": CPU an operation", Unit: "us", Scale: 1e-6, SmallerIsBetter: true}
		}
		tail := Figure{Metric: "p99_s", Title: "4 KiB random reads, depth 1, " + how + ": 99 % within", Unit: "us", Scale: 1e-6, SmallerIsBetter: true}
		one, deep, seq := "4 KiB random reads, depth 1", "4 KiB random reads, depth 32", "256 KiB sequential reads, depth 16"
		figures := [][]Figure{{rate(one), tail}, {rate(deep)}, {{Metric: "bytes", Title: seq + ", " + how, Unit: "GB/s", Scale: 1e9, Goal: 1}}}
		if wait == "irq" {
			figures[0] = append(figures[0], cpu(one))
			figures[1] = append(figures[1], cpu(deep))
			figures[2] = append(figures[2], cpu(seq))
		}
		out = append(out,
			s.workload(one, "op=randread depth=1 size=4096", wait, figures[0]...),
			s.workload(deep, "op=randread depth=32 size=4096", wait, figures[1]...),
			s.workload(seq, "op=seqread depth=16 size=256K", wait, figures[2]...))
	}
	return out
}
