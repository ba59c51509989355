package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/tests/bench"
)

const bareText = `## The bare guest on /dev/kvm

Repeat: ` + "`make bench` (or `go run ./tests/bench/run -only bare -rounds %d -seconds %d`)" + `. All boot the same file, which
` + "`kernel/bare`" + ` builds, with the same command line; disks are the same cached 256 MiB file over virtio-mmio. Entry is the time from
before fork and exec to the arrival of the byte that the guest's first instructions write to COM1. Memory is the resident pages of
every mapping but the guest's RAM, 1.5 s after entry, while the guest reads from its disk. "peervisor run" is the binary as users run
it, with its state directory and control socket; the rest is measured with ` + "`tests/bench/machine`" + `, package vmm alone.
Rounds are interleaved; of several references the best one counts.

`

func bareSection(o options, outcomes []bench.Outcome, parts, load string) string {
	var b strings.Builder
	fmt.Fprintf(&b, bareText, o.rounds, o.seconds)
	fmt.Fprintf(&b, "Measured %s on %s; %d rounds (entry 20), load average %s.\n\n", today(), host(), o.rounds, load)
	b.WriteString(bench.Table(outcomes))
	if parts != "" {
		fmt.Fprintf(&b, "\nThe resident memory of `peervisor run` outside the guest's RAM, in the last round: %s. The file is the program, as far as\n"+
			"it is used after the start (what only the start needed is given back a second after it); anonymous memory is Go's heap and runtime.\n", parts)
	}
	return b.String()
}

const bootText = `## Debian's kernel in the lab: boot

Repeat: ` + "`make bench` (or `go run ./tests/bench/run -only \"lab entry,lab boot,lab default\" -rounds %d`)" + `. One lab host (emulated, 2 processors), in it guests with
Debian's cloud kernel, 1 vCPU and 256 MiB, the same initramfs and the same command line (` + "`tests/bench/lab.go`" + `), a serial line and no other
devices. The same stopwatch (` + "`tests/bench/inlab`" + `) serves all. The kernel has a few bytes added that write a byte to COM1 before its very
first instruction: that is guest entry, firmware and loading included. PID 1's first system calls write another one: init. Exits to user space
are the kernel's event kvm_userspace_exit between the two. QEMU is 7.2, -M microvm without PIC, PIT and RTC, booting the vmlinux by PVH as we do;
gokvm is %s and boots the bzImage, which unpacks itself in the guest. Times are inflated by the emulation; ratios count.

`

func bootSection(o options, outcomes []bench.Outcome, load string) string {
	return fmt.Sprintf(bootText, o.rounds, bench.GokvmVersion) +
		fmt.Sprintf("Measured %s, lab on %s; %d rounds (the first table line 9), load average %s.\n\n", today(), host(), o.rounds, load) + bench.Table(outcomes)
}

const netText = `## Debian's kernel in the lab: user-mode network

Repeat: ` + "`make bench` (or `go run ./tests/bench/run -only \"lab net\"`)" + `. The same lab host, kernel and guests as above, with a network device and a disk
(iperf3) over virtio-pci: ours with ` + "`--net user,hostaccess`" + `, QEMU's microvm with pcie=on and -netdev user. iperf3 connects to a server on
the lab host's loopback, 3 s each way; the receiver's rate counts.

`

func netSection(outcomes []bench.Outcome, load string) string {
	return netText + fmt.Sprintf("Measured %s, lab on %s; %d rounds, load average %s.\n\n", today(), host(), outcomes[0].Experiment.Rounds, load) + bench.Table(outcomes)
}

func today() string { return time.Now().UTC().Format("2006-01-02") }

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(b), " ")
	return one
}

// host is the kernel's version without what its builder added, the processors, and the kind of KVM.
func host() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "an unknown kernel"
	}
	var major, minor int
	_, _ = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	n := 0
	if entries, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*"); err == nil {
		n = len(entries)
	}
	module := "kvm_intel or kvm_amd"
	if _, err := os.Stat("/sys/module/kvm_pvm"); err == nil {
		module = "kvm_pvm, which emulates ring 0"
	}
	return fmt.Sprintf("Linux %d.%d, %d processors, %s", major, minor, n, module)
}
