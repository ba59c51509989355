package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/peervisor/peervisor/kernel"
)

// rootBytes is the size of the root file system that a lab host sees. The file is
// sparse; what a host writes goes to its overlay.
const rootBytes = 8 << 30

// notUnpacked is never looked at in a lab host.
var notUnpacked = []string{"./usr/share/doc", "./usr/share/man", "./usr/share/info", "./usr/share/locale", "./usr/share/icons"}

// skeleton is what maintainer scripts would have made. They do not run: the
// packages are unpacked, not installed.
var skeleton = map[string]string{
	"etc/passwd": "root:x:0:0:root:/root:/bin/bash\n" +
		"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"etc/group":         "root:x:0:\ntty:x:5:\ndisk:x:6:\nkvm:x:104:\nnogroup:x:65534:\n",
	"etc/hosts":         "127.0.0.1 localhost\n::1 localhost\n",
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	"etc/fstab":         "",
	"root/.bashrc":      "PS1='lab:\\w\\$ '\n",
}

// makeRoot makes the tree of the root file system from package files.
func makeRoot(ctx context.Context, root string, debs []string, k *kernel.Kernel) error {
	// The merged /usr, which packages of Debian 12 count on.
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", dir), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+dir, filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for _, deb := range debs {
		g.Go(func() error { return unpackDeb(gctx, deb, root) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := writeSkeleton(root); err != nil {
		return err
	}
	if err := linkModules(root, k); err != nil {
		return err
	}
	if err := linkBusybox(ctx, root); err != nil {
		return err
	}
	// Without it the loader looks through directories at each start of a program.
	// It needs root (it uses chroot), and everything works without it.
	_, _ = runTool(ctx, root, "ldconfig", "-r", root)
	return ctx.Err()
}

// unpackDeb unpacks one package into root, which others may do at the same time.
func unpackDeb(ctx context.Context, deb, root string) error {
	dpkg, err := findTool("dpkg-deb")
	if err != nil {
		return err
	}
	args := []string{"-C", root, "-x", "-p", "--keep-directory-symlink"}
	for _, dir := range notUnpacked {
		args = append(args, "--exclude="+dir)
	}
	from := exec.CommandContext(ctx, dpkg, "--fsys-tarfile", deb)
	to := exec.CommandContext(ctx, "tar", args...)
	var fromErr, toErr bytes.Buffer
	from.Stderr, to.Stderr = &fromErr, &toErr
	if to.Stdin, err = from.StdoutPipe(); err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
	}
	if err := from.Start(); err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
	}
	err = to.Run()
	// tar stops at the end of the archive, which need not be the end of the pipe; an
	// unhappy dpkg-deb comes with an unhappy tar or a short archive.
	if ferr := from.Wait(); ferr != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(deb), toolError(ctx, "dpkg-deb", ferr, fromErr.Bytes()))
	}
	if err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(deb), toolError(ctx, "tar", err, toErr.Bytes()))
	}
	return nil
}

func writeSkeleton(root string) error {
	mountPoints := slices.Clone(madeTargets)
	for _, dir := range append(mountPoints, "/proc", "/sys", "/dev", "/run", "/tmp", "/etc", "/root", "/var/tmp") {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"tmp", "var/tmp"} {
		if err := os.Chmod(filepath.Join(root, dir), 0o777|fs.ModeSticky); err != nil {
			return err
		}
	}
	// Not busybox's shell, which takes its own programs for those of the packages.
	if !inPath(root, "sh") {
		if err := os.Symlink("dash", filepath.Join(root, "usr", "bin", "sh")); err != nil {
			return err
		}
	}
	for name, content := range skeleton {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// linkModules makes the kernel's modules part of root. The tree only lives until the
// image is written, so hard links do.
func linkModules(root string, k *kernel.Kernel) error {
	to := filepath.Join(root, "lib", "modules", k.Release)
	err := filepath.WalkDir(k.ModulesDir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(k.ModulesDir, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		return os.Link(p, filepath.Join(to, rel))
	})
	if err != nil {
		return fmt.Errorf("add kernel modules: %w", err)
	}
	return nil
}

// linkBusybox fills the gaps of the command line with busybox. modprobe is always
// busybox's: kmod's wants an index that only depmod makes.
func linkBusybox(ctx context.Context, root string) error {
	// The static busybox of the packages runs here as well as there.
	out, err := runTool(ctx, root, filepath.Join(root, "bin", "busybox"), "--list-full")
	if err != nil {
		return fmt.Errorf("list busybox's programs: %w", err)
	}
	for _, name := range strings.Fields(string(out)) {
		if !filepath.IsLocal(name) {
			return fmt.Errorf("list busybox's programs: unexpected name %q", name)
		}
		base := filepath.Base(name)
		file := filepath.Join(root, name)
		if base == "modprobe" {
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		} else if inPath(root, base) {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("/bin/busybox", file); err != nil {
			return err
		}
	}
	return nil
}

func inPath(root, program string) bool {
	for _, dir := range []string{"usr/bin", "usr/sbin"} {
		if _, err := os.Lstat(filepath.Join(root, dir, program)); err == nil {
			return true
		}
	}
	return false
}

// makeFileSystem writes root as an ext4 image. No compression, journal or
// checksums: reading it costs an emulated processor as little as possible.
func makeFileSystem(ctx context.Context, root, file string) error {
	_, err := runTool(ctx, root, "mke2fs", "-q", "-t", "ext4", "-L", "lab", "-m", "0",
		"-O", "^has_journal,^metadata_csum,^64bit,^resize_inode",
		"-E", "lazy_itable_init=1,root_owner=0:0",
		"-d", root, file, fmt.Sprintf("%dk", rootBytes>>10))
	return err
}
