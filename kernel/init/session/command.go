package session

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kernel/agent/control"
)

// leftoverWait is how long streams are read after a command's exit if children
// that still live hold them open (docs/guest-agent.md).
const leftoverWait = time.Second

// maxPending bounds the signals that are kept for a command that starts.
const maxPending = 16

// command is one run message.
//
//	admitted ── Ready, earlier input drained ──► starting ──► running ──► ended, streams copied ──► exit
//	                                                └───────► failed
type command struct {
	engine *Engine
	id     uint64
	spec   control.Message
	input  *input

	// Guarded by Engine.mu.
	pid            int // 0: not started, or collected
	rows, cols     uint16
	pending        []unix.Signal
	master         int // the terminal, if spec.TTY, or -1
	stdout, stderr *output

	status <-chan unix.WaitStatus
}

func (c *command) run() {
	e := c.engine
	var err error
	if e.cfg.Ready != nil {
		err = e.cfg.Ready()
	}
	if !c.claimInput() {
		return
	}
	if err == nil {
		err = c.start()
	}
	if err != nil {
		code := control.CodeOther
		if se, ok := err.(*startError); ok {
			code = se.code
		}
		e.leave(control.Failed(c.id, code, err.Error()))
		return
	}
	e.report(control.Message{Type: control.TypeStarted, ID: c.id})
	ws := <-c.status
	stdout, stderr := c.finish()
	if ws.Signaled() {
		e.leave(control.Signalled(c.id, int(ws.Signal()), stdout, stderr))
	} else {
		e.leave(control.Exited(c.id, ws.ExitStatus(), stdout, stderr))
	}
}

// claimInput waits until all input of the command before has come, and makes
// what comes then this one's. False: the session is over.
func (c *command) claimInput() bool {
	e := c.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.input != nil && !e.closed {
		e.cond.Wait()
	}
	if e.closed {
		return false
	}
	e.input = c.input
	return true
}

// plumbing is the descriptors of a command that starts. Nothing in it is
// anybody else's until start took it over.
type plumbing struct {
	child  [3]int // what the command gets
	stdin  int    // our ends; a terminal's master is all three
	stdout int
	stderr int
	wakers []waker
}

func (p *plumbing) closeChild() {
	for i, fd := range p.child {
		if fd >= 0 && (i == 0 || fd != p.child[0]) {
			_ = unix.Close(fd)
		}
	}
}

func (p *plumbing) closeOurs() {
	for i, fd := range []int{p.stdin, p.stdout, p.stderr} {
		if fd >= 0 && (i == 0 || fd != p.stdin) {
			_ = unix.Close(fd)
		}
	}
	for _, w := range p.wakers {
		w.close()
	}
}

// plumb makes the pipes or the terminal of a command.
func plumb(tty bool, rows, cols uint16) (p plumbing, err error) {
	p = plumbing{child: [3]int{-1, -1, -1}, stdin: -1, stdout: -1, stderr: -1}
	defer func() {
		if err != nil {
			p.closeChild()
			p.closeOurs()
		}
	}()
	for range 3 {
		w, err := newWaker()
		if err != nil {
			return p, err
		}
		p.wakers = append(p.wakers, w)
	}
	if tty {
		master, slave, err := openPty(rows, cols)
		if err != nil {
			return p, err
		}
		p.child = [3]int{slave, slave, slave}
		p.stdin, p.stdout = master, master
		return p, nil
	}
	if p.child[0], p.stdin, err = pipe(); err != nil {
		return p, err
	}
	if p.stdout, p.child[1], err = pipe(); err != nil {
		return p, err
	}
	if p.stderr, p.child[2], err = pipe(); err != nil {
		return p, err
	}
	for _, fd := range []int{p.stdin, p.stdout, p.stderr} {
		if err = unix.SetNonblock(fd, true); err != nil {
			return p, err
		}
	}
	return p, nil
}

func pipe() (r, w int, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return -1, -1, err
	}
	// A larger pipe is fewer turns; without the right to one it is slower, no more.
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, copyBytes)
	return fds[0], fds[1], nil
}

