package session

import (
	"golang.org/x/sys/unix"
)

// openPty makes a terminal of this size: its master for us, its slave for the command.
func openPty(rows, cols uint16) (master, slave int, err error) {
	master, err = unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, -1, err
	}
	defer func() {
		if err != nil {
			_ = unix.Close(master)
			master = -1
		}
	}()
	if err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return -1, -1, err
	}
	// The peer by descriptor needs no /dev/pts in this mount namespace.
	s, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, -1, errno
	}
	slave = int(s)
	if err = setSize(master, rows, cols); err != nil {
		_ = unix.Close(slave)
		return -1, -1, err
	}
	return master, slave, nil
}

func setSize(master int, rows, cols uint16) error {
	return unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
}

// endOfFile returns what to type for end of file, or nothing if the terminal is
// in raw mode, where there is no such thing.
func endOfFile(master int) []byte {
	t, err := unix.IoctlGetTermios(master, unix.TCGETS)
	if err != nil || t.Lflag&unix.ICANON == 0 {
		return nil
	}
	return []byte{t.Cc[unix.VEOF]}
}
