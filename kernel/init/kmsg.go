package main

import (
	"bytes"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kernel/agent/control"
)

// maxRecordBytes is more than a record of /dev/kmsg can be (CONSOLE_EXT_LOG_MAX).
const maxRecordBytes = 16 << 10

// say writes a line into the kernel's ring buffer, thus to its consoles and to the
// log port.
func say(message string) {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		println("init: " + message)
		return
	}
	defer f.Close()
	for line := range bytes.Lines([]byte(message)) {
		// 12: facility user, level warning.
		_, _ = f.WriteString("<12>init: " + string(line))
	}
}

// setConsoleLevel keeps all but errors from the kernel's console, which a shell
// may share and which costs exits; the log port has everything.
func setConsoleLevel() {
	_ = os.WriteFile("/proc/sys/kernel/printk", []byte("4"), 0)
	// More than a few lines in five seconds are ours to write.
	_ = os.WriteFile("/proc/sys/kernel/printk_devkmsg", []byte("on"), 0)
}

// logForwarder copies the kernel's ring buffer to the log port.
type logForwarder struct {
	stop   int         // an eventfd: readable once it should end
	copies atomic.Bool // the port was found
	done   chan struct{}
}

// forwardLog starts to copy, once the port is there.
func forwardLog(sys string) *logForwarder {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		say("log: " + err.Error())
		return nil
	}
	l := &logForwarder{stop: stop, done: make(chan struct{})}
	guarded("log", func() {
		defer close(l.done)
		events, err := listenUevents()
		if err != nil {
			return
		}
		found, ok := awaitPorts(events, sys, time.Now().Add(logWait), control.PortLog)
		events.close()
		if !ok {
			return
		}
		port, err := openPort(found[control.PortLog])
		if err != nil {
			say("open the log port: " + err.Error())
			return
		}
		defer port.Close()
		l.copies.Store(true)
		l.copy(port)
	})
	return l
}

// finish copies what is in the ring buffer, for a bounded time, and ends.
func (l *logForwarder) finish(within time.Duration) {
	if !l.copies.Load() {
		return
	}
	_, _ = unix.Write(l.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	select {
	case <-l.done:
	case <-time.After(within):
	}
}

func (l *logForwarder) copy(port *os.File) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	record := make([]byte, maxRecordBytes)
	var text []byte
	stopped := false
	for {
		n, err := unix.Read(fd, record)
		switch {
		case err == nil:
			// Records are gathered, so that the boot's hundreds are few writes.
			if text = appendRecord(text, record[:n]); len(text) < 16<<10 {
				continue
			}
		case err == unix.EPIPE: // overwritten before it was read
			text = append(text, "(the kernel's log was overwritten here)\n"...)
			continue
		case err == unix.EINTR:
			continue
		case err != unix.EAGAIN:
			return
		}
		if len(text) > 0 {
			if _, err := port.Write(text); err != nil {
				return
			}
			text = text[:0]
			continue
		}
		if stopped {
			return
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(l.stop), Events: unix.POLLIN}}
		_, _ = unix.Poll(fds, -1)
		stopped = fds[1].Revents != 0 // once more round, for what is there
	}
}

// appendRecord turns a record "prio,seq,usec,flags;text\n DICT…" into dmesg's
// "[sec.usec] text\n".
func appendRecord(to, record []byte) []byte {
	head, text, ok := bytes.Cut(record, []byte{';'})
	if !ok {
		return to
	}
	fields := bytes.SplitN(head, []byte{','}, 4)
	if len(fields) < 3 {
		return to
	}
	usec, err := strconv.ParseUint(string(fields[2]), 10, 64)
	if err != nil {
		return to
	}
	text, _, _ = bytes.Cut(text, []byte{'\n'}) // the dictionary follows
	sec, frac := strconv.FormatUint(usec/1e6, 10), strconv.FormatUint(1e6+usec%1e6, 10)[1:]
	to = append(to, '[')
	for range 5 - len(sec) {
		to = append(to, ' ')
	}
	to = append(append(append(append(to, sec...), '.'), frac...), "] "...)
	return append(append(to, unescapeRecord(text)...), '\n')
}

// unescapeRecord undoes the \xNN of bytes that are not printable.
func unescapeRecord(b []byte) []byte {
	if !bytes.Contains(b, []byte(`\x`)) {
		return b
	}
	var out []byte
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+3 < len(b) && b[i+1] == 'x' {
			if v, err := strconv.ParseUint(string(b[i+2:i+4]), 16, 8); err == nil {
				out = append(out, byte(v))
				i += 3
				continue
			}
		}
		out = append(out, b[i])
	}
	return out
}
