// Command init is PID 1 of a peervisor guest (docs/guest-agent.md): it mounts the
// kernel's file systems, loads drivers for the devices that are there, brings up
// the network, and serves the guest agent, or a shell where there is no agent.
//
// It is a static program in an initramfs of package kernel. Whatever can go wrong
// becomes a line in the kernel's log and a notice to the host, and the boot goes on;
// only a bug ends PID 1, which is a kernel panic and thus seen by the host.
//
// # Goroutines
//
// main runs the boot in order and then waits for the first reason to end. The
// agent's control port, the log, each network interface and each input device have
// a goroutine that lasts until the machine is off; none is joined.
package main

import (
	"errors"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kernel/init/modload"
	"github.com/peervisor/peervisor/kernel/init/session"
)

const sysDir = "/sys"

// preloadPath is kernel.PreloadPath.
const preloadPath = "/etc/peervisor/preload"

func main() {
	if os.Getpid() != 1 {
		println("init: this is the init of a peervisor guest; it runs as process 1")
		os.Exit(125)
	}
	defer announcePanic("main")
	b := &boot{}
	b.run()
}

// boot is the state of one boot.
type boot struct {
	opts    options
	modules *modload.Set
	reaper  *session.Reaper
	log     *logForwarder
	ask     chan session.Action // why to end; the first counts

	mu      sync.Mutex
	engine  *session.Engine
	pending []string // notices from before there was an engine
	// unusable says why no command can run, if the command line asked for what is not there.
	unusable error
}

func (b *boot) run() {
	b.ask = make(chan session.Action, 1)
	b.reaper = session.NewReaper(true)
	b.faults(mountEarly()...)
	watchSignals(b.ask)
	line, err := os.ReadFile("/proc/cmdline")
	b.faults(err)
	var faults []error
	b.opts, faults = parseOptions(string(line))
	b.faults(faults...)
	if !b.opts.verbose {
		setConsoleLevel()
	}
	b.faults(unix.Sethostname([]byte(b.opts.hostname)))
	b.setTime()

	events, err := listenUevents() // before the drivers, so that nothing is missed
	b.faults(err)
	late := b.loadDrivers()
	network := startNetwork(sysDir, b.opts.net, b.notice)
	b.mountAll()
	if b.unusable != nil {
		b.notice(b.unusable.Error())
	}
	var ports *agentPorts
	if events != nil {
		ports, err = openAgent(events, sysDir)
		b.faults(err)
		events.close()
	}
	guarded("late drivers", func() {
		b.faults(b.loadLate(late)...)
		watchButton(b.ask)
	})
	if ports == nil {
		guarded("shell", func() {
			network.await()
			runShell(b.reaper)
			request(b.ask, session.PowerOff)
		})
		shutdown(<-b.ask, nil)
	}
	b.log = forwardLog(sysDir)
	b.serve(ports, network)
}

// serve runs the agent until something ends the guest.
func (b *boot) serve(ports *agentPorts, network *network) {
	engine := session.New(session.Config{
		Ctl: ports.ctl, Stdin: ports.stdin, Stdout: ports.stdout, Stderr: ports.stderr,
		Reaper: b.reaper,
		Kernel: release(),
		Ready: func() error {
			network.await()
			return b.unusable
		},
		Greeted: func() { b.attach() },
	})
	b.mu.Lock()
	b.engine = engine
	b.mu.Unlock()
	ended := make(chan session.Action, 1)
	guarded("agent", func() {
		action, err := engine.Serve()
		if err != nil {
			say("agent: " + err.Error())
		}
		ended <- action
	})
	select {
	case action := <-ended:
		shutdown(action, b.log)
	case action := <-b.ask:
		engine.Terminate()
		engine.Idle(commandGrace)
		shutdown(action, b.log)
	}
}

// attach sends the notices that waited for the hello.
func (b *boot) attach() {
	b.mu.Lock()
	pending := b.pending
	b.pending = nil
	engine := b.engine
	b.mu.Unlock()
	for _, message := range pending {
		engine.Notice(message)
	}
}

// maxPending bounds the notices that wait for an agent.
const maxPending = 100

// notice tells a person, by the kernel's log and by the agent.
func (b *boot) notice(message string) {
	say(message)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.pending) < maxPending {
		b.pending = append(b.pending, message)
	}
	if engine := b.engine; engine != nil && engine.Greeted() {
		pending := b.pending
		b.pending = nil
		guarded("notice", func() {
			for _, m := range pending {
				engine.Notice(m)
			}
		})
	}
}

func (b *boot) faults(errs ...error) {
	for _, err := range errs {
		if err != nil {
			b.notice(err.Error())
		}
	}
}

func (b *boot) setTime() {
	if b.opts.time > time.Now().Unix() {
		tv := unix.Timeval{Sec: b.opts.time}
		b.faults(unix.Settimeofday(&tv))
	}
}

func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// canWait are modules that no command needs at its start.
func canWait(module string) bool {
	return module == "button" || strings.HasPrefix(module, "pvpanic") || module == "virtio_balloon"
}

// loadDrivers loads what the archive says and what the devices want, and returns
// the modules that can wait.
func (b *boot) loadDrivers() (late []string) {
	set, err := modload.Open("/lib/modules/" + release())
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel with everything built in
	}
	if err != nil {
		b.faults(err)
		return nil
	}
	b.modules = set
	late, failed := set.Coldplug(sysDir, canWait)
	b.faults(failed...)
	list, err := os.ReadFile(preloadPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b.faults(err)
	}
	for _, name := range strings.Fields(string(list)) {
		if set.Has(name) { // the others are built in: the archive's maker saw to that
			b.faults(set.Load(name))
		}
	}
	return late
}

func (b *boot) loadLate(late []string) []error {
	if b.modules == nil {
		return nil
	}
	failed := b.modules.LoadAll(late)
	for _, m := range late {
		if m == "button" && b.modules.Has("evdev") {
			failed = append(failed, b.modules.Load("evdev"))
		}
	}
	return failed
}

// mountAll mounts what the command line names: the root first, the others in it.
func (b *boot) mountAll() {
	if root := b.opts.root; root != nil {
		err := mountOne(b.modules, *root)
		if err == nil {
			err = enterRoot(root.readOnly)
		}
		if err != nil {
			b.unusable = err
			return
		}
	}
	for _, m := range b.opts.mounts {
		if err := mountOne(b.modules, m); err != nil {
			b.unusable = err
			return
		}
	}
}

// guarded starts a goroutine whose panic is seen.
func guarded(name string, f func()) {
	go func() {
		defer announcePanic(name)
		f()
	}()
}

// announcePanic writes a panic into the kernel's log, so that it is in the log
// of the guest even without a console, and lets it go on: to PID 1's end, and so
// to the kernel's panic.
func announcePanic(name string) {
	if r := recover(); r != nil {
		text := "unknown"
		switch v := r.(type) {
		case error:
			text = v.Error()
		case string:
			text = v
		}
		say("panic in " + name + ": " + text + "\n" + string(debug.Stack()))
		panic(r)
	}
}
