package main

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settleTime is from a guest's start to the moment when what only the start
// needed is given back: the guest's kernel is up by then.
const settleTime = time.Second

// shedStartup gives back, once the guest has settled, the pages of this program that
// only its start needed: flags, checks, loading. They are most of what the process
// has resident. Until stop is called or the time has come nothing happens.
func shedStartup() (stop func()) {
	t := time.AfterFunc(settleTime, dropProgramPages)
	return func() { t.Stop() }
}

// dropProgramPages unmaps the resident pages of the executable's read-only segments.
// They are clean copies of the file: what is used again comes back from the page
// cache by a minor fault. Best effort; nothing depends on it.
func dropProgramPages() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if start, length, ok := programRange(sc.Text(), exe); ok {
			// A private file mapping without write access has no page that differs from the
			// file, so dropping pages loses nothing (madvise(2), MADV_DONTNEED).
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, start, length, unix.MADV_DONTNEED)
		}
	}
}

// programRange reads a line of /proc/self/maps and says whether it is a mapping of
// exe that cannot be written.
func programRange(line, exe string) (start, length uintptr, ok bool) {
	f := strings.Fields(line)
	if len(f) < 6 || strings.Join(f[5:], " ") != exe || (f[1] != "r-xp" && f[1] != "r--p") {
		return 0, 0, false
	}
	lo, hi, _ := strings.Cut(f[0], "-")
	a, err1 := strconv.ParseUint(lo, 16, 64)
	b, err2 := strconv.ParseUint(hi, 16, 64)
	if err1 != nil || err2 != nil || b <= a {
		return 0, 0, false
	}
	return uintptr(a), uintptr(b - a), true
}
