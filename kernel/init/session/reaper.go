package session

import (
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// Reaper starts processes and collects how they ended. PID 1 has to collect
// every orphan of the system, so waiting for one's own children must go through
// the same place: wait4(-1) takes any status that is there.
type Reaper struct {
	all bool

	mu       sync.Mutex // held from fork to registration, and while collecting
	children map[int]chan unix.WaitStatus
}

// NewReaper makes a Reaper. With all it collects every child of this process for
// the process's life, which is for PID 1 only; without, only those that it started.
func NewReaper(all bool) *Reaper {
	r := &Reaper{all: all, children: make(map[int]chan unix.WaitStatus)}
	if all {
		ended := make(chan os.Signal, 1)
		signal.Notify(ended, unix.SIGCHLD)
		go func() {
			for range ended {
				r.collect()
			}
		}()
	}
	return r
}

// Start calls fork, which starts a process and returns its ID, and returns a
// channel that gets its status once.
func (r *Reaper) Start(fork func() (int, error)) (int, <-chan unix.WaitStatus, error) {
	r.mu.Lock()
	pid, err := fork()
	if err != nil {
		r.mu.Unlock()
		return 0, nil, err
	}
	status := make(chan unix.WaitStatus, 1)
	r.children[pid] = status
	r.mu.Unlock()
	if !r.all {
		go r.wait(pid)
	}
	return pid, status, nil
}

// collect takes every status that is there. One SIGCHLD may stand for several.
func (r *Reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		r.deliverLocked(pid, ws)
	}
}

func (r *Reaper) wait(pid int) {
	// Waited for without collecting, so that the number stays the child's until
	// the lock keeps Signal away.
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
			break
		}
	}
	r.deliverLocked(pid, ws)
}

func (r *Reaper) deliverLocked(pid int, ws unix.WaitStatus) {
	if ch, ok := r.children[pid]; ok {
		delete(r.children, pid)
		ch <- ws
	}
}

// Signal sends sig to process group pid, unless its leader was collected, after
// which the number may be another's.
func (r *Reaper) Signal(pid int, sig unix.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.children[pid]; !ok {
		return unix.ESRCH
	}
	return unix.Kill(-pid, sig)
}
