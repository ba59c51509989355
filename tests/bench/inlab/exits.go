package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// tracefs is where the kernel tells the numbers of its events.
const tracefs = "/sys/kernel/tracing"

// exits counts the event kvm_userspace_exit, which KVM has at every return of KVM_RUN,
// on all processors.
type exits struct {
	fds  []int
	base uint64
}

func openExits() (*exits, error) {
	id, err := eventID("kvm/kvm_userspace_exit")
	if err != nil {
		return nil, err
	}
	e := &exits{}
	for cpu := range runtime.NumCPU() {
		attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Size: unix.PERF_ATTR_SIZE_VER5}
		fd, err := unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err != nil {
			e.close()
			return nil, fmt.Errorf("count exits on processor %d: %w", cpu, err)
		}
		e.fds = append(e.fds, fd)
	}
	return e, nil
}

// eventID mounts tracefs where nobody has.
func eventID(event string) (uint64, error) {
	path := filepath.Join(tracefs, "events", event, "id")
	b, err := os.ReadFile(path)
	if err != nil {
		if merr := unix.Mount("tracefs", tracefs, "tracefs", 0, ""); merr != nil {
			return 0, fmt.Errorf("mount tracefs: %w", merr)
		}
		if b, err = os.ReadFile(path); err != nil {
			return 0, err
		}
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}

func (e *exits) sum() (uint64, error) {
	var total uint64
	for _, fd := range e.fds {
		var b [8]byte
		if n, err := unix.Read(fd, b[:]); err != nil || n != len(b) {
			return 0, fmt.Errorf("read the count of exits: %d bytes, %w", n, err)
		}
		total += binary.NativeEndian.Uint64(b[:])
	}
	return total, nil
}

// mark is where since counts from.
func (e *exits) mark() (err error) {
	e.base, err = e.sum()
	return err
}

func (e *exits) since() (float64, error) {
	n, err := e.sum()
	return float64(n - e.base), err
}

func (e *exits) close() {
	for _, fd := range e.fds {
		_ = unix.Close(fd)
	}
}
