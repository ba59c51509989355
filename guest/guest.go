package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/peervisor/peervisor/kernel/agent"
	"github.com/peervisor/peervisor/vmm"
)

// Options of Start.
type Options struct {
	// Streams is the session's other end, in this process. nil: clients attach by
	// the control API.
	Streams *Streams
	// Owned says that a foreground client will attach as the owner, and that
	// the guest ends with it. Without Streams only.
	Owned bool
	// Progress is told in a few words what takes long (fetching a kernel). May be nil.
	Progress func(step string)
}

// Guest is one running guest. All methods may be called from any goroutine.
type Guest struct {
	dir     *Dir
	cfg     Config
	opts    Options
	log     *slog.Logger
	vmmLog  *logFile
	console *logFile
	hub     *hub
	src     *source
	halves  *halves
	api     *server

	cancel context.CancelCauseFunc // ends the session
	ctx    context.Context
	done   chan struct{} // closed when the guest ended and exit is set

	mu       sync.Mutex
	machine  *vmm.Machine
	agent    *agent.Client
	process  *agent.Process
	winsize  Winsize
	status   Status
	started  time.Time
	boots    int
	stopping bool
	killed   string // why, once killed
	exit     *Exit
	timeline Timeline
}

// Timeline says when a guest got how far; zero where it did not.
type Timeline struct {
	// Assembled: kernel and devices are open. Entry: the first vCPU entered the guest
	// of the first boot. Hello: its init spoke. Command: the command was started.
	Assembled time.Time `json:"assembled,omitzero"`
	Entry     time.Time `json:"entry,omitzero"`
	Hello     time.Time `json:"hello,omitzero"`
	Command   time.Time `json:"command,omitzero"`
	// CommandEnd: the command ended. End: the machine did.
	CommandEnd time.Time `json:"commandEnd,omitzero"`
	End        time.Time `json:"end,omitzero"`
}

var errWrongState = errors.New("guest is not in a state for that")

// Start assembles the guest of dir and runs it. On an error nothing is left
// behind but dir, which the caller removes. The guest keeps running until its
// session, itself or Kill ends it; the caller waits with Wait and then calls Close.
func Start(ctx context.Context, dir *Dir, opts Options) (*Guest, error) {
	g := &Guest{dir: dir, cfg: dir.Config(), opts: opts, done: make(chan struct{}), status: StatusStarting}
	g.ctx, g.cancel = context.WithCancelCause(context.Background())
	if c := g.cfg.Command; c != nil {
		g.winsize = Winsize{c.Rows, c.Cols}
	}
	if err := g.open(ctx); err != nil {
		g.cancel(err)
		return nil, errors.Join(err, g.closeParts())
	}
	g.mu.Lock()
	g.status, g.started = StatusRunning, time.Now().UTC()
	g.mu.Unlock()
	if err := g.saveState(); err != nil {
		g.cancel(err)
		return nil, errors.Join(err, g.closeParts())
	}
	if g.opts.Owned && g.opts.Streams == nil {
		go g.hub.awaitOwner() // ends when the owner comes, its time is over, or the guest ends
	}
	go g.run()
	return g, nil
}

// open makes everything up to a started machine.
func (g *Guest) open(ctx context.Context) error {
	var err error
	if g.vmmLog, err = openLog(filepath.Join(g.dir.Path(), "vmm.log")); err != nil {
		return err
	}
	g.log = slog.New(slog.NewJSONHandler(g.vmmLog, nil)).With("guest", g.cfg.Name)
	if g.console, err = openLog(filepath.Join(g.dir.Path(), "console.log")); err != nil {
		return err
	}
	g.hub = newHub(g.opts.Owned && g.opts.Streams == nil)
	g.hub.onResize, g.hub.onSignal = g.resize, g.signal
	g.hub.onOwnerLost = func() { g.Kill("its terminal was closed") }
	if g.src, err = openSource(ctx, &g.cfg, g.opts.Progress); err != nil {
		return err
	}
	if g.halves, err = openHalves(&g.cfg, g.log, g.session(), g.console); err != nil {
		return err
	}
	g.stamp(func(t *Timeline) { t.Assembled = time.Now() })
	if err := g.boot(); err != nil {
		return err
	}
	l, err := listenAPI(g.dir.store.socket(g.cfg.Name))
	if err != nil {
		return err
	}
	g.api = newServer(g, l)
	return nil
}

func (g *Guest) stamp(f func(*Timeline)) {
	g.mu.Lock()
	f(&g.timeline)
	g.mu.Unlock()
}

// session is where a console or command leads: the caller's streams, or the hub.
func (g *Guest) session() endpoint {
	if s := g.opts.Streams; s != nil {
		return endpoint{in: s.In, out: s.Out}
	}
	return endpoint{in: g.hub.input, out: g.hub.stream(frameStdout)}
}

