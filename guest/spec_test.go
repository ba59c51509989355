package guest

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestParseDisk(t *testing.T) {
	good := map[string]DiskSpec{
		"root.img":                          {Path: "root.img", Queues: 1},
		"path=root.img,readonly,id=root":    {Path: "root.img", ReadOnly: true, ID: "root", Queues: 1},
		"a.img,snapshot,queues=4":           {Path: "a.img", Snapshot: true, Queues: 4},
		"/dev/sdb,direct,serial=S1":         {Path: "/dev/sdb", Direct: true, Serial: "S1", Queues: 1},
		"path=with,,comma.img,readonly=off": {Path: "with,comma.img", Queues: 1},
		"./k=v.img":                         {Path: "./k=v.img", Queues: 1},
		"path=x,format=raw":                 {Path: "x", Raw: true, Queues: 1},
	}
	for spec, want := range good {
		if got, err := ParseDisk(spec); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", spec, got, err, want)
		}
	}
	bad := map[string]string{
		"":                                   "empty",
		"readonly":                           "", // a file of that name: the first value is the path
		"path=":                              "needs a value",
		"path=a,readonly,snapshot":           "exclude each other",
		"a.img,format=qcow2":                 "qemu-img convert -O raw",
		"a.img,nosuch=1":                     "does not know the key",
		"a.img,queues=0":                     "from 1 to 64",
		"a.img,readonly=maybe":               "on or off",
		"a.img,serial=123456789012345678901": "room for 20",
		"a.img,id=../x":                      "letters, digits",
		"a.img,path=b.img":                   "twice",
		"a.img,,":                            "",
		"a\nb":                               "control character",
	}
	for spec, want := range bad {
		_, err := ParseDisk(spec)
		if want == "" {
			continue
		}
		var se *SpecError
		if !errors.As(err, &se) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want an error with %q", spec, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: the error has several lines: %q", spec, err)
		}
	}
}

func TestParseNet(t *testing.T) {
	n, err := ParseNet("user,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp::53-:53,mac=52:54:00:12:34:56")
	if err != nil || !n.User || !reflect.DeepEqual(n.HostFwd, []string{"tcp:127.0.0.1:2222-:22", "udp::53-:53"}) {
		t.Errorf("%+v, %v", n, err)
	}
	if n, err := ParseNet("tap=vnet0,bridge=br0,mtu=9000"); err != nil || n.Tap != "vnet0" || n.Bridge != "br0" || n.MTU != 9000 {
		t.Errorf("%+v, %v", n, err)
	}
	for spec, want := range map[string]string{
		"user,tap=x": "exactly one", "mac=52:54:00:12:34:56": "exactly one", "tap=x,hostaccess": "belong to user",
		"user,bridge=b": "belongs to tap", "user,mac=ff:ff:ff:ff:ff:ff": "unicast", "user,mtu=1": "from 68", "usr": "exactly one|does not know",
	} {
		_, err := ParseNet(spec)
		ok := false
		for _, w := range strings.Split(want, "|") {
			ok = ok || err != nil && strings.Contains(err.Error(), w)
		}
		if !ok {
			t.Errorf("%s: %v; want %q", spec, err, want)
		}
	}
}

func TestParsePortAndRNG(t *testing.T) {
	if p, err := ParsePort("serial", "file=/tmp/x"); err != nil || p.Kind != PortFile || p.File != "/tmp/x" {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := ParsePort("console", "stdio,pty"); err == nil || !strings.Contains(err.Error(), "exactly one") {
		t.Errorf("stdio,pty: %v", err)
	}
	if r, err := ParseRNG("path=/dev/hwrng,rate=64K"); err != nil || r.RateBytes != 64<<10 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := ParseRNG("host,none"); err == nil {
		t.Error("host,none was taken")
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]uint64{"512M": 512 << 20, "1G": 1 << 30, "4096": 4096, "2GiB": 2 << 30, "64k": 64 << 10, "1T": 1 << 40} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "M", "-1M", "1X", "1.5G", "99999999999999999999", "9000000T", "1MM", "0x10"} {
		if n, err := ParseSize(s); err == nil {
			t.Errorf("%q was taken as %d", s, n)
		}
	}
}

func TestConfigFillIsIdempotentAndRefuses(t *testing.T) {
	c := Config{Nets: []NetSpec{{User: true}}, Disks: []DiskSpec{{Path: "a"}, {Path: "b"}}}
	if err := c.fill(); err != nil {
		t.Fatal(err)
	}
	d := c
	if err := d.fill(); err != nil || !reflect.DeepEqual(c, d) {
		t.Errorf("a second fill changed it: %v", err)
	}
	if c.Disks[1].ID != "disk1" || c.Nets[0].MAC == "" || c.Serial.Kind != PortLog {
		t.Errorf("defaults: %+v", c)
	}
	for name, c := range map[string]Config{
		"cpus":      {CPUs: 65},
		"memory":    {MemoryBytes: 1 << 20},
		"odd":       {MemoryBytes: 64<<20 + 1},
		"name":      {Name: "a/b"},
		"same id":   {Disks: []DiskSpec{{Path: "a", ID: "x"}, {Path: "b", ID: "x"}}},
		"command":   {Kernel: "/boot/vmlinux", Command: &Command{Argv: []string{"ls"}}},
		"devices":   {Disks: make([]DiskSpec, 40)},
		"two stdio": {Kernel: "k", Console: PortSpec{Kind: PortStdio}, Serial: PortSpec{Kind: PortStdio}},
		"transport": {Transport: "usb"},
	} {
		if err := c.fill(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzSpec(f *testing.F) {
	for _, s := range []string{"root.img", "path=a,readonly", "user,hostfwd=tcp::1-:2", "tap=x,bridge=y", "file=/x", "host,rate=1K", ",,,", "=", "a=,b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		check := func(err error) {
			if err != nil && strings.ContainsAny(err.Error(), "\n\r\x1b") {
				t.Errorf("%q: the error carries control characters: %q", s, err)
			}
		}
		_, err := ParseDisk(s)
		check(err)
		_, err = ParseNet(s)
		check(err)
		_, err = ParsePort("serial", s)
		check(err)
		_, err = ParseRNG(s)
		check(err)
		_, _ = ParseSize(s)
	})
}
