package main

import (
	"errors"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kernel/init/modload"
)

// newRoot is where the disk of peervisor.root= is mounted before it becomes /.
const newRoot = "/mnt/root"

// deviceWait bounds how long a disk of the command line may take to appear.
const deviceWait = 5 * time.Second

// early are the file systems of the kernel that programs expect, in this order.
var early = []struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}{
	{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
	{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
}

// moved are the mounts that go along into a new root.
var moved = []string{"/proc", "/sys", "/dev", "/run", "/tmp"}

func mountEarly() (faults []error) {
	for _, m := range early {
		_ = os.MkdirAll(m.target, 0o755) // if it failed so does the mount
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil && err != unix.EBUSY {
			faults = append(faults, errors.New("mount "+m.target+": "+err.Error()))
		}
	}
	for link, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, "/dev/"+link); err != nil && !errors.Is(err, os.ErrExist) {
			faults = append(faults, err)
		}
	}
	return faults
}

// mountOne mounts a file system of the command line.
func mountOne(modules *modload.Set, m mountSpec) error {
	explain := func(err error) error {
		return errors.New("mount " + m.source + " on " + m.path + " (" + m.fstype + "): " + err.Error())
	}
	// The kernel would ask modprobe, which need not be there.
	if modules != nil {
		for _, name := range append(modules.Match("fs-"+m.fstype), m.fstype) {
			if modules.Has(name) {
				if err := modules.Load(name); err != nil {
					return explain(err)
				}
			}
		}
	}
	if strings.HasPrefix(m.source, "/dev/") {
		if err := awaitDevice(m.source); err != nil {
			return explain(err)
		}
	}
	if err := os.MkdirAll(m.path, 0o755); err != nil {
		return explain(err)
	}
	var flags uintptr
	if m.readOnly {
		flags |= unix.MS_RDONLY
	}
	data := ""
	if m.fstype == "9p" {
		data = "trans=virtio,version=9p2000.L,msize=262144"
	}
	if err := unix.Mount(m.source, m.path, m.fstype, flags, data); err != nil {
		return explain(err)
	}
	return nil
}

// awaitDevice waits for a device node, by the kernel's announcements.
func awaitDevice(name string) error {
	events, err := listenUevents()
	if err != nil {
		return err
	}
	defer events.close()
	deadline := time.Now().Add(deviceWait)
	for {
		if _, err := os.Stat(name); err == nil {
			return nil
		}
		if !events.wait(deadline) {
			return errors.New("no such device after " + deviceWait.String())
		}
	}
}

// enterRoot makes the mounted newRoot the root of everything. The archive's files stay
// below it for the kernel's own use (modprobe).
func enterRoot(readOnly bool) error {
	for _, dir := range moved {
		target := newRoot + dir
		if !readOnly {
			_ = os.Mkdir(target, 0o755)
		}
		if _, err := os.Stat(target); err != nil {
			continue // a root without it does without it
		}
		if err := unix.Mount(dir, target, "", unix.MS_MOVE, ""); err != nil {
			return errors.New("move " + dir + " into the new root: " + err.Error())
		}
	}
	if err := unix.Chdir(newRoot); err != nil {
		return errors.New("enter the new root: " + err.Error())
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return errors.New("move the new root: " + err.Error())
	}
	if err := unix.Chroot("."); err != nil {
		return errors.New("change the root: " + err.Error())
	}
	return unix.Chdir("/")
}

// unmountAll lets go of every file system, newest first. What is still busy is
// made read-only, which writes it out as well.
func unmountAll() (faults []error) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return []error{err}
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 3 && backed(f[2]) {
			points = append(points, unescape(f[1]))
		}
	}
	for i := len(points) - 1; i >= 0; i-- {
		p := points[i]
		if p != "/" && unix.Unmount(p, 0) == nil {
			continue
		}
		if err := unix.Mount("", p, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil && err != unix.EROFS {
			faults = append(faults, errors.New("unmount "+p+": "+err.Error()))
		}
	}
	return faults
}

// backed tells file systems that have something to lose.
func backed(fstype string) bool {
	switch fstype {
	case "rootfs", "proc", "sysfs", "devtmpfs", "devpts", "tmpfs", "ramfs", "cgroup", "cgroup2", "bpf",
		"debugfs", "tracefs", "securityfs", "mqueue", "hugetlbfs", "configfs", "binfmt_misc":
		return false
	}
	return true
}

// unescape undoes the \ooo of /proc/mounts.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] >= '0' && s[i+1] <= '3' {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return path.Clean(b.String())
}
