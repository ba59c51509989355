package lab

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/peervisor/peervisor/kernel/agent"
)

// p9Options for all shares. msize is the largest message that QEMU's 9p takes over
// virtio without splitting.
const p9Options = "trans=virtio,version=9p2000.L,msize=512000"

// madeTargets are mount points that the image has.
var madeTargets = []string{FilesDir, ResultsMount, "/var/cache/peervisor", "/work", "/mnt"}

// setUp mounts the shares, by few processes: each costs an emulated CPU 50 ms.
func (h *Host) setUp(ctx context.Context) error {
	if dirs := missingTargets(h.cfg.Shares); len(dirs) > 0 {
		if err := h.setUpCommand(ctx, "", append([]string{"/bin/busybox", "mkdir", "-p", "--"}, dirs...)...); err != nil {
			return err
		}
	}
	if err := h.setUpCommand(ctx, mountTable(h.cfg.Shares), "/bin/busybox", "mount", "-a", "-T", "/dev/stdin"); err != nil {
		return err
	}
	return h.setUpCommand(ctx, "", "/bin/sh", "-c", keepVirtualMachine)
}

// keepVirtualMachine holds one empty virtual machine open for the host's life. Without
// it the last guest's end switches SVM off on every processor and the next guest
// switches it on; QEMU 7.2's multi-threaded emulation then sometimes leaves processors
// that take interrupts and run nothing else (the kernel reports RCU stalls): within 3 to
// 5 kills of a guest in two loops out of two with two processors. With it, 19 went well.
const keepVirtualMachine = `[ -e /dev/kvm ] || exit 0
setsid perl -e 'use Fcntl; sysopen(my $kvm, "/dev/kvm", O_RDWR) or exit 1; defined(ioctl($kvm, 0xAE01, 0)) or exit 1; sleep 1000000 while 1' </dev/null >/dev/null 2>&1 &
`

func (h *Host) setUpCommand(ctx context.Context, stdin string, argv ...string) error {
	var output bytes.Buffer
	status, err := h.Exec(ctx, agent.Command{Argv: argv, Stdin: strings.NewReader(stdin), Stdout: &output, Stderr: &output})
	if err != nil {
		return fmt.Errorf("set up lab host: %w", err)
	}
	if status.ExitCode() != 0 {
		return fmt.Errorf("set up lab host: exit status %d: %s", status.ExitCode(), strings.TrimSpace(output.String()))
	}
	return nil
}

func missingTargets(shares []Share) (dirs []string) {
next:
	for _, s := range shares {
		for _, made := range madeTargets {
			if s.Target == made {
				continue next
			}
		}
		dirs = append(dirs, s.Target)
	}
	return dirs
}

// tableEscape writes what separates fields of fstab(5) as it wants it.
var tableEscape = strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`, "#", `\043`)

// mountTable has a line of fstab(5) for each share, in order.
func mountTable(shares []Share) string {
	var b strings.Builder
	for i, s := range shares {
		// mmap: files are read and written through, as programs expect of a directory
		// that two machines use, but can be mapped. loose: the page cache is believed.
		options := p9Options + ",cache=mmap"
		if s.Cached {
			options = p9Options + ",cache=loose"
		}
		if s.ReadOnly {
			options += ",ro"
		}
		fmt.Fprintf(&b, "%s %s 9p %s 0 0\n", shareTag(i), tableEscape.Replace(s.Target), options)
	}
	return b.String()
}
