package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/peervisor/peervisor/kernel"
	"github.com/peervisor/peervisor/kernel/agent"
	"github.com/peervisor/peervisor/lab"
	"github.com/peervisor/peervisor/tests/bench/labguest"
)

// Bench parameters of the lab's experiments.
const (
	labMemoryMiB    = 3072
	labGuestMiB     = 256
	labCommandLimit = 3 * time.Minute
	labWork         = "/tmp/bench" // on the lab host: local copies, in its page cache
	labEntryRounds  = 9
	netSeconds      = 3
	netRounds       = 3
)

// GokvmVersion is what the boot is compared with.
const GokvmVersion = "v0.0.8-0.20231003020000-f53faca69d28"

// guestCmdline is the same for all VMMs; it is what peervisor gives its own guests, and nokaslr,
// which spares a bzImage some work.
const guestCmdline = "console=ttyS0 loglevel=4 panic=-1 reboot=k no_timer_check tsc=reliable 8250.nr_uarts=1 " +
	"i8042.nokbd i8042.noaux i8042.nomux i8042.dumbkbd pci=lastbus=0 random.trust_cpu=on nokaslr"

// Lab is one lab host with all that its experiments need.
type Lab struct {
	host *lab.Host
}

// LabConfig says where things are.
type LabConfig struct {
	CacheDir string
	Binary   string // peervisor
	Temp     string // a directory for what is built
	Progress func(string)
}

// StartLab builds kernels, initramfs and programs, boots a lab host and
// copies them there.
func StartLab(ctx context.Context, cfg LabConfig) (*Lab, error) {
	k, err := kernel.Prepare(ctx, kernel.Options{CacheDir: cfg.CacheDir, Progress: cfg.Progress})
	if err != nil {
		return nil, err
	}
	at := func(name string) string { return filepath.Join(cfg.Temp, name) }
	for _, step := range []func() error{
		func() error { return labguest.StampKernel(k.VmlinuxPath, at("vmlinux")) },
		func() error { return labguest.StampKernel(k.VmlinuzPath, at("vmlinuz")) },
		func() error { return labguest.BuildBootInitrd(ctx, k.InitrdPath, at("boot.cpio")) },
		func() error { return labguest.BuildNetInitrd(k.InitrdPath, at("net.cpio")) },
		func() error {
			return goBuild(ctx, nil, "build", "-o", at("inlab"), "github.com/peervisor/peervisor/tests/bench/inlab")
		},
		func() error {
			return goBuild(ctx, []string{"GOBIN=" + cfg.Temp}, "install", "github.com/bobuhiro11/gokvm@"+GokvmVersion)
		},
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	lc := lab.Config{CacheDir: cfg.CacheDir, Binary: cfg.Binary, MemoryMiB: labMemoryMiB, Progress: cfg.Progress}
	for _, name := range []string{"vmlinux", "vmlinuz", "boot.cpio", "net.cpio", "inlab", "gokvm"} {
		lc.Files = append(lc.Files, lab.File{Source: at(name), Path: "bench/" + name})
	}
	h, err := lab.Start(ctx, lc)
	if err != nil {
		return nil, err
	}
	l := &Lab{host: h}
	if _, err := l.sh(ctx, labSetup); err != nil {
		_ = h.Close()
		return nil, err
	}
	return l, nil
}

// labSetup copies everything to the lab host's own disk, so that all VMMs read from its
// page cache, makes the tools disk, and starts iperf3's server.
var labSetup = fmt.Sprintf(`set -e
libs() { LD_TRACE_LOADED_OBJECTS=1 $1 | grep -o '/[^ ]*'; }
mkdir -p %[1]s; cd %[1]s; cp %[2]s/bench/* %[2]s/bin/peervisor .; chmod 755 inlab gokvm peervisor
mkdir -p tools/bin; p=$(command -v iperf3); cp $p tools/bin
for l in $(libs $p); do mkdir -p tools$(dirname $l); cp -L $l tools$l; done
mke2fs -q -t ext4 -d tools tools.img 64M
iperf3 -s -B 127.0.0.1 -p 5299 -D
q=$(command -v qemu-system-x86_64)
sync; cat vmlinux vmlinuz *.cpio peervisor gokvm $q $(libs $q) $(find -L /usr/share/qemu /usr/share/seabios -name '*.bin' -o -name '*.rom') > /dev/null
`, labWork, lab.FilesDir)

func goBuild(ctx context.Context, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, text)
	}
	return nil
}

// Close ends the lab host.
func (l *Lab) Close() error { return l.host.Close() }

// Kernel is the lab host's release.
func (l *Lab) Kernel() string { return l.host.Kernel() }

func (l *Lab) sh(ctx context.Context, script string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, labCommandLimit)
	defer cancel()
	var out, errOut bytes.Buffer
	st, err := l.host.Exec(ctx, agent.Command{Argv: []string{"sh", "-c", script}, Dir: "/tmp", Stdout: &out, Stderr: &errOut})
	if err != nil {
		return "", fmt.Errorf("on the lab host: %w", err)
	}
	if st.ExitCode() != 0 {
		return "", fmt.Errorf("on the lab host: exit status %d: %s%s", st.ExitCode(), out.String(), errOut.String())
	}
	return out.String(), nil
}

