package kernel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// layoutVersion is part of an archive's hash: it grows whenever the same options
// make another archive.
const layoutVersion = 1

// maxArchiveFileBytes bounds one file: newc has 32 bits for a length.
const maxArchiveFileBytes = 1<<32 - 1

// PreloadPath is the list of modules that init loads without being asked.
const PreloadPath = "/etc/peervisor/preload"

// defaultModules is what a guest may need: the devices of machine version 1, and
// the file systems that the kernel command line can name. Each flavour has some of
// them built in and lacks others.
func defaultModules() []string {
	return []string{
		"virtio_pci", "virtio_mmio",
		"virtio_console", "virtio_blk", "virtio_net", "virtio_rng",
		"button", "evdev", // the power button
		"pvpanic_mmio", "pvpanic_pci",
		"ext4", "overlay", "loop", "isofs",
		"virtiofs", "9p", "9pnet_virtio",
	}
}

// File is one entry that the caller adds to an initramfs: a file with the bytes of
// Data or Source, or a link, or a directory.
type File struct {
	// Path in the guest, absolute. Parent directories are made.
	Path string
	// Mode is the permission bits; zero is 0644, for a directory 0755.
	Mode uint32
	// Dir makes it a directory.
	Dir bool
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
	// the guest, and no modprobe.
	Busybox string
	// ExtraFiles are added last and in order. A path that is there already is an error.
	ExtraFiles []File
}

// complete fills in the defaults.
func (o *InitramfsOptions) complete() error {
	if o.Kernel == nil {
		return errors.New("no kernel is named")
	}
	if o.Init == nil {
		b, err := Init()
		if err != nil {
			return err
		}
		o.Init = b
	}
	return nil
}

// BuildInitramfs writes an uncompressed newc cpio archive. The same options give
// the same bytes.
func BuildInitramfs(w io.Writer, opts InitramfsOptions) error {
	if err := buildInitramfs(context.Background(), w, opts); err != nil {
		return fmt.Errorf("build initramfs: %w", err)
	}
	return nil
}

func buildInitramfs(ctx context.Context, w io.Writer, opts InitramfsOptions) error {
	if err := opts.complete(); err != nil {
		return err
	}
	graph, err := openModules(opts.Kernel.ModulesDir)
	if err != nil {
		return err
	}
	sel, err := graph.selectModules(defaultModules(), slices.Concat(opts.Modules, opts.Preload))
	if err != nil {
		return err
	}
	a := newArchive(w)
	// PID 1's own descriptors are opened before it can mount /dev: the kernel opens the
	// console, and a Go program needs the null device if there is none.
	if err := a.parents("/dev"); err != nil {
		return err
	}
	if err := errors.Join(a.device("/dev/console", 5, 1), a.device("/dev/null", 1, 3)); err != nil {
		return err
	}
	files := []File{{Path: "/init", Mode: 0o755, Data: opts.Init}}
	for _, dir := range []string{"/proc", "/sys", "/run", "/root", "/mnt"} {
		files = append(files, File{Path: dir, Dir: true})
	}
	files = append(files, File{Path: "/tmp", Dir: true, Mode: 0o1777})
	moduleFiles, err := sel.files(opts.Kernel.Release)
	if err != nil {
		return err
	}
	files = append(files, moduleFiles...)
	if len(opts.Preload) > 0 {
		names := make([]string, len(opts.Preload))
		for i, m := range opts.Preload {
			names[i] = normal(m)
		}
		files = append(files, File{Path: PreloadPath, Data: []byte(strings.Join(names, "\n") + "\n")})
	}
	if opts.Busybox != "" {
		busybox, err := busyboxFiles(ctx, opts.Busybox)
		if err != nil {
			return err
		}
		files = append(files, busybox...)
	}
	files = append(files, baseFiles()...)
	for _, f := range slices.Concat(files, opts.ExtraFiles) {
		if err := a.add(f); err != nil {
			return err
		}
	}
	return a.close()
}

