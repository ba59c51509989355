package blk

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// File is a Backend on a raw image: a regular file or a block device of the host.
//
// With Options.Direct the page cache is gone around. What the host's alignment
// does not allow takes one of two ways: guest buffers at odd addresses are
// bounced through aligned memory, and transfers that do not start and end at the
// storage's block go through the page cache by a second descriptor, alone, so
// that they cannot lose a neighbour's direct write to the same block.
type File struct {
	path   string
	fd     int
	device bool // a block device
	info   Info

	// Direct I/O; align is 0 without it.
	align    int // of offset and length, bytes
	memAlign int // of addresses and of the length of each slice, bytes
	cached   int // descriptor without O_DIRECT
	// pieces is held shared by direct transfers and alone by those through the page cache.
	pieces sync.RWMutex
	bounce chan []byte // at most maxBounces buffers; nil stands for one not made yet

	// What the file system turned out not to do.
	noReadHint, noWriteHint, noPunch, noZeroRange, noDiscard atomic.Bool

	closed atomic.Bool
}

const (
	bounceBytes = 1 << 20 // a multiple of every alignment
	maxBounces  = 4
	// maxInterrupts bounds the tries of a call that a signal interrupts before it
	// has moved a byte.
	maxInterrupts = 100
)

// Info implements Backend.
func (f *File) Info() Info { return f.info }

// Path is the name that the file was opened by.
func (f *File) Path() string { return f.path }

// ReadAt implements Backend.
func (f *File) ReadAt(v *Vec, off int64, mode Mode) (int, error) {
	if f.align != 0 {
		return f.direct(v, off, mode, false)
	}
	if mode == NoWait {
		return f.hinted(v, off, &f.noReadHint, preadv2)
	}
	n, err := transfer(f.fd, v, off, 0, preadv2)
	return n, f.wrap("read", off+int64(n), err)
}

// WriteAt implements Backend.
func (f *File) WriteAt(v *Vec, off int64, mode Mode) (int, error) {
	if f.info.ReadOnly {
		return 0, f.wrap("write", off, unix.EROFS)
	}
	if f.align != 0 {
		return f.direct(v, off, mode, true)
	}
	if mode == NoWait {
		return f.hinted(v, off, &f.noWriteHint, pwritev2)
	}
	n, err := transfer(f.fd, v, off, 0, pwritev2)
	return n, f.wrap("write", off+int64(n), err)
}

func (f *File) wrap(op string, off int64, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s disk %s at byte %d: %w", op, f.path, off, err)
}

type vectored func(fd int, iov []unix.Iovec, off int64, flags int) (int, error)

// transfer moves all of v, or returns how far it came and why.
func transfer(fd int, v *Vec, off int64, flags int, call vectored) (int, error) {
	done, interrupts := 0, 0
	for v.Len() > 0 {
		n, err := call(fd, v.iovecs(), off+int64(done), flags)
		switch {
		case err == unix.EINTR && interrupts < maxInterrupts:
			interrupts++
			continue
		case err != nil:
			return done, err
		case n == 0:
			return done, io.ErrUnexpectedEOF
		}
		v.Advance(n)
		done += n
	}
	return done, nil
}

// hinted tries a transfer that does not wait. Errors other than "would wait"
// are left to the waiting transfer that follows.
func (f *File) hinted(v *Vec, off int64, unsupported *atomic.Bool, call vectored) (int, error) {
	if unsupported.Load() {
		return 0, ErrUnsure
	}
	n, err := transfer(f.fd, v, off, unix.RWF_NOWAIT, call)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL):
		unsupported.Store(true)
		return n, ErrUnsure
	default:
		return n, ErrWouldBlock
	}
}

// direct is a transfer of a file that was opened with O_DIRECT.
func (f *File) direct(v *Vec, off int64, mode Mode, write bool) (int, error) {
	if mode == NoWait {
		return 0, ErrWouldBlock // storage is always waited for
	}
	call, op := vectored(preadv2), "read"
	if write {
		call, op = pwritev2, "write"
	}
	if (off|int64(v.Len()))&int64(f.align-1) != 0 {
		f.pieces.Lock()
		defer f.pieces.Unlock()
		n, err := transfer(f.cached, v, off, 0, call)
		return n, f.wrap(op, off+int64(n), err)
	}
	f.pieces.RLock()
	defer f.pieces.RUnlock()
	if v.aligned(f.memAlign) {
		n, err := transfer(f.fd, v, off, 0, call)
		return n, f.wrap(op, off+int64(n), err)
	}
	return f.bounced(v, off, write)
}