// contender runs a VMM under inlab, which kills it, and removes the state that ours then leaves.
func (l *Lab) contender(name, mode, command string) Contender {
	return Contender{Name: name, Run: func(ctx context.Context) (Metrics, error) {
		out, err := l.sh(ctx, fmt.Sprintf("cd %s; ./inlab %s %s; s=$?; ./peervisor ps -a -q | xargs -r ./peervisor rm -f >/dev/null; exit $s", labWork, mode, command))
		if err != nil {
			return nil, err
		}
		var m Metrics
		if err := json.Unmarshal([]byte(out), &m); err != nil {
			return nil, fmt.Errorf("inlab said %q: %w", out, err)
		}
		return m, nil
	}}
}

// Commands of the VMMs, but for the initramfs and the rest of the command line.
var (
	oursBoot = fmt.Sprintf("./peervisor run --rm --kernel vmlinux -m %dM --serial stdio --console none --rng none", labGuestMiB)
	qemuBoot = fmt.Sprintf("qemu-system-x86_64 -cpu host -m %d -nodefaults -no-user-config -no-reboot -display none -serial stdio -kernel vmlinux", labGuestMiB)
)

const (
	qemuMicrovm    = "-M microvm,accel=kvm,pit=off,pic=off,rtc=off"
	qemuMicrovmPCI = qemuMicrovm + ",pcie=on"
)

// NameGokvm is gokvm's name in tables.
const NameGokvm = "gokvm"

// bootOurs and bootQEMU are the same guest for both.
func bootOurs() string {
	return oursBoot + " --net none --initrd boot.cpio --append '" + guestCmdline + "'"
}

func bootQEMU() string {
	return qemuBoot + " " + qemuMicrovm + " -initrd boot.cpio -append '" + guestCmdline + "'"
}

// Entry measures from exec to the kernel's first instruction.
func (l *Lab) Entry() Experiment {
	return Experiment{
		Name: "lab entry", Rounds: labEntryRounds,
		Contenders: []Contender{l.contender("peervisor", "entry", bootOurs()), l.contender("QEMU microvm", "entry", bootQEMU())},
		Figures:    []Figure{{Metric: "entry_s", Title: "exec to guest entry, guests stopped there", Unit: "s", SmallerIsBetter: true, Goal: 0.5}},
	}
}

// Boot measures the way of a Debian kernel to user space. Its figures are BootFigures.
func (l *Lab) Boot() Experiment {
	return Experiment{
		Name: "lab boot",
		Contenders: []Contender{
			l.contender("peervisor", "boot", bootOurs()),
			l.contender("QEMU microvm", "boot", bootQEMU()),
			l.contender(NameGokvm, "boot", fmt.Sprintf("./gokvm boot -k vmlinuz -i boot.cpio -m %dM -c 1 -p '%s'", labGuestMiB, guestCmdline)),
		},
	}
}

// BootFigures are those against QEMU, and those against gokvm.
func BootFigures() (qemu, gokvm []Figure) {
	seconds := func(metric, title string, goal float64) Figure {
		return Figure{Metric: metric, Title: title, Unit: "s", SmallerIsBetter: true, Goal: goal}
	}
	all := seconds("all_s", "exec to init", 1)
	exits := Figure{Metric: "exits", Title: "exits to user space, entry to init", Unit: "number", SmallerIsBetter: true}
	qemu = []Figure{seconds("entry_s", "exec to guest entry, between whole boots", 0.5), seconds("init_s", "entry to init", 0), all, exits}
	all.Goal = 0.4
	gokvm = []Figure{seconds("entry_s", "exec to guest entry", 0), seconds("init_s", "entry to init; gokvm's guest unpacks its bzImage", 0), all, exits}
	return qemu, gokvm
}

// Default measures the whole of `peervisor run -- CMD` as it comes.
func (l *Lab) Default() Experiment {
	return Experiment{
		Name:       "lab default",
		Contenders: []Contender{l.contender("peervisor", "output", "./peervisor run --rm -- echo x")},
		Figures:    []Figure{{Metric: "all_s", Title: "peervisor run -- echo x: exec to its output", Unit: "s", SmallerIsBetter: true}},
	}
}

// Net measures user-mode TCP with iperf3.
func (l *Lab) Net() Experiment {
	append := fmt.Sprintf("'%s bench.seconds=%d'", guestCmdline, netSeconds)
	rate := func(metric, title string) Figure {
		return Figure{Metric: metric, Title: title, Unit: "Mbit/s", Scale: 1e6, Goal: 2}
	}
	return Experiment{
		Name: "lab net", Rounds: netRounds,
		Contenders: []Contender{
			l.contender("peervisor", "net", oursBoot+" --net user,hostaccess --disk tools.img,readonly --initrd net.cpio --append "+append),
			l.contender("QEMU microvm", "net", qemuBoot+" "+qemuMicrovmPCI+" -netdev user,id=n -device virtio-net-pci,netdev=n,romfile="+
				" -drive id=d,file=tools.img,format=raw,if=none,readonly=on -device virtio-blk-pci,drive=d -initrd net.cpio -append "+append),
		},
		Figures: []Figure{rate("out", "user-mode TCP, guest to host"), rate("in", "user-mode TCP, host to guest")},
	}
}
