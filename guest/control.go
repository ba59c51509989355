package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/peervisor/peervisor/vmm"
)

// Pause stops the vCPUs and drains the devices. Pausing a paused guest does nothing.
func (g *Guest) Pause(ctx context.Context) error {
	m, err := g.inStatus(StatusRunning, StatusPaused)
	if err != nil {
		return err
	}
	if m == nil {
		return nil
	}
	if err := m.Pause(ctx); err != nil {
		return fmt.Errorf("pause guest %s: %w", g.cfg.Name, err)
	}
	g.setStatus(StatusPaused)
	return g.saveState()
}

// Resume lets a paused guest go on.
func (g *Guest) Resume() error {
	m, err := g.inStatus(StatusPaused, StatusRunning)
	if err != nil {
		return err
	}
	if m == nil {
		return nil
	}
	if err := m.Resume(); err != nil {
		return fmt.Errorf("resume guest %s: %w", g.cfg.Name, err)
	}
	g.setStatus(StatusRunning)
	return g.saveState()
}

// inStatus returns the machine if the status is want, nil if it is already, else an error.
func (g *Guest) inStatus(want, already Status) (*vmm.Machine, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch g.status {
	case want:
		return g.machine, nil
	case already:
		return nil, nil
	case StatusExited:
		return nil, fmt.Errorf("guest %s has ended: %w", g.cfg.Name, ErrNotRunning)
	}
	return nil, fmt.Errorf("guest %s is %s: %w", g.cfg.Name, g.status, errWrongState)
}

func (g *Guest) setStatus(s Status) {
	g.mu.Lock()
	if g.status != StatusExited {
		g.status = s
	}
	g.mu.Unlock()
}

// Kill ends the guest at once; why is kept as the reason. It does not wait.
func (g *Guest) Kill(why string) {
	g.mu.Lock()
	m := g.machine
	first := g.killed == "" && g.exit == nil
	if first {
		g.killed = why
	}
	g.mu.Unlock()
	if !first || m == nil {
		return
	}
	g.cancel(ErrNotRunning)
	go func() { _ = m.Close() }() // Close waits; run, which waits for the machine's end, closes it again
}

// Stop asks the guest to power off: by its agent, else by the power button. After
// the timeout it is killed. It returns when the guest has ended.
func (g *Guest) Stop(timeout time.Duration) (forced bool, err error) {
	if err := g.Resume(); err != nil {
		return false, err
	}
	g.mu.Lock()
	m, ag := g.machine, g.agent
	g.stopping = true
	if g.exit == nil {
		g.status = StatusStopping
	}
	g.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if ag != nil {
		err = ag.PowerOff(ctx)
	} else {
		err = m.Stop(ctx)
	}
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		g.log.Warn("ask guest to power off", "error", err)
	}
	if err == nil {
		if _, err = g.Wait(ctx); err == nil {
			return false, nil
		}
	}
	g.Kill(fmt.Sprintf("did not power off within %s", timeout))
	_, err = g.Wait(context.Background())
	return true, err
}

func (g *Guest) resize(ws Winsize) {
	g.mu.Lock()
	g.winsize = ws
	p := g.process
	g.mu.Unlock()
	if p != nil {
		_ = p.Resize(uint16(ws.Rows), uint16(ws.Cols))
		return
	}
	g.halves.resize(ws)
}

func (g *Guest) signal(sig int) {
	g.mu.Lock()
	p := g.process
	g.mu.Unlock()
	if p != nil {
		_ = p.Signal(syscall.Signal(sig))
		return
	}
	// Without a command to deliver it to, what would end the command ends the guest.
	switch syscall.Signal(sig) {
	case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT:
		g.Kill(fmt.Sprintf("%s before its command ran", syscall.Signal(sig)))
	}
}

// feedInput carries resize and signal events of the caller's streams, and the
// serial line's input, to the guest. The returned function ends it.
func (g *Guest) feedInput(wg *sync.WaitGroup) func() {
	stop := make(chan struct{})
	if s := g.opts.Streams; s != nil {
		wg.Add(1)
		go func() {
			defer wg.Done()
			resize, signal := s.Resize, s.Signal
			for {
				select {
				case ws, ok := <-resize:
					if !ok {
						resize = nil
						continue
					}
					g.resize(ws)
				case sig, ok := <-signal:
					if !ok {
						signal = nil
						continue
					}
					g.signal(sig)
				case <-stop:
					return
				}
			}
		}()
	}
	if in := g.halves.serial.in; in != nil {
		// Not joined: a read from the caller's terminal cannot be broken off. It
		// holds nothing but its buffer, and ends with the next byte.
		go g.feedSerial(in, stop)
	}
	return func() { close(stop) }
}

func (g *Guest) feedSerial(in io.Reader, stop <-chan struct{}) {
	buf := make([]byte, 4096)
	for {
		n, err := in.Read(buf)
		select {
		case <-stop:
			return
		default:
		}
		g.mu.Lock()
		m := g.machine
		g.mu.Unlock()
		if n > 0 {
			typeSerial(g.ctx, m, buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// typeSerial gives p to the serial line, waiting for room. When the machine ends
// meanwhile the rest is nobody's.
func typeSerial(ctx context.Context, m *vmm.Machine, p []byte) {
	for {
		n, err := m.SerialInput(p)
		p = p[n:]
		if err != nil || len(p) == 0 {
			return
		}
		if m.SerialRoom(ctx) != nil {
			return
		}
	}
}

// Inspection is everything about a guest that inspect shows.
type Inspection struct {
	Config   Config     `json:"config"`
	State    State      `json:"state"`
	Dir      string     `json:"dir"`
	Boots    int        `json:"boots,omitempty"`
	Kernel   string     `json:"kernel,omitempty"`
	Cmdline  string     `json:"cmdline,omitempty"`
	Serial   string     `json:"serial,omitempty"`
	Console  string     `json:"console,omitempty"`
	Timeline *Timeline  `json:"timeline,omitempty"`
	Machine  *vmm.Stats `json:"machine,omitempty"`
	// LogDroppedBytes is what the disk did not take of the logs.
	LogDroppedBytes int64 `json:"logDroppedBytes,omitempty"`
}

// Inspect returns it.
func (g *Guest) Inspect() *Inspection {
	st := g.State()
	g.mu.Lock()
	m, tl, boots := g.machine, g.timeline, g.boots
	g.mu.Unlock()
	i := &Inspection{Config: g.cfg, State: st, Dir: g.dir.Path(), Boots: boots, Timeline: &tl,
		Kernel: g.src.name, Cmdline: g.src.cmdline, Serial: g.halves.serial.where, Console: g.halves.console.where,
		LogDroppedBytes: g.console.Dropped() + g.vmmLog.Dropped()}
	if m != nil {
		stats := m.Stats()
		i.Machine = &stats
	}
	return i
}
