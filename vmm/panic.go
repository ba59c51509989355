package vmm

import (
	"bytes"
	"io"
	"sync"
	"time"

	"github.com/peervisor/peervisor/vmm/chipset"
)

const (
	// panicStart begins the text of Linux's panic() (kernel/panic.c), and panicEnd
	// the last line, which is printed only where the kernel then stops for ever.
	panicStart = "Kernel panic - not syncing"
	panicEnd   = "---[ end Kernel panic - not syncing"
	// orderlyRestart is what the kernel says before a reboot that was asked for, and
	// not before one after a panic: what looked like a panic was somebody's text.
	orderlyRestart = "reboot: Restarting system"

	// panicSilence is how long the port must be silent after panicEnd until the
	// guest counts as halted: whoever prints an old log goes on with a prompt.
	panicSilence = 3 * time.Second

	maxLineBytes   = 512  // of a serial line, the rest is not looked at
	maxDetailBytes = 1024 // of Exit.Detail
)

// panicWatch looks for a kernel panic in what the guest writes to its serial
// port, on its way to out. It is fed by the port's one writer.
type panicWatch struct {
	out   io.Writer
	clock chipset.Clock
	// halted is told once, from the clock's goroutine, when the guest panicked and
	// stays silent.
	halted func()

	mu     sync.Mutex
	line   []byte // the current line, at most maxLineBytes
	text   string // the last panic's, "": none
	timer  chipset.Timer
	closed bool
}

// Write implements io.Writer.
func (w *panicWatch) Write(p []byte) (int, error) {
	w.scan(p)
	return w.out.Write(p)
}

func (w *panicWatch) scan(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(p) > 0 {
		if w.timer != nil {
			w.timer.Stop()
			w.timer = nil
		}
		part, rest, ended := bytes.Cut(p, []byte{'\n'})
		w.line = append(w.line, part[:min(len(part), maxLineBytes-len(w.line))]...)
		p = rest
		if ended {
			w.lineLocked()
			w.line = w.line[:0]
		}
	}
}

func (w *panicWatch) lineLocked() {
	switch i := bytes.Index(w.line, []byte(panicStart)); {
	case i < 0:
		if bytes.Contains(w.line, []byte(orderlyRestart)) {
			w.text = ""
		}
	case bytes.Contains(w.line, []byte(panicEnd)):
		if w.text != "" && !w.closed {
			w.timer = w.clock.AfterFunc(panicSilence, w.silent)
		}
	default:
		w.text = printable(w.line[i:])
	}
}

func (w *panicWatch) silent() {
	w.mu.Lock()
	// A byte that came while this function was on its way has taken the timer.
	tell := w.timer != nil && !w.closed
	w.mu.Unlock()
	if tell {
		w.halted()
	}
}

// found is the text of the last panic, or "".
func (w *panicWatch) found() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text
}

// close stops watching: halted is not called any more.
func (w *panicWatch) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
}

// printable makes one bounded line of what the guest chose.
func printable(b []byte) string {
	b = bytes.TrimRight(b[:min(len(b), maxDetailBytes)], "\r\n ")
	return string(bytes.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7F && r < 0xA0 { // C0, DEL, C1
			return '?'
		}
		return r
	}, bytes.ToValidUTF8(b, []byte("?"))))
}
