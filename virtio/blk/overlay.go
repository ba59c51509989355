package blk

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Overlay is a Backend that leaves its base as it is: writes go to an unlinked
// sparse file and are thrown away at Close. A guest can do with it what it likes,
// and any number of guests can share one base.
//
// Which clusters of the overlay count is in a bitmap in memory (never saved):
// 1 bit for 4 KiB, made as the guest writes, at most 32 KiB a GiB. A cluster
// that is written in part for the first time is copied up whole. Zeroed and
// discarded clusters become holes in the overlay, which read as zeroes.
//
// Lock order: mu alone. Writers of whole clusters, and of clusters that are
// there already, share it; a copy-up has it alone, so that it cannot put old base
// data over a write that runs at the same time.
type Overlay struct {
	base Backend
	top  *File
	info Info

	mu     sync.RWMutex
	chunks []atomic.Pointer[chunk]
	parts  sync.Pool // *Vec

	closed atomic.Bool
}

const (
	clusterBytes  = 4096
	chunkClusters = 1 << 15
	chunkBytes    = chunkClusters * clusterBytes // 128 MiB of disk, 4 KiB of bitmap
	// maxOverlayBytes bounds the table of chunks (64 MiB for it).
	maxOverlayBytes = 1 << 50
)

// chunk is one piece of the bitmap.
type chunk [chunkClusters / 64]atomic.Uint64

