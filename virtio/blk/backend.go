package blk

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Mode says whether a transfer may wait for storage.
type Mode uint8

const (
	// Wait transfers everything, however long it takes.
	Wait Mode = iota
	// NoWait transfers what needs no waiting and then returns ErrWouldBlock.
	NoWait
)

// What a backend answers to NoWait. Both are no failures; the transfer goes on
// from where it came to.
var (
	// ErrWouldBlock: the rest has to wait for storage.
	ErrWouldBlock = errors.New("transfer has to wait for storage")
	// ErrUnsure: the backend cannot tell whether the rest has to wait.
	ErrUnsure = errors.New("transfer may have to wait for storage")
)

// Info is what a backend is. It does not change while the backend is open.
type Info struct {
	// SizeBytes is the size of the disk. The guest sees the whole sectors in it: a
	// remainder of less than 512 bytes is neither read nor changed.
	SizeBytes int64
	// ReadOnly: WriteAt, Discard and WriteZeroes always fail.
	ReadOnly bool
	// BlockBytes is the logical block size, a power of two, 512..32768; 0 means 512.
	BlockBytes int
	// PhysicalBytes is the size of write that needs no read before it, a power of two
	// of at least BlockBytes; 0 means BlockBytes.
	PhysicalBytes int
	// DiscardBytes is the granule in which discarding gives space back; 0 means PhysicalBytes.
	DiscardBytes int
	// ZeroUnmaps: WriteZeroes with unmap may give space back.
	ZeroUnmaps bool
	// Volatile: the content is thrown away at Close, so Flush has nothing to do
	// and is called inline.
	Volatile bool
}

// Backend is the storage behind a disk. All methods but Close may be called
// from any number of goroutines at once; overlapping transfers that run at the
// same time have no order.
type Backend interface {
	// Info does not block.
	Info() Info
	// ReadAt fills the slices of v from byte off, advances v past what was filled
	// and returns how much that was: all of v, or less and an error. The slices are
	// the caller's and are not kept. Off and length are multiples of 512 and inside
	// SizeBytes. Storage that is shorter than it said is io.ErrUnexpectedEOF.
	ReadAt(v *Vec, off int64, mode Mode) (int, error)
	// WriteAt writes the slices of v at byte off; all else as ReadAt. Data is in
	// stable storage only after a Flush that started later.
	WriteAt(v *Vec, off int64, mode Mode) (int, error)
	// Flush returns when everything that was written, zeroed or discarded before
	// it started is in stable storage. After a failure nobody knows what is, and the
	// caller stops writing.
	Flush() error
	// Close releases the storage. The caller guarantees that no other call runs or
	// follows. A second Close does nothing.
	Close() error
}

// Discarder is a Backend that can give space back. What is read from a
// discarded range afterwards is undefined. May block.
type Discarder interface {
	Discard(off, n int64) error
}

// Zeroer is a Backend with a faster way to zeroes than writing them. It may
// give the space back if unmap is set. May block.
type Zeroer interface {
	WriteZeroes(off, n int64, unmap bool) error
}

// Vec is a list of slices with a position, for one transfer after the other
// without allocating. The zero value is empty. A Vec is used by one goroutine at
// a time.
type Vec struct {
	bufs  [][]byte // bufs[first:] is what is left
	first int
	n     int // bytes left
	iov   []unix.Iovec
}

// Reset empties v and keeps its arrays.
func (v *Vec) Reset() {
	clear(v.bufs)
	v.bufs, v.first, v.n = v.bufs[:0], 0, 0
}

// Append adds b at the end.
func (v *Vec) Append(b []byte) {
	if len(b) > 0 {
		v.bufs = append(v.bufs, b)
		v.n += len(b)
	}
}

// Len is the number of bytes left.
func (v *Vec) Len() int { return v.n }

// Bufs lists the slices that are left. Borrowed until the next call that changes v.
func (v *Vec) Bufs() [][]byte { return v.bufs[v.first:] }

// Advance moves the position n bytes on, at most to the end.
func (v *Vec) Advance(n int) {
	n = min(n, v.n)
	v.n -= n
	for n > 0 {
		b := v.bufs[v.first]
		if n < len(b) {
			v.bufs[v.first] = b[n:]
			return
		}
		n -= len(b)
		v.first++
	}
}

// Head appends the next n bytes of v to dst and leaves v where it is.
func (v *Vec) Head(dst *Vec, n int) {
	for _, b := range v.bufs[v.first:] {
		if n <= 0 {
			break
		}
		k := min(n, len(b))
		dst.Append(b[:k:k])
		n -= k
	}
}

// CopyFrom fills v from p and advances past what was filled.
func (v *Vec) CopyFrom(p []byte) int {
	n := 0
	for _, b := range v.bufs[v.first:] {
		if n == len(p) {
			break
		}
		n += copy(b, p[n:])
	}
	v.Advance(n)
	return n
}

// CopyTo fills p from v and advances past what was copied.
func (v *Vec) CopyTo(p []byte) int {
	n := 0
	for _, b := range v.bufs[v.first:] {
		if n == len(p) {
			break
		}
		n += copy(p[n:], b)
	}
	v.Advance(n)
	return n
}

// Bounds of one vectored system call.
const (
	// maxIovecs is the kernel's UIO_MAXIOV.
	maxIovecs = 1024
	// maxCallBytes keeps one call short enough that others get their turn; a
	// multiple of every block size.
	maxCallBytes = 64 << 20
)

// iovecs lays out the next part of v for one system call.
func (v *Vec) iovecs() []unix.Iovec {
	v.iov = v.iov[:0]
	left := maxCallBytes
	for _, b := range v.bufs[v.first:] {
		if left == 0 || len(v.iov) == maxIovecs {
			break
		}
		b = b[:min(left, len(b))]
		left -= len(b)
		io := unix.Iovec{Base: &b[0]}
		io.SetLen(len(b))
		v.iov = append(v.iov, io)
	}
	return v.iov
}
