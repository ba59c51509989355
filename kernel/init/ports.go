package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kernel/agent/control"
)

// portWait bounds how long a console device may take to name its ports, which it
// does by messages after its driver is loaded; logWait is for the log port, for
// which nothing else waits.
const (
	portWait = 10 * time.Second
	logWait  = 5 * time.Second
)

// findPorts returns port name → device node.
func findPorts(sys string) map[string]string {
	found := map[string]string{}
	files, _ := filepath.Glob(filepath.Join(sys, "class/virtio-ports/*/name"))
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil {
			found[strings.TrimSpace(string(b))] = "/dev/" + filepath.Base(filepath.Dir(file))
		}
	}
	return found
}

// hasNamedPorts tells whether a console device with several ports is there: one
// that took VIRTIO_CONSOLE_F_MULTIPORT (bit 1), which names its ports.
func hasNamedPorts(sys string) bool {
	files, _ := filepath.Glob(filepath.Join(sys, "bus/virtio/drivers/virtio_console/virtio*/features"))
	for _, file := range files {
		b, err := os.ReadFile(file) // a string of '0' and '1', bit 0 first
		if err == nil && len(b) > 1 && b[1] == '1' {
			return true
		}
	}
	return false
}

// awaitPorts waits until all names are there, or the deadline.
func awaitPorts(events *uevents, sys string, deadline time.Time, names ...string) (map[string]string, bool) {
	for {
		found := findPorts(sys)
		missing := false
		for _, name := range names {
			missing = missing || found[name] == ""
		}
		if !missing {
			return found, true
		}
		if !events.wait(deadline) {
			return found, false
		}
	}
}

// agentPorts are the streams of the agent, opened.
type agentPorts struct {
	ctl, stdin, stdout, stderr *os.File
}

// openAgent finds and opens the agent's ports. Without any it returns nil: there is no
// agent on the other side.
func openAgent(events *uevents, sys string) (*agentPorts, error) {
	if !hasNamedPorts(sys) {
		return nil, nil
	}
	names := []string{control.PortCtl, control.PortStdin, control.PortStdout, control.PortStderr}
	found, ok := awaitPorts(events, sys, time.Now().Add(portWait), names...)
	if !ok {
		if found[control.PortCtl] == "" {
			return nil, nil
		}
		return nil, errors.New("agent: the host gave a control port, and not the others")
	}
	var p agentPorts
	for i, to := range []**os.File{&p.ctl, &p.stdin, &p.stdout, &p.stderr} {
		f, err := openPort(found[names[i]])
		if err != nil {
			return nil, errors.New("agent: open " + names[i] + ": " + err.Error())
		}
		*to = f
	}
	return &p, nil
}

// openPort opens a port in blocking mode: each has a thread of its own, and the
// way through the runtime's poller would be a detour for every page.
func openPort(node string) (*os.File, error) {
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), node), nil
}
