package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Names in a run directory.
const (
	serialLog   = "serial.log" // the console: firmware, kernel messages from errors up
	kernelLog   = "kernel.log" // the kernel's whole ring buffer, once its init is up
	qemuLog     = "qemu.log"   // what QEMU printed
	filesName   = "files"      // Config.Files, shared
	runLockName = "lock"       // flock while the owner lives
	runPattern  = "host-*"
)

// runDirectory is where one lab host keeps what lives no longer than it.
type runDirectory struct {
	path string
	lock *os.File
}

// newRunDirectory makes one below parent, and removes those whose owner was killed.
func newRunDirectory(ctx context.Context, parent string) (*runDirectory, error) {
	// Under the lock, so that nobody takes a directory that has no lock yet for a
	// dead one.
	unlock, err := lockFile(ctx, parent, lockName)
	if err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	defer unlock()
	if err := sweepLocked(parent); err != nil {
		return nil, fmt.Errorf("remove what a killed lab host left: %w", err)
	}
	dir, err := os.MkdirTemp(parent, runPattern)
	if err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, runLockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = lock.Close()
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock run directory: %w", err), os.RemoveAll(dir))
	}
	return &runDirectory{path: dir, lock: lock}, nil
}

func sweepLocked(parent string) error {
	dirs, err := filepath.Glob(filepath.Join(parent, runPattern))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		lock, err := os.OpenFile(filepath.Join(dir, runLockName), os.O_RDWR, 0)
		if err == nil {
			err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
			_ = lock.Close()
			if err == unix.EWOULDBLOCK {
				continue // it lives
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// remove takes the directory away.
func (d *runDirectory) remove() error {
	return errors.Join(os.RemoveAll(d.path), d.lock.Close())
}

// copyFiles puts files below dir. A copy, so that a binary that is built anew
// does not change under a host that runs.
func copyFiles(dir string, files []File) error {
	for _, f := range files {
		to := filepath.Join(dir, filepath.FromSlash(f.Path))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return fmt.Errorf("copy %s for the lab host: %w", f.Source, err)
		}
		if err := copyFile(f.Source, to); err != nil {
			return fmt.Errorf("copy %s for the lab host: %w", f.Source, err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	// io.Copy between files is copy_file_range, a reflink where the file system can.
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
