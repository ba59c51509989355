// Package kernel is about what runs inside a guest: Debian kernel packages and
// their modules, the initramfs, and the init that is PID 1 in it.
//
// It is not a loader: package vmm/boot puts a kernel into guest memory. The one
// thing that kernel takes from there is boot.Unpack, which makes a vmlinux of
// the package's vmlinuz, so that no guest ever decompresses; this import is
// allowed on purpose.
//
// # The cache
//
// Everything is kept under a directory that the caller names:
//
//	kernels/PACKAGE_VERSION/   vmlinux, modules/, kernel.json
//	tools/PACKAGE_VERSION/     busybox, and the list of its applets
//	initramfs/HASH.cpio        archives, named by the hash of what is in them
//	.lock                      held (flock) by the process that is adding
//
// An entry appears by one rename and is complete then: readers take no lock and
// never see half of one. Processes that want the same entry wait for each other,
// and the second finds it there. Nothing in the cache is changed afterwards.
package kernel

import "errors"

// DefaultPackage is the kernel that is fetched when none is named: Debian's
// smallest, a metapackage that depends on the newest kernel of its kind.
const DefaultPackage = "linux-image-cloud-amd64"

// ErrNotFetched is wrapped by Lookup when the cache has no such kernel.
var ErrNotFetched = errors.New("not in the cache")

// Kernel is one kernel in the cache. All paths are absolute.
type Kernel struct {
	// Package is the name that was asked for: "linux-image-cloud-amd64".
	Package string `json:"package"`
	// Image is the package that the files are from: "linux-image-6.1.0-56-cloud-amd64".
	Image string `json:"image"`
	// Version is the Debian version of Image: "6.1.192-2".
	Version string `json:"version"`
	// Release is what uname -r prints in the guest: "6.1.0-56-cloud-amd64".
	Release string `json:"release"`
	// Dir is the cache entry.
	Dir string `json:"-"`
	// VmlinuxPath is the unpacked ELF kernel.
	VmlinuxPath string `json:"-"`
	// VmlinuzPath is the bzImage that it was in.
	VmlinuzPath string `json:"-"`
	// ModulesDir is the tree that a system has at /lib/modules/RELEASE, with
	// modules.dep and modules.alias.
	ModulesDir string `json:"-"`
	// InitrdPath is the default initramfs. Only Prepare sets it.
	InitrdPath string `json:"-"`
}

// Options says what to fetch and where to keep it.
type Options struct {
	// CacheDir is made if it is missing. Required.
	CacheDir string
	// Package is a Debian package name: a kernel image, or a metapackage that
	// depends on one. Default: DefaultPackage.
	Package string
	// Progress is told in a few words what happens next ("download …"). It is
	// called from the goroutine that called Fetch. Default: nobody is told.
	Progress func(step string)
}