// boot makes a machine around the halves and starts it.
func (g *Guest) boot() error {
	ports, err := g.halves.newBoot()
	if err != nil {
		return err
	}
	cfg := vmm.Config{
		Name: g.cfg.Name, CPUs: g.cfg.CPUs, MemoryBytes: g.cfg.MemoryBytes,
		Boot:    g.src.boot(),
		Serial:  vmm.SerialConfig{Out: g.halves.serial.out},
		Devices: g.halves.devices(g.cfg.Transport),
		Log:     g.log,
	}
	m, err := vmm.New(cfg)
	if err != nil {
		return err
	}
	if err := m.Start(); err != nil {
		return errors.Join(err, m.Close())
	}
	var ag *agent.Client
	if ports != nil {
		ag = agent.New(*ports, agent.Options{Log: g.console, Notice: func(s string) { g.log.Warn("guest notice", "message", s) }})
	}
	g.mu.Lock()
	g.machine, g.agent = m, ag
	g.boots++
	if g.boots == 1 {
		g.timeline.Entry = time.Now()
	}
	g.mu.Unlock()
	return nil
}

// run is the guest's life: boots, reboots, and the end.
func (g *Guest) run() {
	var feed sync.WaitGroup
	stopFeed := g.feedInput(&feed)
	var exit Exit
	for {
		var again bool
		if exit, again = g.runBoot(); !again {
			break
		}
		g.log.Info("guest reboots")
		if err := g.boot(); err != nil {
			exit = Exit{Code: ExitRunFailed, Reason: "failed", Detail: "reboot: " + err.Error()}
			break
		}
	}
	stopFeed()
	feed.Wait()
	g.finish(exit)
}

// runBoot runs the machine once, with its session; again says that the guest rebooted.
func (g *Guest) runBoot() (exit Exit, again bool) {
	g.mu.Lock()
	m, ag := g.machine, g.agent
	g.mu.Unlock()
	ended := make(chan vmm.Exit, 1)
	go func() {
		e, err := m.Wait(context.Background())
		if err != nil {
			e = vmm.Exit{Reason: vmm.ReasonFault, Detail: err.Error()}
		}
		ended <- e
	}()
	var cmdExit *Exit
	sessionDone := make(chan *Exit, 1)
	if ag != nil {
		go func() { sessionDone <- g.runSession(ag) }()
	} else {
		sessionDone = nil
	}
	var me vmm.Exit
	select {
	case me = <-ended:
		if ag != nil {
			// The session still has output in its pipes: it ends when they do.
			g.halves.endBoot()
			cmdExit = <-sessionDone
		}
	case cmdExit = <-sessionDone:
		me = g.powerOff(ag, m, ended)
		g.halves.endBoot()
	}
	g.stamp(func(t *Timeline) { t.End = time.Now() })
	if ag != nil {
		_ = ag.Close()
	}
	if err := errors.Join(m.Close(), g.halves.retireBoot()); err != nil {
		g.log.Error("close machine", "error", err)
	}
	return g.judge(me, cmdExit)
}

// powerOffWait bounds how long a guest whose command ended may take to sync and power off.
const powerOffWait = 30 * time.Second

// powerOff ends a guest whose command has ended.
func (g *Guest) powerOff(ag *agent.Client, m *vmm.Machine, ended <-chan vmm.Exit) vmm.Exit {
	ctx, cancel := context.WithTimeout(context.Background(), powerOffWait)
	defer cancel()
	if ag.PowerOff(ctx) == nil {
		select {
		case me := <-ended:
			return me
		case <-ctx.Done():
			g.log.Warn("guest did not power off after its command ended", "waited", powerOffWait.String())
		}
	}
	_ = m.Close()
	return <-ended
}

// judge turns the machine's end and the command's into the guest's exit.
func (g *Guest) judge(me vmm.Exit, cmd *Exit) (exit Exit, again bool) {
	g.mu.Lock()
	killed, stopping := g.killed, g.stopping
	g.mu.Unlock()
	switch {
	case cmd != nil && cmd.Reason != "":
		return *cmd, false
	case killed != "":
		return Exit{ExitKilled, "killed", killed}, false
	}
	switch me.Reason {
	case vmm.ReasonPanic:
		return Exit{ExitPanic, "panic", me.Detail}, false
	case vmm.ReasonTripleFault:
		return Exit{ExitFault, "triple-fault", me.Detail}, false
	case vmm.ReasonFault:
		return Exit{ExitFault, "fault", me.Detail}, false
	case vmm.ReasonKilled:
		return Exit{ExitKilled, "killed", me.Detail}, false
	}
	reason := "poweroff"
	if me.Reason == vmm.ReasonReset {
		reason = "reset"
		if !g.cfg.NoReboot && !stopping && g.cfg.Command == nil {
			return Exit{}, true
		}
	}
	if g.cfg.Command != nil && !stopping {
		return Exit{ExitNoStatus, reason, "the guest ended before its command reported a status"}, false
	}
	if stopping && g.cfg.builtin() {
		return Exit{ExitKilled, "stopped", "stopped by request"}, false
	}
	return Exit{0, reason, me.Detail}, false
}

