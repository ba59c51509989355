package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"
)

// Table is the outcomes' figures in Markdown: a line for ours, then one for each
// other contender with the ratio ours/theirs. The reference's line is marked.
func Table(outcomes []Outcome) string {
	var b strings.Builder
	b.WriteString("| figure | who | median | spread | ours / theirs | spread | goal | |\n|---|---|---:|---|---:|---|---|---|\n")
	for _, o := range outcomes {
		for _, f := range o.Figures {
			writeFigure(&b, o, f)
		}
	}
	return b.String()
}

func writeFigure(b *strings.Builder, o Outcome, f Figure) {
	ref := o.Reference(f)
	title := f.Title + ", " + f.Unit
	for i, c := range o.Contenders {
		s := o.Of(i, f.Metric)
		name := c.Name
		if i == ref && o.references() > 1 {
			name += " (reference)"
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s – %s |", title, name,
			number(s.Median()/f.scale()), number(s.Min()/f.scale()), number(s.Max()/f.scale()))
		title = ""
		if i == 0 {
			fmt.Fprintf(b, " | | %s | %s |\n", f.goal(), [...]string{"", "reached", "**not reached**"}[o.Judge(f)])
			continue
		}
		r := o.Ratios(i, f.Metric)
		fmt.Fprintf(b, " %.2f | %.2f – %.2f | | |\n", r.Median(), r.Min(), r.Max())
	}
}

// references is how many there are to choose from.
func (o Outcome) references() (n int) {
	for _, c := range o.Contenders[1:] {
		if !c.Own {
			n++
		}
	}
	return n
}

func (f Figure) goal() string {
	sign := "≥"
	if f.SmallerIsBetter {
		sign = "≤"
	}
	var goals []string
	if f.Goal != 0 {
		goals = append(goals, fmt.Sprintf("ratio %s %.3g", sign, f.Goal))
	}
	if f.GoalAbsolute != 0 {
		goals = append(goals, fmt.Sprintf("%s %.3g %s", sign, f.GoalAbsolute, f.Unit))
	}
	return strings.Join(goals, ", ")
}

// number prints three significant digits, and integers from 100 on.
func number(v float64) string {
	if math.Abs(v) >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// WriteSection puts text between the markers of the section id in the file at
// path, and appends the section, or makes the file, where it is not there. The
// rest of the file is left alone.
func WriteSection(path, id, text string) error {
	begin, end := "<!-- begin "+id+" -->\n", "<!-- end "+id+" -->\n"
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write section %s: %w", id, err)
	}
	doc, section := string(old), begin+strings.TrimRight(text, "\n")+"\n"+end
	i, j := strings.Index(doc, begin), strings.Index(doc, end)
	switch {
	case i >= 0 && j > i:
		doc = doc[:i] + section + doc[j+len(end):]
	case i >= 0 || j >= 0:
		return fmt.Errorf("write section %s: %s has one of its markers without the other", id, path)
	case doc == "":
		doc = section
	default:
		doc = strings.TrimRight(doc, "\n") + "\n\n" + section
	}
	if err := os.WriteFile(path, []byte(doc), 0o644); err != nil {
		return fmt.Errorf("write section %s: %w", id, err)
	}
	return nil
}
