package main

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/peervisor/peervisor/kernel"
	"github.com/peervisor/peervisor/kernel/agent/control"
)

func TestOptions(t *testing.T) {
	o, faults := parseOptions(`console=ttyS0 peervisor.root=/dev/vda:ext4:ro peervisor.mount=share:/mnt/x:9p "peervisor.mount=a b:/y:virtiofs:ro" peervisor.net=off peervisor.hostname=box peervisor.time=1700000000 loglevel=7` + "\n")
	want := options{
		root:     &mountSpec{source: "/dev/vda", path: newRoot, fstype: "ext4", readOnly: true},
		mounts:   []mountSpec{{source: "share", path: "/mnt/x", fstype: "9p"}, {source: "a b", path: "/y", fstype: "virtiofs", readOnly: true}},
		hostname: "box", time: 1700000000, verbose: true,
	}
	if !reflect.DeepEqual(o, want) || len(faults) > 0 {
		t.Errorf("%+v, %v", o, faults)
	}
	o, faults = parseOptions("")
	if !reflect.DeepEqual(o, options{net: true, hostname: defaultHostname}) || len(faults) > 0 {
		t.Errorf("empty: %+v, %v", o, faults)
	}
}

func TestBadOptions(t *testing.T) {
	for _, word := range []string{
		"peervisor.root=", "peervisor.root=/dev/vda", "peervisor.root=/dev/vda:ext4:rw", "peervisor.root=:ext4",
		"peervisor.mount=a:b:9p", "peervisor.mount=a:/b", "peervisor.mount=a:/b:9p:rw", "peervisor.net=maybe",
		"peervisor.hostname=", "peervisor.hostname=" + strings.Repeat("x", 65), "peervisor.time=soon", "peervisor.time=-1", "peervisor.time=9999999999999",
	} {
		o, faults := parseOptions(word)
		if len(faults) != 1 || !strings.Contains(faults[0].Error(), word) {
			t.Errorf("%s: %v", word, faults)
		}
		if !reflect.DeepEqual(o, options{net: true, hostname: defaultHostname}) {
			t.Errorf("%s changed %+v", word, o)
		}
	}
}

func TestSplitWords(t *testing.T) {
	if got := splitWords(`a  b="c d" "" "e f"=g` + "\n"); !slices.Equal(got, []string{"a", "b=c d", "", "e f=g"}) {
		t.Errorf("%q", got)
	}
}

func FuzzOptions(f *testing.F) {
	f.Add(`peervisor.root=/dev/vda:ext4 "peervisor.mount=a b:/c:9p:ro" peervisor.time=1`)
	f.Fuzz(func(t *testing.T, line string) {
		o, _ := parseOptions(line)
		if len(o.mounts) > maxMounts || o.hostname == "" {
			t.Fatalf("%+v", o)
		}
	})
}

func TestAppendRecord(t *testing.T) {
	for record, want := range map[string]string{
		"6,339,5140900,-;NET: Registered\n SUBSYSTEM=pci\n DEVICE=x\n": "[    5.140900] NET: Registered\n",
		"12,1,123456000007,-,caller=T1;a;b\n":                          "[123456.000007] a;b\n",
		"6,1,0,-;tab\\x09 and back\\x5cslash \\xzz\n":                  "[    0.000000] tab\t and back\\slash \\xzz\n",
		"garbage":  "",
		"6,1,x,-;": "",
	} {
		if got := string(appendRecord(nil, []byte(record))); got != want {
			t.Errorf("%q: %q, want %q", record, got, want)
		}
	}
}

func FuzzAppendRecord(f *testing.F) {
	f.Add([]byte("6,339,5140900,-;NET: Registered\\x0a\n SUBSYSTEM=pci\n"))
	f.Fuzz(func(t *testing.T, record []byte) {
		if got := appendRecord(nil, record); len(got) > 0 && got[len(got)-1] != '\n' {
			t.Fatalf("%q", got)
		}
	})
}

func TestUnescape(t *testing.T) {
	if got := unescape(`/mnt/a\040b\134c`); got != `/mnt/a b\c` {
		t.Errorf("%q", got)
	}
	if got := unescape(`/x\9`); got != `/x\9` {
		t.Errorf("%q", got)
	}
}

func TestFindPorts(t *testing.T) {
	sys := t.TempDir()
	write := func(name, data string) {
		t.Helper()
		name = filepath.Join(sys, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if hasNamedPorts(sys) {
		t.Error("ports without a device")
	}
	write("class/virtio-ports/vport1p2/name", control.PortCtl+"\n")
	write("class/virtio-ports/vport1p3/number", "")
	write("bus/virtio/drivers/virtio_console/virtio1/features", "1100\n")
	if !hasNamedPorts(sys) {
		t.Error("a device with several ports was not seen")
	}
	if got := findPorts(sys); !reflect.DeepEqual(got, map[string]string{control.PortCtl: "/dev/vport1p2"}) {
		t.Errorf("%v", got)
	}
}

// The archive's maker and init agree on where the list is.
func TestPreloadPath(t *testing.T) {
	if preloadPath != kernel.PreloadPath {
		t.Errorf("%s here, %s there", preloadPath, kernel.PreloadPath)
	}
}