// runSession runs the command of a guest with the built-in initramfs, or its
// shell. nil, or an Exit without a reason: the guest ended first.
func (g *Guest) runSession(ag *agent.Client) *Exit {
	if _, err := ag.Hello(g.ctx); err != nil {
		return nil
	}
	g.stamp(func(t *Timeline) { t.Hello = time.Now() })
	p, err := ag.Run(g.ctx, g.command())
	var se *agent.StartError
	if errors.As(err, &se) {
		return &Exit{se.Code, "command", se.Message}
	}
	if err != nil {
		return nil
	}
	g.mu.Lock()
	g.process = p
	ws := g.winsize
	g.timeline.Command = time.Now()
	g.mu.Unlock()
	if ws.Rows > 0 {
		_ = p.Resize(uint16(ws.Rows), uint16(ws.Cols)) // it may have changed since
	}
	st, err := p.Wait()
	g.mu.Lock()
	g.process = nil
	g.timeline.CommandEnd = time.Now()
	g.mu.Unlock()
	if err != nil {
		return nil
	}
	e := &Exit{Code: st.ExitCode(), Reason: "command"}
	if st.Signal != 0 {
		e.Detail = fmt.Sprintf("command ended by signal %d (%s)", int(st.Signal), st.Signal)
	}
	return e
}

// command is what the session runs: the configured command, else a shell.
func (g *Guest) command() agent.Command {
	c := g.cfg.Command
	if c == nil {
		c = &Command{Argv: []string{"/bin/sh", "-l"}, TTY: true, Rows: 24, Cols: 80}
	}
	g.mu.Lock()
	ws := g.winsize
	g.mu.Unlock()
	if ws.Rows == 0 {
		ws = Winsize{c.Rows, c.Cols}
	}
	cmd := agent.Command{Argv: c.Argv, Env: c.Env, Dir: c.Dir, TTY: c.TTY, Rows: uint16(ws.Rows), Cols: uint16(ws.Cols)}
	if s := g.opts.Streams; s != nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = s.In, s.Out, s.Err
		return cmd
	}
	cmd.Stdin = g.hub.input
	cmd.Stdout = tee{g.console, g.hub.stream(frameStdout)}
	cmd.Stderr = tee{g.console, g.hub.stream(frameStderr)}
	return cmd
}

// tee writes to the log, which never fails, then to the session.
type tee struct {
	log *logFile
	out interface{ Write([]byte) (int, error) }
}

func (t tee) Write(p []byte) (int, error) {
	_, _ = t.log.Write(p)
	return t.out.Write(p)
}

// finish records the end and lets everybody know.
func (g *Guest) finish(exit Exit) {
	g.log.Info("guest ended", "code", exit.Code, "reason", exit.Reason, "detail", exit.Detail)
	g.mu.Lock()
	g.status, g.exit = StatusExited, &exit
	g.mu.Unlock()
	if err := errors.Join(g.dir.writeJSON("last.json", g.Inspect()), g.saveState()); err != nil {
		g.log.Error("save state", "error", err)
	}
	g.hub.end(&exit)
	close(g.done)
}

// saveState writes state.json.
func (g *Guest) saveState() error {
	st := g.State()
	return g.dir.setState(st)
}

// State is the guest's state now.
func (g *Guest) State() State {
	g.mu.Lock()
	defer g.mu.Unlock()
	st := g.dir.state
	st.Status, st.Started, st.Exit = g.status, g.started, g.exit
	if g.exit != nil && st.Ended.IsZero() {
		st.Ended = time.Now().UTC().Round(time.Millisecond)
	}
	return st
}

// Wait returns when the guest ended. All its output was written by then.
func (g *Guest) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-g.done:
		g.mu.Lock()
		defer g.mu.Unlock()
		return *g.exit, nil
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// Close kills the guest if it still runs, closes everything it opened and
// removes its control socket. The state directory stays.
func (g *Guest) Close() error {
	g.Kill("closed")
	<-g.done
	return g.closeParts()
}

func (g *Guest) closeParts() error {
	var errs []error
	g.cancel(nil)
	if g.api != nil {
		g.api.close()
		errs = append(errs, removeIfThere(g.dir.store.socket(g.cfg.Name)))
	}
	if g.hub != nil {
		g.hub.end(&Exit{Code: ExitRunFailed, Reason: "failed"})
	}
	g.mu.Lock()
	m, ag := g.machine, g.agent
	g.mu.Unlock()
	if g.halves != nil {
		g.halves.endBoot()
	}
	if ag != nil {
		_ = ag.Close()
	}
	if m != nil {
		errs = append(errs, m.Close())
	}
	if g.halves != nil {
		errs = append(errs, g.halves.close())
	}
	if g.src != nil {
		errs = append(errs, g.src.close())
	}
	if g.console != nil {
		errs = append(errs, g.console.Close())
	}
	if g.vmmLog != nil {
		errs = append(errs, g.vmmLog.Close())
	}
	return errors.Join(errs...)
}
