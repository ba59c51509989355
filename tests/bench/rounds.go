package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Metrics are the figures of one run, by name.
type Metrics map[string]float64

// Contender is one of those that an Experiment compares.
type Contender struct {
	// Name heads its lines in the table.
	Name string
	// Run does the work once. It ends what it started before it returns, and
	// bounds itself in time.
	Run func(ctx context.Context) (Metrics, error)
	// Own is another of ours, after the first: it is shown and never a reference.
	Own bool
}

// Figure is one line of a table: a metric of an Experiment's runs.
type Figure struct {
	// Metric is its key in Metrics.
	Metric string
	// Title and Unit are for the reader. The unit is that of the metric divided
	// by Scale; 0 means 1.
	Title, Unit string
	Scale       float64
	// SmallerIsBetter is false for rates and true for times and sizes.
	SmallerIsBetter bool
	// Goal is what the ratio ours/reference should be at least, or at most where
	// SmallerIsBetter. GoalAbsolute is likewise for our own figure, in Unit.
	// 0: none.
	Goal, GoalAbsolute float64
}

// Experiment is one kind of run.
type Experiment struct {
	// Name is for messages.
	Name string
	// Contenders has ours first. With several others, the reference of a figure is
	// the one whose median is best.
	Contenders []Contender
	Figures    []Figure
	// Rounds is how often each contender runs; 0 means the caller's number.
	Rounds int
}

// Outcome has the samples of an Experiment: by contender, then by round.
type Outcome struct {
	Experiment
	Samples [][]Metrics
}

// ErrNoContender is returned for an Experiment without one.
var ErrNoContender = errors.New("no contender")

// Measure runs the rounds, contenders in turn. The order within a round is
// reversed in every second one, so that nobody always runs after the same
// neighbour. progress, which may be nil, is told of every run.
func Measure(ctx context.Context, e Experiment, rounds int, progress func(string)) (Outcome, error) {
	if len(e.Contenders) == 0 {
		return Outcome{}, fmt.Errorf("measure %s: %w", e.Name, ErrNoContender)
	}
	if e.Rounds > 0 {
		rounds = e.Rounds
	}
	o := Outcome{Experiment: e, Samples: make([][]Metrics, len(e.Contenders))}
	for round := range rounds {
		for k := range e.Contenders {
			i := k
			if round%2 == 1 {
				i = len(e.Contenders) - 1 - k
			}
			c := e.Contenders[i]
			m, err := c.Run(ctx)
			if err != nil {
				return o, fmt.Errorf("measure %s: %s, round %d: %w", e.Name, c.Name, round+1, err)
			}
			o.Samples[i] = append(o.Samples[i], m)
			if progress != nil {
				progress(fmt.Sprintf("%s round %d/%d %s %v", e.Name, round+1, rounds, c.Name, m))
			}
		}
	}
	return o, nil
}

// Series are figures of the same thing.
type Series []float64

// Median is the middle value, or the mean of the two in the middle; 0 of none.
func (s Series) Median() float64 {
	if len(s) == 0 {
		return 0
	}
	t := slices.Sorted(slices.Values(s))
	return (t[(len(t)-1)/2] + t[len(t)/2]) / 2
}

// Min and Max are the ends of the spread; 0 of none.
func (s Series) Min() float64 {
	if len(s) == 0 {
		return 0
	}
	return slices.Min(s)
}

// Max is the largest value.
func (s Series) Max() float64 {
	if len(s) == 0 {
		return 0
	}
	return slices.Max(s)
}

// Of returns contender i's samples of a metric, in the order of the rounds.
func (o Outcome) Of(i int, metric string) Series {
	var s Series
	for _, m := range o.Samples[i] {
		s = append(s, m[metric])
	}
	return s
}

// Ratios are ours to contender i's, round by round.
func (o Outcome) Ratios(i int, metric string) Series {
	ours, theirs := o.Of(0, metric), o.Of(i, metric)
	var s Series
	for r := range min(len(ours), len(theirs)) {
		if theirs[r] != 0 {
			s = append(s, ours[r]/theirs[r])
		}
	}
	return s
}

// Among is the outcome with ours and only those others whose names keep returns
// true for, and with other figures: for goals that hold against one of them.
func (o Outcome) Among(figures []Figure, keep func(name string) bool) Outcome {
	out := o
	out.Figures, out.Contenders, out.Samples = figures, nil, nil
	for i, c := range o.Contenders {
		if i == 0 || keep(c.Name) {
			out.Contenders, out.Samples = append(out.Contenders, c), append(out.Samples, o.Samples[i])
		}
	}
	return out
}

// Reference is the contender that is not ours with the best median of f; 0 if
// there is none.
func (o Outcome) Reference(f Figure) int {
	best := 0
	for i := 1; i < len(o.Contenders); i++ {
		if o.Contenders[i].Own {
			continue
		}
		m, b := o.Of(i, f.Metric).Median(), o.Of(best, f.Metric).Median()
		if best == 0 || (f.SmallerIsBetter && m < b) || (!f.SmallerIsBetter && m > b) {
			best = i
		}
	}
	return best
}

// Verdict is whether a figure's goals are met.
type Verdict uint8

// The zero Verdict: the figure has no goal.
const (
	NoGoal Verdict = iota
	Met
	Missed
)

// Judge compares the median ratio to the reference, and our own median, with the goals.
func (o Outcome) Judge(f Figure) Verdict {
	ok := func(value, goal float64) bool {
		if f.SmallerIsBetter {
			return value <= goal
		}
		return value >= goal
	}
	verdict := NoGoal
	note := func(good bool) {
		if !good {
			verdict = Missed
		} else if verdict == NoGoal {
			verdict = Met
		}
	}
	if ref := o.Reference(f); f.Goal != 0 && ref != 0 {
		note(ok(o.Ratios(ref, f.Metric).Median(), f.Goal))
	}
	if f.GoalAbsolute != 0 {
		note(ok(o.Of(0, f.Metric).Median()/f.scale(), f.GoalAbsolute))
	}
	return verdict
}

func (f Figure) scale() float64 {
	if f.Scale == 0 {
		return 1
	}
	return f.Scale
}
