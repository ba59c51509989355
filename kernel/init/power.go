package main

import (
	"encoding/binary"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kernel/init/session"
)

// Bounds of an orderly end.
const (
	// commandGrace: from the power button, which is SIGTERM to the command, to its exit.
	commandGrace = 5 * time.Second
	// processGrace: from SIGTERM to SIGKILL for whatever else runs.
	processGrace = 2 * time.Second
	// logGrace: for the last lines of the log.
	logGrace = 500 * time.Millisecond
)

// watchSignals turns signals to PID 1 into what they mean to an init; the
// programs poweroff, halt and reboot of busybox send them.
func watchSignals(ask chan<- session.Action) {
	signals := make(chan os.Signal, 8)
	// Also those that mean nothing here: their default would end this process, and
	// ignoring them would be inherited.
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGHUP, unix.SIGQUIT, unix.SIGPWR)
	guarded("signals", func() {
		for s := range signals {
			switch s {
			case unix.SIGUSR1, unix.SIGUSR2, unix.SIGPWR:
				request(ask, session.PowerOff)
			case unix.SIGTERM, unix.SIGINT:
				request(ask, session.Reboot)
			}
		}
	})
	// Ctrl-Alt-Del comes as SIGINT then.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)
}

// request passes on the first request; later ones change nothing.
func request(ask chan<- session.Action, action session.Action) {
	select {
	case ask <- action:
	default:
	}
}

// struct input_event and its codes, linux/input.h and linux/input-event-codes.h
const (
	inputEventBytes = 24 // struct timeval 16, type 2, code 2, value 4
	evKey           = 1
	keyPower        = 116
)

// watchButton waits for the power button on every input device that is there.
func watchButton(ask chan<- session.Action) {
	nodes, _ := filepath.Glob("/dev/input/event*")
	for _, node := range nodes {
		guarded("power button", func() {
			fd, err := unix.Open(node, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return
			}
			defer func() { _ = unix.Close(fd) }()
			event := make([]byte, inputEventBytes)
			for {
				n, err := unix.Read(fd, event)
				if err == unix.EINTR {
					continue
				}
				if err != nil || n != len(event) {
					return
				}
				if binary.LittleEndian.Uint16(event[16:]) == evKey && binary.LittleEndian.Uint16(event[18:]) == keyPower &&
					binary.LittleEndian.Uint32(event[20:]) == 1 {
					request(ask, session.PowerOff)
				}
			}
		})
	}
}

// shutdown ends everything and the machine. It does not return.
func shutdown(action session.Action, log *logForwarder) {
	endProcesses()
	unix.Sync()
	for _, err := range unmountAll() {
		say(err.Error())
	}
	unix.Sync()
	if log != nil {
		log.finish(logGrace)
	}
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	if action == session.Reboot {
		how = unix.LINUX_REBOOT_CMD_RESTART
	}
	err := unix.Reboot(how)
	// Nothing is left that could be done; the kernel's panic is seen by the host.
	panic("reboot: " + err.Error())
}

// endProcesses asks all processes to end, and then makes them.
func endProcesses() {
	if !othersLeft() {
		return
	}
	_ = unix.Kill(-1, unix.SIGTERM)
	_ = unix.Kill(-1, unix.SIGCONT) // a stopped one must be able to
	deadline := time.Now().Add(processGrace)
	for othersLeft() && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	_ = unix.Kill(-1, unix.SIGKILL)
	deadline = time.Now().Add(processGrace)
	for othersLeft() && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
}

// othersLeft tells whether there is any process but PID 1 and the kernel's own.
// Whoever is left is a child or a descendant of one: PID 1 inherits orphans. (kill(-1, 0)
// would count kernel threads.) The reaper collects those that ended.
func othersLeft() bool {
	return unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) != unix.ECHILD
}
