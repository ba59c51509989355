package lab_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// TestBootMatrix boots both of Debian's flavours over pci with 1, 2 and 4 vCPUs and 256 MiB to 6 GiB.
func TestBootMatrix(t *testing.T) {
	for _, c := range []struct {
		pkg    string
		cpus   int
		memory string
		mib    int
	}{
		{"", 1, "256M", 256},
		{"", 2, "1G", 1024},
		{"", 4, "6G", 6144},
		{"deb:" + fullKernel, 1, "6G", 6144},
		{"deb:" + fullKernel, 2, "256M", 256},
		{"deb:" + fullKernel, 4, "4G", 4096},
	} {
		name := fmt.Sprintf("%s/%d/%s", orCloud(c.pkg), c.cpus, c.memory)
		t.Run(name, func(t *testing.T) {
			kernel := ""
			if c.pkg != "" {
				kernel = "--kernel " + c.pkg
			}
			out := mustSh(t, fmt.Sprintf(`peervisor run --rm %s --cpus %d --memory %s -- sh -c '
				uname -r; nproc; grep MemTotal /proc/meminfo; ls /sys/bus/virtio/devices | wc -l
				cat /sys/devices/system/clocksource/clocksource0/current_clocksource
				cat /sys/module/virtio_pci/parameters/force_legacy 2>/dev/null; grep -c PCI-MSI /proc/interrupts'`, kernel, c.cpus, c.memory))
			lines := strings.Split(strings.TrimSpace(out), "\n")
			if len(lines) < 6 {
				t.Fatalf("output:\n%s", out)
			}
			if cloud := strings.Contains(lines[0], "cloud"); cloud != (c.pkg == "") {
				t.Errorf("kernel %s", lines[0])
			}
			if lines[1] != strconv.Itoa(c.cpus) {
				t.Errorf("%s processors, want %d", lines[1], c.cpus)
			}
			kib, err := strconv.Atoi(strings.Fields(lines[2])[1])
			if err != nil || kib > c.mib*1024 || kib < c.mib*1024*3/4 {
				t.Errorf("%s for %d MiB of RAM", lines[2], c.mib)
			}
			if lines[3] != "3" { // net, rng, console
				t.Errorf("%s virtio devices, want 3", lines[3])
			}
			if lines[4] != "kvm-clock" && lines[4] != "tsc" {
				t.Errorf("clock source %s", lines[4])
			}
		})
	}
}

func orCloud(pkg string) string {
	if pkg == "" {
		return "cloud"
	}
	return "full"
}

// ownKernel is a kernel and an initrd of the user's own, with a shell on the console.
const ownKernel = `cache=/var/cache/peervisor; [ -n "$PEERVISOR_CACHE" ] && cache=$PEERVISOR_CACHE
	own="--rm --net none --kernel $(ls -d $cache/kernels/linux-image-cloud-amd64_*/vmlinux | tail -1) --initrd $(ls -t $cache/initramfs/*.cpio | tail -1)"
`

// TestOwnKernel boots a kernel file with an initrd and a command line: the serial line, or
// hvc0, is the terminal; reboots keep the guest, and a power-off ends it with 0.
func TestOwnKernel(t *testing.T) {
	labHost(t)
	tm := sit(t, "sh", "-c", ownKernel+`exec peervisor run $own --append "console=ttyS0 loglevel=1 panic=-1 reboot=k own=1"`)
	tm.see("# ")
	tm.enter("uname -r; cat /proc/cmdline\r")
	tm.see("cloud-amd64")
	tm.see("own=1")
	tm.enter("reboot -f\r")
	tm.see("Restarting system")
	tm.see("# ")
	tm.enter("echo booted ag\"\"ain; poweroff -f\r")
	tm.see("booted again")
	if code := tm.leave(); code != 0 {
		t.Errorf("exit status %d", code)
	}
	tm = sit(t, "sh", "-c", ownKernel+`exec peervisor run $own --no-reboot --append "console=hvc0 loglevel=1 panic=-1 reboot=k" --console stdio`)
	tm.see("# ")
	tm.enter("echo on $(cat /sys/class/tty/console/active)\r")
	tm.see("on hvc0")
	tm.enter("reboot -f\r")
	if code := tm.leave(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// TestEndsAreToldApart: power-off, reboot, panic and triple fault each have their exit status.
func TestEndsAreToldApart(t *testing.T) {
	for _, c := range []struct {
		name, flags, script string
		code                int
		stderr              string
	}{
		{"status", "", "exit 3", 3, ""},
		{"signal", "", "kill -9 $$", 137, ""},
		{"panic", "", "echo c > /proc/sysrq-trigger; sleep 60", 120, "sysrq triggered crash"},
		{"power-off", "", "poweroff -f; sleep 60", 123, "poweroff"},
		{"reboot", "", "reboot -f; sleep 60", 123, "reset"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := sh(t, fmt.Sprintf("peervisor run --rm --net none %s -- sh -c '%s'", c.flags, c.script))
			if r.code != c.code || !strings.Contains(r.stderr, c.stderr) {
				t.Errorf("exit status %d, want %d; stderr %q, want %q", r.code, c.code, r.stderr, c.stderr)
			}
			if n := strings.Count(r.stderr, "\n"); n > 1 {
				t.Errorf("%d lines on standard error:\n%s", n, r.stderr)
			}
		})
	}
	t.Run("triple fault", func(t *testing.T) {
		// reboot=t makes Linux triple fault in place of a reset.
		r := sh(t, "peervisor run --rm --net none --append reboot=t -- sh -c 'reboot -f; sleep 60'")
		if r.code != 121 || !strings.Contains(r.stderr, "triple") {
			t.Errorf("exit status %d, %q", r.code, r.stderr)
		}
	})
	for _, c := range []struct {
		cmd  string
		code int
	}{{"nosuchcommand", 127}, {"/etc/passwd", 126}, {"/dev", 126}} {
		if r := sh(t, "peervisor run --rm --net none -- "+c.cmd); r.code != c.code || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%s: exit status %d, want %d; %q", c.cmd, r.code, c.code, r.stderr)
		}
	}
}
