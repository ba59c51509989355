package lab

import (
	"fmt"
	"strconv"
	"strings"
)

const qemuProgram = "qemu-system-x86_64"

// Names of the agent's ports (docs/guest-agent.md), in the order of their
// descriptors.
var agentPorts = []string{"peervisor.ctl", "peervisor.stdin", "peervisor.stdout", "peervisor.stderr", "peervisor.log"}

// Descriptors that QEMU inherits: the root image, then the ports.
const (
	rootFD      = 3
	firstPortFD = 4
)

// cpuModel: everything that TCG can emulate, so also SVM with nested paging, except
//   - erms: a kernel that has it copies by rep movsb, which TCG executes byte by byte. Nested
//     guests boot in 2/3 of the time without;
//   - la57: makes page walks, and nested ones all the more, longer by a level;
//   - smap, pku: change the translation context at each copy to or from user space.
const cpuModel = "max,+svm,+npt,-erms,-la57,-smap,-pku"

// kernelArgs is the part of the command line that is the same for all lab hosts. TCG
// makes them worthwhile: a register of a timer chip costs more than a millisecond
// of a process.
var kernelArgs = []string{
	"console=ttyS0", "quiet", "panic=-1", // end, rather than hang, after a panic
	"tsc=reliable", "no_timer_check", "nowatchdog", // the TSC is the host's; do not calibrate it against slow timers
	"mitigations=off", "nokaslr", // nobody to hide from
	"cryptomgr.notests", "audit=0", "apparmor=0", "8250.nr_uarts=1", "random.trust_cpu=on",
	"rcupdate.rcu_expedited=1", // loading modules waits for grace periods
	"kvm.halt_poll_ns=0",       // a polling emulated CPU takes time from one that works
}

// machineSpec is what the arguments of one QEMU are made of.
type machineSpec struct {
	name          string
	cpus          int
	memoryMiB     int
	kernel        string // vmlinux: its PVH entry needs no decompression
	initrd        string
	serialLog     string
	shares        []Share
	extraCmdline  []string
	extraQEMUArgs []string
}

// arguments of QEMU, without its name.
func (m machineSpec) arguments() []string {
	args := []string{
		"-name", m.name,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35,hpet=off,vmport=off,smbus=off,sata=off",
		"-accel", "tcg,thread=multi",
		"-cpu", cpuModel,
		"-smp", strconv.Itoa(m.cpus),
		"-m", strconv.Itoa(m.memoryMiB),
		"-kernel", m.kernel,
		"-initrd", m.initrd,
		"-append", m.cmdline(),
		"-chardev", "file,id=serial,path=" + escape(m.serialLog),
		"-serial", "chardev:serial",
		"-add-fd", fmt.Sprintf("fd=%d,set=1", rootFD),
		"-drive", "if=none,id=root,file=/dev/fdset/1,format=raw,snapshot=on,cache=unsafe",
		"-device", "virtio-blk-pci,drive=root,disable-legacy=on",
		"-device", fmt.Sprintf("virtio-serial-pci,max_ports=%d,disable-legacy=on", len(agentPorts)+1),
	}
	for i, name := range agentPorts {
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=port%d,fd=%d", i, firstPortFD+i),
			"-device", fmt.Sprintf("virtserialport,chardev=port%d,name=%s", i, name))
	}
	for i, s := range m.shares {
		readOnly := ""
		if s.ReadOnly {
			readOnly = ",readonly=on"
		}
		args = append(args,
			"-fsdev", fmt.Sprintf("local,id=%s,path=%s,security_model=none,multidevs=remap%s", shareTag(i), escape(s.Source), readOnly),
			"-device", fmt.Sprintf("virtio-9p-pci,fsdev=%s,mount_tag=%s,disable-legacy=on", shareTag(i), shareTag(i)))
	}
	return append(args, m.extraQEMUArgs...)
}

func (m machineSpec) cmdline() string {
	args := append([]string{}, kernelArgs...)
	args = append(args, "peervisor.root=/dev/vda:ext4", "peervisor.hostname="+m.name, "peervisor.net=off")
	return strings.Join(append(args, m.extraCmdline...), " ")
}

// shareTag names share i on both sides.
func shareTag(i int) string { return "share" + strconv.Itoa(i) }

// escape makes a value of QEMU's key=value lists: a comma is written twice.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }
