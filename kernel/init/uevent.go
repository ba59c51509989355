package main

import (
	"time"

	"golang.org/x/sys/unix"
)

// uevents are the kernel's announcements of devices. Only that there was one
// counts: who waits looks for himself.
type uevents struct {
	fd  int
	buf [8192]byte
}

func listenUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &uevents{fd: fd}, nil
}

func (u *uevents) close() { _ = unix.Close(u.fd) }

// wait returns true when something was announced, false at the deadline.
func (u *uevents) wait(deadline time.Time) bool {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		fds := []unix.PollFd{{Fd: int32(u.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(left/time.Millisecond)+1)
		if err != nil && err != unix.EINTR {
			return false
		}
		if n > 0 {
			u.drain()
			return true
		}
	}
}

// drain takes what is there. An overflow (ENOBUFS) is an announcement as well.
func (u *uevents) drain() {
	for range 1024 {
		if _, _, err := unix.Recvfrom(u.fd, u.buf[:], 0); err == unix.EAGAIN {
			return
		}
	}
}