// bounced moves v through aligned memory, a piece at a time.
func (f *File) bounced(v *Vec, off int64, write bool) (int, error) {
	buf := <-f.bounce
	defer func() { f.bounce <- buf }()
	if buf == nil {
		var err error
		// A mapping is page aligned, which every alignment divides.
		if buf, err = unix.Mmap(-1, 0, bounceBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON); err != nil {
			return 0, fmt.Errorf("map %d bytes to align transfers of disk %s: %w", bounceBytes, f.path, err)
		}
	}
	var part Vec
	done := 0
	for v.Len() > 0 {
		p := buf[:min(len(buf), v.Len())]
		part.Reset()
		part.Append(p)
		at := off + int64(done)
		if write {
			v.CopyTo(p)
			if n, err := transfer(f.fd, &part, at, 0, pwritev2); err != nil {
				return done + n, f.wrap("write", at+int64(n), err)
			}
		} else {
			n, err := transfer(f.fd, &part, at, 0, preadv2)
			v.CopyFrom(p[:n])
			if err != nil {
				return done + n, f.wrap("read", at+int64(n), err)
			}
		}
		done += len(p)
	}
	return done, nil
}

// Flush implements Backend.
func (f *File) Flush() error {
	var err error
	for range maxInterrupts {
		if err = unix.Fdatasync(f.fd); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("flush disk %s: %w", f.path, err)
	}
	return nil
}

// Discard implements Discarder. Giving space back is a favour: storage that
// cannot do it is no error.
func (f *File) Discard(off, n int64) error {
	if n == 0 || f.noDiscard.Load() {
		return nil
	}
	f.pieces.RLock()
	defer f.pieces.RUnlock()
	var err error
	if f.device {
		// The ioctl wants whole blocks.
		end := (off + n) &^ int64(f.info.BlockBytes-1)
		off = (off + int64(f.info.BlockBytes) - 1) &^ int64(f.info.BlockBytes-1)
		if off >= end {
			return nil
		}
		err = ioctlRange(f.fd, unix.BLKDISCARD, off, end-off)
	} else {
		err = fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}
	if unsupported(err) {
		f.noDiscard.Store(true)
		return nil
	}
	return f.wrap("discard", off, err)
}

// WriteZeroes implements Zeroer: a hole where the space may be given back, an
// unwritten extent where the file system has those, zeroes otherwise.
func (f *File) WriteZeroes(off, n int64, unmap bool) error {
	if f.info.ReadOnly {
		return f.wrap("zero", off, unix.EROFS)
	}
	if n == 0 {
		return nil
	}
	done, err := f.zeroFast(off, n, unmap)
	if done || err != nil {
		return f.wrap("zero", off, err)
	}
	return f.zeroSlow(off, n)
}

func (f *File) zeroFast(off, n int64, unmap bool) (bool, error) {
	f.pieces.RLock()
	defer f.pieces.RUnlock()
	if unmap && !f.noPunch.Load() {
		err := fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if !unsupported(err) {
			return true, err
		}
		// EINVAL may come from an odd range on a block device: only this once.
		f.noPunch.Store(err != unix.EINVAL)
	}
	if f.noZeroRange.Load() {
		return false, nil
	}
	var err error
	if f.device {
		err = ioctlRange(f.fd, unix.BLKZEROOUT, off, n)
	} else {
		err = fallocate(f.fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}
	if !unsupported(err) {
		return true, err
	}
	f.noZeroRange.Store(err != unix.EINVAL)
	return false, nil
}

// zeroes is what zeroSlow writes; nobody writes to it.
var zeroes [64 << 10]byte

func (f *File) zeroSlow(off, n int64) error {
	const slices = 16
	var v Vec
	for n > 0 {
		v.Reset()
		part := min(n, slices*int64(len(zeroes)))
		for left := part; left > 0; left -= int64(len(zeroes)) {
			v.Append(zeroes[:min(left, int64(len(zeroes)))])
		}
		if _, err := f.WriteAt(&v, off, Wait); err != nil {
			return err
		}
		off += part
		n -= part
	}
	return nil
}

func fallocate(fd int, mode uint32, off, n int64) error {
	var err error
	for range maxInterrupts {
		if err = unix.Fallocate(fd, mode, off, n); err != unix.EINTR {
			break
		}
	}
	return err
}

// unsupported says that the storage does not know the operation, in one of the
// ways in which file systems and drivers say so.
func unsupported(err error) bool {
	return err == unix.EOPNOTSUPP || err == unix.ENOSYS || err == unix.ENOTTY || err == unix.EINVAL || err == unix.ENODEV
}

// Close implements Backend; it gives up the lock with the descriptor.
func (f *File) Close() error {
	if !f.closed.CompareAndSwap(false, true) {
		return nil
	}
	errs := []error{unix.Close(f.fd)}
	if f.cached >= 0 {
		errs = append(errs, unix.Close(f.cached))
	}
	for range cap(f.bounce) {
		if b := <-f.bounce; b != nil {
			errs = append(errs, unix.Munmap(b))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close disk %s: %w", f.path, err)
	}
	return nil
}
