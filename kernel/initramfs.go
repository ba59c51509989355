package kernel

import (
	"context"
	"errors"
	"io"
)

// File is one entry that the caller adds to an initramfs. Exactly one of Data,
// Source and Link is set; all empty is an empty file, unless Mode is a directory.
type File struct {
	// Path in the guest, absolute. Parent directories are made.
	Path string
	// Mode is the permission bits; zero is 0644. With Dir the entry is a directory.
	Mode uint32
	Dir  bool
	// Data is the content.
	Data []byte
	// Source is a file on this machine to copy.
	Source string
	// Link makes it a symbolic link to this target.
	Link string
}

// InitramfsOptions says what goes into an initramfs.
type InitramfsOptions struct {
	// Kernel gives the modules. Required.
	Kernel *Kernel
	// Modules are the names of modules to add to the default set, with what they
	// depend on. A name that the kernel has built in is no error; one that it does not
	// know is.
	Modules []string
	// Preload are modules that init loads without being asked; they are added
	// like Modules. The others load when a device or a mount wants them, or by modprobe.
	Preload []string
	// Init is the program for PID 1. Default: Init().
	Init []byte
	// Busybox is the path of a static busybox on this machine. Empty: no shell in
	// the guest.
	Busybox string
	// ExtraFiles are added last and in order.
	ExtraFiles []File
}

// BuildInitramfs writes an uncompressed newc cpio archive. The same options give
// the same bytes.
func BuildInitramfs(w io.Writer, opts InitramfsOptions) error {
	return errors.ErrUnsupported
}

// Initramfs returns the path of the archive that BuildInitramfs would write, from
// the cache if it was built before.
func Initramfs(ctx context.Context, cacheDir string, opts InitramfsOptions) (string, error) {
	return "", errors.ErrUnsupported
}