// start runs the program. Afterwards the command owns its streams.
func (c *command) start() error {
	m := &c.spec
	dir := m.Dir
	if dir == "" {
		dir = "/"
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return &startError{control.CodeOther, "working directory " + quote(dir) + " is not there"}
	}
	env := environment(m.Env, m.TTY)
	path, err := lookPath(m.Argv[0], env, dir)
	if err != nil {
		return err
	}
	p, err := plumb(m.TTY, m.Rows, m.Cols)
	if err != nil {
		return &startError{control.CodeOther, "streams: " + err.Error()}
	}
	attr := &syscall.ProcAttr{
		Dir:   dir,
		Env:   env,
		Files: []uintptr{uintptr(p.child[0]), uintptr(p.child[1]), uintptr(p.child[2])},
		// Its own session, thus its own process group, and with a terminal that
		// terminal's foreground.
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: m.TTY, Ctty: 0},
	}
	pid, status, err := c.engine.cfg.Reaper.Start(func() (int, error) {
		return syscall.ForkExec(path, m.Argv, attr)
	})
	p.closeChild()
	if err != nil {
		p.closeOurs()
		return explain(m.Argv[0], err)
	}
	c.status = status
	c.adopt(pid, p)
	return nil
}

// adopt makes the plumbing of a program that runs the command's.
func (c *command) adopt(pid int, p plumbing) {
	e := c.engine
	stdout := &output{src: p.stdout, dst: e.cfg.Stdout, wake: p.wakers[1], closes: !c.spec.TTY, done: make(chan struct{})}
	stderr := &output{src: p.stderr, dst: e.cfg.Stderr, wake: p.wakers[2], closes: true, done: make(chan struct{})}
	e.mu.Lock()
	defer e.mu.Unlock()
	c.pid, c.stdout, c.stderr, c.master = pid, stdout, stderr, -1
	go stdout.run()
	if c.spec.TTY {
		c.master = p.stdin
		close(stderr.done)
		_ = setSize(c.master, c.rows, c.cols) // it may have changed meanwhile
	} else {
		go stderr.run()
	}
	c.input.dst, c.input.wake, c.input.terminal = p.stdin, p.wakers[0], c.spec.TTY
	c.input.ready = true
	e.cond.Broadcast()
	e.settleLocked(c.input)
	for _, sig := range c.pending {
		_ = e.cfg.Reaper.Signal(pid, sig)
	}
	c.pending = nil
}

// finish copies what is left of the streams of a command that ended, lets go of
// all its descriptors, and returns how many bytes went to stdout and stderr.
func (c *command) finish() (stdoutBytes, stderrBytes uint64) {
	leftover := time.NewTimer(leftoverWait)
	defer leftover.Stop()
	for _, o := range []*output{c.stdout, c.stderr} {
		select {
		case <-o.done:
		case <-leftover.C:
			c.stdout.drain()
			c.stderr.drain()
		}
		<-o.done
	}
	e := c.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	in := c.input
	in.wake.wake()
	for in.writing {
		e.cond.Wait()
	}
	in.dropLocked() // from here on the rest of its input is thrown away
	e.settleLocked(in)
	c.pid = 0
	if c.master >= 0 {
		_ = unix.Close(c.master)
		c.master = -1
	}
	for _, w := range []waker{in.wake, c.stdout.wake, c.stderr.wake} {
		w.close()
	}
	return c.stdout.n, c.stderr.n
}

// drain ends an output that children of an ended command still hold, unless it
// was told to end anyway.
func (o *output) drain() {
	for {
		mode := o.mode.Load()
		if mode == outputStops || o.mode.CompareAndSwap(mode, outputDrains) {
			o.wake.wake()
			return
		}
	}
}

func (c *command) signalLocked(sig unix.Signal) {
	if c.pid != 0 {
		_ = c.engine.cfg.Reaper.Signal(c.pid, sig) // gone already: its exit is on its way
		return
	}
	if len(c.pending) < maxPending {
		c.pending = append(c.pending, sig)
	}
}

func (c *command) resizeLocked(rows, cols uint16) {
	if c.pid == 0 {
		c.rows, c.cols = rows, cols
		return
	}
	if c.master >= 0 {
		_ = setSize(c.master, rows, cols)
	}
}

// closeStreamLocked makes the command's next write to a stream fail with SIGPIPE.
// A terminal cannot do that; what it has for this is hanging up.
func (c *command) closeStreamLocked(stream string) {
	if c.pid == 0 {
		return
	}
	o := c.stdout
	if stream == control.StreamStderr {
		o = c.stderr
	}
	if c.spec.TTY {
		c.stdout.set(outputDiscards)
		_ = c.engine.cfg.Reaper.Signal(c.pid, unix.SIGHUP)
		return
	}
	o.set(outputStops)
}
