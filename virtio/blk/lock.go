package blk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrLocked is wrapped when somebody else has the disk open in a way that
// excludes ours.
var ErrLocked = errors.New("disk is in use")

// lock takes an open-file-description lock on the whole file: alone for a
// writer, shared for readers. It goes with the descriptor, also when the process
// is killed. QEMU locks single bytes of its images, so the two see each other.
func lock(fd int, path string, shared bool) error {
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if shared {
		lk.Type = unix.F_RDLCK
	}
	err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lk)
	switch err {
	case nil:
		return nil
	case unix.EAGAIN, unix.EACCES:
		if shared {
			return fmt.Errorf("open disk %s for reading: %w%s, which writes to it: stop that first", path, ErrLocked, holder(fd))
		}
		return fmt.Errorf("open disk %s for writing: %w%s: stop that first (any number of read-only and snapshot users can share a disk)",
			path, ErrLocked, holder(fd))
	default:
		return fmt.Errorf("lock disk %s (a file system without locks needs the option that leaves them out): %w", path, err)
	}
}

// maxScan bounds how many descriptors of other processes holder looks at.
const maxScan = 100_000

// holder names the process that has the file of fd locked, as " by process 12
// (name)", or "". Open-file-description locks belong to no process, so the kernel
// gives no pid; but fdinfo shows them on the descriptors that have them. Best
// effort: other users' processes cannot be looked into.
func holder(fd int) string {
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lk); err == nil && lk.Type != unix.F_UNLCK && lk.Pid > 0 {
		return describe(int(lk.Pid)) // a classic lock
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return ""
	}
	procs, err := filepath.Glob("/proc/[0-9]*/fd")
	if err != nil {
		return ""
	}
	scanned := 0
	for _, dir := range procs {
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range fds {
			if scanned++; scanned > maxScan {
				return ""
			}
			if holds(filepath.Dir(dir), e, &st) {
				pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
				return describe(pid)
			}
		}
	}
	return ""
}

// holds says whether descriptor e of the process in /proc directory proc is the
// file of st and has a lock.
func holds(proc string, e fs.DirEntry, st *unix.Stat_t) bool {
	var other unix.Stat_t
	if unix.Stat(filepath.Join(proc, "fd", e.Name()), &other) != nil || other.Dev != st.Dev || other.Ino != st.Ino {
		return false
	}
	info, err := os.ReadFile(filepath.Join(proc, "fdinfo", e.Name()))
	return err == nil && strings.Contains(string(info), "\nlock:")
}

func describe(pid int) string {
	if pid == os.Getpid() {
		return " by this process"
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf(" by process %d", pid)
	}
	return fmt.Sprintf(" by process %d (%s)", pid, strings.TrimSpace(string(name)))
}
