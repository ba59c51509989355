package blk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"
)

// Options says how to open a disk of the host.
type Options struct {
	// Path of a raw image: a regular file or a block device.
	Path string
	// ReadOnly opens it for reading, shared with other readers.
	ReadOnly bool
	// Snapshot opens it for reading, shared with other readers, under an overlay
	// that takes the writes and is thrown away at Close. See Overlay.
	Snapshot bool
	// SnapshotDir is where the overlay's file is; "" means os.TempDir(). It needs
	// room for what the guest writes.
	SnapshotDir string
	// Direct goes around the host's page cache (O_DIRECT).
	Direct bool
	// ForceRaw takes the image as raw whatever its first bytes look like.
	ForceRaw bool
	// NoLock leaves out the lock that keeps other guests off, for file systems that
	// have none.
	NoLock bool
}

// Open opens the disk. What can be wrong with it is found here: missing, not
// permitted, in use (ErrLocked), in another format (ErrFormat), too small.
func Open(o Options) (Backend, error) {
	f, err := openFile(o)
	if err != nil || !o.Snapshot {
		if err != nil {
			return nil, err // not a nil *File in a Backend
		}
		return f, nil
	}
	ov, err := NewOverlay(f, o.SnapshotDir)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return ov, nil
}

func openFile(o Options) (*File, error) {
	reading := o.ReadOnly || o.Snapshot
	st, err := os.Stat(o.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("disk %s: no such file; `truncate -s 10G %s` makes an empty one", o.Path, o.Path)
	case err != nil:
		return nil, fmt.Errorf("open disk %s: %w", o.Path, errors.Unwrap(err))
	}
	device := st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
	if !st.Mode().IsRegular() && !device {
		return nil, fmt.Errorf("disk %s is neither a regular file nor a block device", o.Path)
	}
	flags := unix.O_CLOEXEC | unix.O_RDONLY
	if !reading {
		flags = unix.O_CLOEXEC | unix.O_RDWR
		if device {
			flags |= unix.O_EXCL // refused while the host has it mounted
		}
	}
	fd, err := unix.Open(o.Path, flags, 0)
	if err != nil {
		return nil, openError(o.Path, device, err)
	}
	f := &File{path: o.Path, fd: fd, cached: -1, device: device}
	f.info.ReadOnly = reading
	if err := f.setUp(o, reading); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func openError(path string, device bool, err error) error {
	hint := ""
	switch err {
	case unix.EBUSY:
		if device {
			hint = "; the host has it mounted or in a volume group"
		}
	case unix.EACCES, unix.EPERM, unix.EROFS:
		hint = "; a disk that may only be read needs the read-only or the snapshot option"
	}
	return fmt.Errorf("open disk %s: %w%s", path, err, hint)
}

// setUp does what follows the first open: lock, size, format, direct I/O.
func (f *File) setUp(o Options, shared bool) error {
	if !o.NoLock {
		if err := lock(f.fd, f.path, shared); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return fmt.Errorf("open disk %s: %w", f.path, err)
	}
	f.info.SizeBytes, f.info.BlockBytes = st.Size, SectorBytes
	f.info.PhysicalBytes = blockSize(int(st.Blksize), 4096)
	f.info.ZeroUnmaps = true
	if f.device {
		size, err := ioctlSize(f.fd)
		if err != nil {
			return fmt.Errorf("size of disk %s: %w", f.path, err)
		}
		logical, err := unix.IoctlGetInt(f.fd, unix.BLKSSZGET)
		if err != nil {
			return fmt.Errorf("block size of disk %s: %w", f.path, err)
		}
		f.info.SizeBytes, f.info.BlockBytes = size, blockSize(logical, SectorBytes)
		// BLKPBSZGET fails only on kernels that are too old to matter.
		physical, err := unix.IoctlGetInt(f.fd, unix.BLKPBSZGET)
		if err != nil {
			physical = f.info.BlockBytes
		}
		f.info.PhysicalBytes = max(blockSize(physical, f.info.BlockBytes), f.info.BlockBytes)
	}
	if f.info.SizeBytes < SectorBytes {
		return fmt.Errorf("disk %s has %d bytes, less than one sector of %d; `truncate -s 10G %s` makes an empty one of 10 GiB",
			f.path, f.info.SizeBytes, SectorBytes, f.path)
	}
	if !o.ForceRaw {
		if err := f.probe(); err != nil {
			return err
		}
	}
	if o.Direct {
		return f.setDirect()
	}
	return nil
}

// blockSize is n if it is a block size that a virtio disk can have, else def.
func blockSize(n, def int) int {
	if n < SectorBytes || n > 32768 || bits.OnesCount(uint(n)) != 1 {
		return def
	}
	return n
}

func (f *File) probe() error {
	head, tail := make([]byte, probeBytes), make([]byte, probeBytes)
	for _, p := range []struct {
		b   []byte
		off int64
	}{{head, 0}, {tail, f.info.SizeBytes - probeBytes}} {
		var v Vec
		v.Append(p.b)
		if n, err := transfer(f.fd, &v, p.off, 0, preadv2); err != nil && err != io.ErrUnexpectedEOF {
			return f.wrap("read", p.off+int64(n), err)
		}
	}
	return checkFormat(f.path, head, tail)
}

// setDirect turns the descriptor to O_DIRECT and opens a second one without.
func (f *File) setDirect() error {
	align, mem := 4096, 4096
	if f.device {
		align, mem = f.info.BlockBytes, f.info.BlockBytes
	}
	var stx unix.Statx_t
	if err := unix.Statx(f.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &stx); err == nil && stx.Mask&unix.STATX_DIOALIGN != 0 {
		align, mem = int(stx.Dio_offset_align), int(stx.Dio_mem_align)
		if align == 0 {
			return fmt.Errorf("disk %s: its file system has no direct I/O; leave that option out", f.path)
		}
	}
	// One rule for addresses and for lengths of slices: older kernels want whole
	// blocks in each.
	if mem = max(align, mem); bits.OnesCount(uint(align)) != 1 || bits.OnesCount(uint(mem)) != 1 || mem > bounceBytes {
		return fmt.Errorf("disk %s: its file system wants direct I/O aligned to %d and %d bytes, which are no powers of two up to %d",
			f.path, align, mem, bounceBytes)
	}
	// The same open file again, whatever its name points to by now.
	flags := unix.O_CLOEXEC | unix.O_RDONLY
	if !f.info.ReadOnly {
		flags = unix.O_CLOEXEC | unix.O_RDWR
	}
	cached, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.fd), flags, 0)
	if err != nil {
		return fmt.Errorf("open disk %s again: %w", f.path, err)
	}
	f.cached = cached
	have, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, have|unix.O_DIRECT)
	}
	if err != nil {
		return fmt.Errorf("disk %s: its file system has no direct I/O (%w); leave that option out", f.path, err)
	}
	f.align, f.memAlign = align, mem
	f.bounce = make(chan []byte, maxBounces)
	for range maxBounces {
		f.bounce <- nil
	}
	return nil
}