// NewOverlay puts a throw-away overlay on base, which it owns from then on. Its
// file is in dir, "" for os.TempDir(), and has no name there.
func NewOverlay(base Backend, dir string) (*Overlay, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	in := base.Info()
	if in.SizeBytes > maxOverlayBytes {
		return nil, fmt.Errorf("snapshot of a disk with %d bytes: at most %d are supported", in.SizeBytes, int64(maxOverlayBytes))
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		fd, err = openUnlinked(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("make the snapshot's file in %s: %w", dir, err)
	}
	top := &File{path: dir + "/(snapshot)", fd: fd, cached: -1}
	size := (in.SizeBytes + clusterBytes - 1) / clusterBytes * clusterBytes
	if err := unix.Ftruncate(fd, size); err != nil {
		return nil, errors.Join(fmt.Errorf("size the snapshot's file in %s to %d bytes: %w", dir, size, err), top.Close())
	}
	top.info = Info{SizeBytes: size}
	in.ReadOnly, in.Volatile, in.ZeroUnmaps = false, true, true
	in.PhysicalBytes, in.DiscardBytes = max(in.PhysicalBytes, clusterBytes), clusterBytes
	o := &Overlay{base: base, top: top, info: in, chunks: make([]atomic.Pointer[chunk], (size+chunkBytes-1)/chunkBytes)}
	o.parts.New = func() any { return new(Vec) }
	return o, nil
}

// openUnlinked is for file systems without O_TMPFILE.
func openUnlinked(dir string) (int, error) {
	f, err := os.CreateTemp(dir, "snapshot-*")
	if err != nil {
		return -1, err
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return fd, errors.Join(err, os.Remove(f.Name()), f.Close())
}

// Info implements Backend.
func (o *Overlay) Info() Info { return o.info }

func (o *Overlay) has(cluster int64) bool {
	c := o.chunks[cluster/chunkClusters].Load()
	i := cluster % chunkClusters
	return c != nil && c[i/64].Load()&(1<<(i%64)) != 0
}

// mark makes clusters [from, to) the overlay's.
func (o *Overlay) mark(from, to int64) {
	for ; from < to; from++ {
		p := &o.chunks[from/chunkClusters]
		c := p.Load()
		if c == nil {
			p.CompareAndSwap(nil, new(chunk))
			c = p.Load()
		}
		if i := from % chunkClusters; c[i/64].Load()&(1<<(i%64)) == 0 {
			c[i/64].Or(1 << (i % 64))
		}
	}
}

// run is how many of the n bytes at off lie in clusters that are like the first
// one: the overlay's or not.
func (o *Overlay) run(off, n int64) (int64, bool) {
	c := off / clusterBytes
	top := o.has(c)
	end := (c + 1) * clusterBytes
	for end < off+n && o.has(end/clusterBytes) == top {
		end += clusterBytes
	}
	return min(end-off, n), top
}

// ReadAt implements Backend.
func (o *Overlay) ReadAt(v *Vec, off int64, mode Mode) (int, error) {
	part := o.parts.Get().(*Vec)
	defer o.parts.Put(part)
	done := 0
	for v.Len() > 0 {
		at := off + int64(done)
		n, top := o.run(at, int64(v.Len()))
		part.Reset()
		from := Backend(o.top)
		if !top {
			from = o.base
		}
		if n == int64(v.Len()) { // the common case needs no second list
			got, err := from.ReadAt(v, at, mode)
			return done + got, err
		}
		v.Head(part, int(n))
		got, err := from.ReadAt(part, at, mode)
		v.Advance(got)
		done += got
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// WriteAt implements Backend.
func (o *Overlay) WriteAt(v *Vec, off int64, mode Mode) (int, error) {
	part := o.parts.Get().(*Vec)
	defer o.parts.Put(part)
	done := 0
	for v.Len() > 0 {
		at, left := off+int64(done), int64(v.Len())
		n := left
		copyUp := false
		if in := at % clusterBytes; in != 0 || left < clusterBytes {
			n = min(left, clusterBytes-in) // the part in this cluster
			copyUp = true
		} else {
			n -= n % clusterBytes
		}
		part.Reset()
		v.Head(part, int(n))
		var got int
		var err error
		if copyUp {
			got, err = o.writePart(part, at, mode)
		} else {
			got, err = o.writeWhole(part, at, mode)
		}
		v.Advance(got)
		done += got
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// writeWhole writes whole clusters.
func (o *Overlay) writeWhole(v *Vec, off int64, mode Mode) (int, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	n, err := o.top.WriteAt(v, off, mode)
	n -= n % clusterBytes // what came after is written again
	o.mark(off/clusterBytes, (off+int64(n))/clusterBytes)
	return n, err
}

// writePart writes v inside of one cluster.
func (o *Overlay) writePart(v *Vec, off int64, mode Mode) (int, error) {
	c := off / clusterBytes
	o.mu.RLock()
	if o.has(c) {
		defer o.mu.RUnlock()
		return o.top.WriteAt(v, off, mode)
	}
	o.mu.RUnlock()
	if mode == NoWait {
		return 0, ErrUnsure
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.has(c) {
		return o.top.WriteAt(v, off, Wait)
	}
	n := v.Len()
	buf := make([]byte, clusterBytes)
	start := c * clusterBytes
	if err := o.readBase(buf, start); err != nil {
		return 0, err
	}
	v.CopyTo(buf[off-start:])
	var whole Vec
	whole.Append(buf)
	if _, err := o.top.WriteAt(&whole, start, Wait); err != nil {
		return 0, err
	}
	o.mark(c, c+1)
	return n, nil
}

// readBase fills buf from the base at off; what lies past its end stays zero.
func (o *Overlay) readBase(buf []byte, off int64) error {
	var v Vec
	v.Append(buf[:min(int64(len(buf)), o.info.SizeBytes/SectorBytes*SectorBytes-off)])
	_, err := o.base.ReadAt(&v, off, Wait)
	return err
}

// Flush implements Backend: what is thrown away needs no stable storage.
func (o *Overlay) Flush() error { return nil }

// Discard implements Discarder: whole clusters become holes.
func (o *Overlay) Discard(off, n int64) error {
	from := (off + clusterBytes - 1) / clusterBytes
	to := (off + n) / clusterBytes
	if from >= to {
		return nil
	}
	return o.clear(from, to)
}

// WriteZeroes implements Zeroer.
func (o *Overlay) WriteZeroes(off, n int64, _ bool) error {
	var v Vec
	for n > 0 {
		if in := off % clusterBytes; in != 0 || n < clusterBytes {
			part := min(n, clusterBytes-in)
			v.Reset()
			v.Append(zeroes[:part])
			if _, err := o.WriteAt(&v, off, Wait); err != nil {
				return err
			}
			off, n = off+part, n-part
			continue
		}
		whole := n / clusterBytes
		if err := o.clear(off/clusterBytes, off/clusterBytes+whole); err != nil {
			return err
		}
		off, n = off+whole*clusterBytes, n-whole*clusterBytes
	}
	return nil
}

// clear makes clusters [from, to) holes of the overlay.
func (o *Overlay) clear(from, to int64) error {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if err := o.top.WriteZeroes(from*clusterBytes, (to-from)*clusterBytes, true); err != nil {
		return err
	}
	o.mark(from, to)
	return nil
}

// Close implements Backend: the overlay is gone and the base closed.
func (o *Overlay) Close() error {
	if !o.closed.CompareAndSwap(false, true) {
		return nil
	}
	return errors.Join(o.top.Close(), o.base.Close())
}