// baseFiles is what programs expect to find in /etc.
func baseFiles() []File {
	return []File{
		{Path: "/etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
		{Path: "/etc/group", Data: []byte("root:x:0:\nnogroup:x:65534:\n")},
		{Path: "/etc/hosts", Data: []byte("127.0.0.1\tlocalhost\n::1\tlocalhost\n")},
		{Path: "/etc/nsswitch.conf", Data: []byte("hosts: files dns\n")},
	}
}

// files are the selected modules where modprobe looks for them, with its index.
func (sel *selected) files(release string) ([]File, error) {
	root := path.Join("/lib/modules", release)
	var files []File
	for _, m := range sel.order {
		name := filepath.ToSlash(sel.graph.files[m])
		for _, ext := range []string{".xz", ".zst", ".gz"} {
			name = strings.TrimSuffix(name, ext)
		}
		sel.graph.files[m] = name // the index names what is in the archive
		files = append(files, File{Path: path.Join(root, name), Data: sel.bytes[m]})
	}
	index, err := sel.index()
	if err != nil {
		return nil, err
	}
	for _, f := range index {
		files = append(files, File{Path: path.Join(root, f.name), Data: f.data})
	}
	return files, nil
}

// busyboxFiles is busybox and a link for each of its applets.
func busyboxFiles(ctx context.Context, busybox string) ([]File, error) {
	applets, err := readBounded(busybox+appletsSuffix, maxAppletBytes)
	if errors.Is(err, fs.ErrNotExist) {
		applets, err = busyboxApplets(ctx, busybox)
	}
	if err != nil {
		return nil, err
	}
	files := []File{{Path: "/bin/busybox", Mode: 0o755, Source: busybox}}
	names := strings.Fields(string(applets))
	sort.Strings(names)
	for _, name := range slices.Compact(names) {
		to := path.Clean("/" + name)
		if to == "/bin/busybox" || strings.HasSuffix(to, "/init") || strings.HasSuffix(to, "/linuxrc") {
			continue // ours
		}
		files = append(files, File{Path: to, Link: "/bin/busybox"})
	}
	return files, nil
}

// archive writes a cpio archive with parents before children, and no name twice.
type archive struct {
	w    *bufio.Writer
	cpio *cpio.Writer
	seen map[string]bool // path → is a directory
}

func newArchive(w io.Writer) *archive {
	b := bufio.NewWriterSize(w, 1<<20)
	return &archive{w: b, cpio: cpio.NewWriter(b), seen: map[string]bool{"/": true}}
}

func (a *archive) add(f File) error {
	name := path.Clean(f.Path)
	if !path.IsAbs(f.Path) || strings.ContainsRune(name, 0) || len(name) >= maxNameBytes {
		return fmt.Errorf("add %q: not an absolute path", f.Path)
	}
	if isDir, ok := a.seen[name]; ok {
		if isDir && f.Dir {
			return nil
		}
		return fmt.Errorf("add %s: it is there already", name)
	}
	if err := a.parents(path.Dir(name)); err != nil {
		return err
	}
	if err := a.write(name, f); err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	return nil
}

func (a *archive) parents(dir string) error {
	if isDir, ok := a.seen[dir]; ok {
		if !isDir {
			return fmt.Errorf("add to %s: it is not a directory", dir)
		}
		return nil
	}
	return a.add(File{Path: dir, Dir: true})
}

func (a *archive) write(name string, f File) error {
	a.seen[name] = f.Dir
	h := &cpio.Header{Name: name[1:], Mode: cpio.FileMode(f.Mode & 0o7777), Links: 1}
	switch {
	case f.Dir:
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.Mode |= cpio.TypeDir
		h.Links = 2
		return a.cpio.WriteHeader(h)
	case f.Link != "":
		h.Mode = 0o777 | cpio.TypeSymlink
		h.Size = int64(len(f.Link))
		return a.body(h, strings.NewReader(f.Link))
	}
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	h.Mode |= cpio.TypeReg
	if f.Source == "" {
		h.Size = int64(len(f.Data))
		return a.body(h, bytes.NewReader(f.Data))
	}
	src, size, err := openSource(f.Source)
	if err != nil {
		return err
	}
	defer src.Close()
	h.Size = size
	return a.body(h, src)
}

func openSource(name string) (*os.File, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func (a *archive) body(h *cpio.Header, r io.Reader) error {
	if h.Size > maxArchiveFileBytes {
		return fmt.Errorf("%d bytes are too many for a cpio archive", h.Size)
	}
	if err := a.cpio.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.CopyN(a.cpio, r, h.Size); err != nil {
		return err
	}
	return a.cpio.Flush()
}

// device adds a character device. The library has no device numbers, so this
// header is written here (Documentation/driver-api/early-userspace/buffer-format.rst):
// magic, inode, mode, uid, gid, nlink, mtime, size, device 2, special device 2, name
// size, check, each of eight hexadecimal digits.
func (a *archive) device(name string, major, minor int) error {
	if err := a.cpio.Flush(); err != nil {
		return err
	}
	a.seen[name] = false
	name = name[1:] + "\x00"
	h := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s",
		deviceInodes+len(a.seen), cpio.TypeChar|0o666, 0, 0, 1, 0, 0, 0, 0, major, minor, len(name), 0, name)
	for len(h)%4 != 0 {
		h += "\x00"
	}
	_, err := a.w.WriteString(h)
	return err
}

// deviceInodes is where the inode numbers of devices start, clear of the library's.
const deviceInodes = 0x4000_0000

func (a *archive) close() error {
	if err := a.cpio.Close(); err != nil {
		return err
	}
	return a.w.Flush()
}

// Initramfs returns the path of the archive that BuildInitramfs would write, from
// the cache if it was built before.
func Initramfs(ctx context.Context, cacheDir string, opts InitramfsOptions) (string, error) {
	p, err := cachedInitramfs(ctx, cacheDir, opts)
	if err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	return p, nil
}

func cachedInitramfs(ctx context.Context, cacheDir string, opts InitramfsOptions) (string, error) {
	if err := opts.complete(); err != nil {
		return "", err
	}
	sum, err := opts.hash()
	if err != nil {
		return "", err
	}
	abs, err := filepath.Abs(cacheDir)
	if err != nil {
		return "", err
	}
	to := filepath.Join(abs, initramfsDir, sum+".cpio")
	if _, err := os.Stat(to); err == nil {
		return to, nil
	}
	err = withCache(ctx, abs, func(temp string) error {
		if _, err := os.Stat(to); err == nil {
			return nil
		}
		from := filepath.Join(temp, "initramfs")
		f, err := os.OpenFile(from, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		err = buildInitramfs(ctx, f, opts)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
		return publish(from, to)
	})
	if err != nil {
		return "", err
	}
	return to, nil
}

// hash names the archive by what is in it. Cache entries do not change, so the
// kernel's name and version stand for its modules, and the path of a busybox in the
// cache, which has its version, for its bytes; all else is hashed whole.
func (o *InitramfsOptions) hash() (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "layout %d\nkernel %q %q %q %q\n", layoutVersion, o.Kernel.Image, o.Kernel.Version, o.Kernel.Release, o.Kernel.ModulesDir)
	fmt.Fprintf(h, "default %q\nmodules %q\npreload %q\n", defaultModules(), o.Modules, o.Preload)
	fmt.Fprintf(h, "init %d\n", len(o.Init))
	h.Write(o.Init)
	if o.Busybox != "" {
		if err := hashSource(h, o.Busybox, strings.Contains(o.Busybox, "/"+toolsDir+"/"+busyboxPackage+"_")); err != nil {
			return "", err
		}
	}
	for _, f := range o.ExtraFiles {
		fmt.Fprintf(h, "file %q %o %v %q %d\n", f.Path, f.Mode, f.Dir, f.Link, len(f.Data))
		h.Write(f.Data)
		if f.Source != "" {
			if err := hashSource(h, f.Source, false); err != nil {
				return "", err
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

func hashSource(h hash.Hash, name string, byName bool) error {
	if byName {
		fmt.Fprintf(h, "source %q\n", name)
		return nil
	}
	f, size, err := openSource(name)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Fprintf(h, "bytes %d\n", size)
	_, err = io.Copy(h, f)
	return err
}
