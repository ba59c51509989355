package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/term"
)

// progress shows the steps of long work: one line that is rewritten on a
// terminal, nothing elsewhere but steps that take long enough to wonder about.
type progress struct {
	f     *os.File
	tty   bool
	width int
	start time.Time
	last  string
}

func newProgress(f *os.File) *progress {
	p := &progress{f: f, tty: term.IsTerminal(int(f.Fd())), start: time.Now(), width: 80}
	if w, _, err := term.GetSize(int(f.Fd())); err == nil {
		p.width = w
	}
	return p
}

// step shows what happens now.
func (p *progress) step(s string) {
	if s == p.last {
		return
	}
	p.last = s
	if !p.tty {
		fmt.Fprintln(p.f, "peervisor: "+s)
		return
	}
	line := fmt.Sprintf("%3.0fs  %s", time.Since(p.start).Seconds(), s)
	if len(line) >= p.width {
		line = line[:p.width-1]
	}
	fmt.Fprint(p.f, "\r\x1b[K"+line)
}

// end removes the line.
func (p *progress) end() {
	if p.tty && p.last != "" {
		fmt.Fprint(p.f, "\r\x1b[K")
	}
}
