package lab

import (
	"slices"
	"strings"
	"testing"
)

func TestArguments(t *testing.T) {
	m := machineSpec{
		name: "lab", cpus: 3, memoryMiB: 2048, kernel: "/c/vmlinux", initrd: "/c/initrd", serialLog: "/run/a,b/serial.log",
		shares: []Share{{Source: "/files", Target: FilesDir, ReadOnly: true, Cached: true}, {Source: "/home/x,y", Target: "/work"}},
	}
	args := m.arguments()
	for _, want := range []string{
		"-smp 3", "-m 2048", "-kernel /c/vmlinux", "-initrd /c/initrd", "-no-reboot", "-nodefaults",
		"-chardev file,id=serial,path=/run/a,,b/serial.log",
		"-add-fd fd=3,set=1",
		"-chardev socket,id=port0,fd=4", "-device virtserialport,chardev=port0,name=peervisor.ctl",
		"-chardev socket,id=port4,fd=8", "-device virtserialport,chardev=port4,name=peervisor.log",
		"-fsdev local,id=share0,path=/files,security_model=none,multidevs=remap,readonly=on",
		"-fsdev local,id=share1,path=/home/x,,y,security_model=none,multidevs=remap",
		"-device virtio-9p-pci,fsdev=share1,mount_tag=share1,disable-legacy=on",
	} {
		option, value, _ := strings.Cut(want, " ")
		found := value == "" && slices.Contains(args, option)
		for i := 1; i < len(args); i++ {
			found = found || args[i-1] == option && args[i] == value
		}
		if !found {
			t.Errorf("no %q in %q", want, args)
		}
	}
	line := " " + m.cmdline() + " "
	for _, want := range []string{"peervisor.root=/dev/vda:ext4", "peervisor.hostname=lab", "peervisor.net=off", "console=ttyS0"} {
		if !strings.Contains(line, " "+want+" ") {
			t.Errorf("no %q in %q", want, line)
		}
	}
}

func TestMountTable(t *testing.T) {
	shares := []Share{{Target: FilesDir, ReadOnly: true, Cached: true}, {Target: "/a b/c"}}
	want := "share0 /opt/peervisor 9p " + p9Options + ",cache=loose,ro 0 0\n" +
		"share1 /a\\040b/c 9p " + p9Options + ",cache=mmap 0 0\n"
	if got := mountTable(shares); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := missingTargets(shares); !slices.Equal(got, []string{"/a b/c"}) {
		t.Errorf("missing targets: %q", got)
	}
}
