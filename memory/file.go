package memory

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// CopyFile fills [a, a+n) with the bytes of f from off on and marks it dirty.
//
// The kernel moves them from the page cache into the memfd, so no page is
// faulted in here one by one: loading 40 MiB takes half the time of a ReadAt
// into Writable. That goes around userfaultfd, so it is for a loader, before the
// guest first runs. Where f cannot be sent (it is no regular file, or its file
// system cannot) it is read.
func (m *Memory) CopyFile(a Addr, f *os.File, off int64, n uint64) error {
	r, at, err := m.find(a, n)
	if err != nil {
		return err
	}
	defer r.mark(at, n) // a failed copy may have written some
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sent uint64
	var sendErr error
	err = conn.Control(func(fd uintptr) {
		sent, sendErr = m.send(r.offset+int64(at), int(fd), off, n)
	})
	if err != nil {
		return err
	}
	if errors.Is(sendErr, unix.EINVAL) || errors.Is(sendErr, unix.ENOSYS) {
		k, err := f.ReadAt(r.host[at+sent:at+n], off+int64(sent))
		if sent += uint64(k); sent < n && err != io.EOF {
			return err
		}
		sendErr = nil
	}
	if sendErr != nil {
		return fmt.Errorf("send file to guest RAM: %w", sendErr)
	}
	if sent < n {
		return fmt.Errorf("read %d bytes at %#x: %w", n, off, io.ErrUnexpectedEOF)
	}
	return nil
}

// send copies n bytes of the file src at off to the memfd at dst and returns how
// many it copied. sendfile writes at the memfd's file position, which nothing
// else uses; fill guards it.
func (m *Memory) send(dst int64, src int, off int64, n uint64) (uint64, error) {
	m.fill.Lock()
	defer m.fill.Unlock()
	if _, err := unix.Seek(m.fd, dst, io.SeekStart); err != nil {
		return 0, err
	}
	const most = 1 << 30 // the kernel's own limit for one call is 2 GiB
	var done uint64
	for done < n {
		k, err := unix.Sendfile(m.fd, src, &off, int(min(n-done, most)))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, err
		case k == 0:
			return done, nil // the file ends here
		default:
			done += uint64(k)
		}
	}
	return done, nil
}
