package guest

import (
	"fmt"
	"runtime"
)

// Config is all that makes one guest, as the command line or a program gives it.
// It is stored in the guest's state directory as JSON.
type Config struct {
	// Name is unique among the guests of one state directory. Empty: one is made up.
	Name string `json:"name"`
	// UUID names the guest over its whole life, on any machine. Empty: a new one.
	UUID string `json:"uuid"`
	// CPUs is the number of virtual processors, 1 to 64. 0: 1.
	CPUs int `json:"cpus"`
	// MemoryBytes is the guest's RAM, at least 16 MiB, whole MiB. 0: 512 MiB.
	MemoryBytes uint64 `json:"memoryBytes"`
	// Kernel is a kernel file, or "deb:PACKAGE" for a fetched one. Empty: the
	// default fetched kernel.
	Kernel string `json:"kernel,omitempty"`
	// Initrd is an initramfs file. Empty: with a fetched kernel the built-in one,
	// with a kernel file none.
	Initrd string `json:"initrd,omitempty"`
	// Append is added to the kernel command line.
	Append string `json:"append,omitempty"`
	// Disks, Nets: in the order in which the guest sees them.
	Disks []DiskSpec `json:"disks,omitempty"`
	Nets  []NetSpec  `json:"nets,omitempty"`
	// Console and Serial say where hvc0 and ttyS0 lead. Zero: see PortSpec.
	Console PortSpec `json:"console"`
	Serial  PortSpec `json:"serial"`
	RNG     RNGSpec  `json:"rng"`
	// Transport is "pci" (default) or "mmio".
	Transport string `json:"transport,omitempty"`
	// Command runs in the built-in initramfs. nil: with it, a shell.
	Command *Command `json:"command,omitempty"`
	// NoReboot ends the guest when it reboots.
	NoReboot bool `json:"noReboot,omitempty"`
	// Remove deletes the guest's state when it ended.
	Remove bool `json:"remove,omitempty"`
	// CacheDir holds fetched kernels and initramfs images.
	CacheDir string `json:"cacheDir,omitempty"`
}

// Command is what runs in a guest with the built-in initramfs.
type Command struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
	// TTY gives the command a terminal.
	TTY  bool `json:"tty"`
	Rows int  `json:"rows,omitempty"`
	Cols int  `json:"cols,omitempty"`
}

// DiskSpec is a virtio-blk device on a raw file or block device.
type DiskSpec struct {
	Path string `json:"path"`
	// ID names the device. Empty: disk0, disk1, …
	ID string `json:"id"`
	// Serial is what the guest sees in /dev/disk/by-id, at most 20 bytes. Empty: the ID.
	Serial   string `json:"serial,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	// Snapshot keeps writes in a throw-away overlay.
	Snapshot bool `json:"snapshot,omitempty"`
	// Direct opens the file with O_DIRECT.
	Direct bool `json:"direct,omitempty"`
	// Raw says that the file is raw whatever it looks like (format=raw). Without
	// it a file that starts like another image format is refused.
	Raw bool `json:"raw,omitempty"`
	// Queues is the number of virtqueues. Default 1.
	Queues int `json:"queues,omitempty"`
}

// NetSpec is a virtio-net device: exactly one of User, Tap and None.
type NetSpec struct {
	User bool   `json:"user,omitempty"`
	Tap  string `json:"tap,omitempty"`
	// None asks for no network device, not even the default one.
	None   bool   `json:"none,omitempty"`
	Bridge string `json:"bridge,omitempty"`
	ID     string `json:"id"`
	// MAC is made from the guest's UUID and the device's place if empty.
	MAC        string   `json:"mac,omitempty"`
	MTU        int      `json:"mtu,omitempty"`
	HostFwd    []string `json:"hostfwd,omitempty"`
	HostAccess bool     `json:"hostAccess,omitempty"`
	Restrict   bool     `json:"restrict,omitempty"`
}

// PortKind says where a console or serial line leads.
type PortKind string

// The kinds. The zero value is chosen by Config.fill: with the built-in
// initramfs both lead to the log; with a kernel of the user's own the serial
// line leads to stdio and there is no virtio console.
const (
	PortStdio  PortKind = "stdio"
	PortLog    PortKind = "log"
	PortNone   PortKind = "none"
	PortPTY    PortKind = "pty"
	PortFile   PortKind = "file"
	PortSocket PortKind = "socket"
)

// PortSpec is the far end of a console or serial line.
type PortSpec struct {
	Kind PortKind `json:"kind"`
	// File is written to (PortFile); Socket is a unix socket that is listened on.
	File   string `json:"file,omitempty"`
	Socket string `json:"socket,omitempty"`
}

// RNGSpec is the entropy device.
type RNGSpec struct {
	None bool `json:"none,omitempty"`
	// Path is read instead of the host's getrandom.
	Path string `json:"path,omitempty"`
	// RateBytes bounds bytes a second; 0: no bound.
	RateBytes uint64 `json:"rateBytes,omitempty"`
}

// Bounds of a machine.
const (
	MaxCPUs            = 64
	MinMemoryBytes     = 16 << 20
	defaultMemoryBytes = 512 << 20
	maxDevices         = 31
)

// builtin reports whether the guest runs the built-in initramfs with its agent.
func (c *Config) builtin() bool { return c.Initrd == "" && (c.Kernel == "" || isPackage(c.Kernel)) }

func isPackage(kernel string) bool { return len(kernel) > 4 && kernel[:4] == "deb:" }

// fill sets defaults and checks all that can be checked without touching
// anything. It is idempotent.
func (c *Config) fill() error {
	if c.Name == "" {
		c.Name = newName()
	}
	if c.UUID == "" {
		c.UUID = newUUID()
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.MemoryBytes == 0 {
		c.MemoryBytes = defaultMemoryBytes
	}
	if err := CheckName(c.Name); err != nil {
		return err
	}
	if c.CPUs < 1 || c.CPUs > MaxCPUs {
		return fmt.Errorf("--cpus %d: a guest has 1 to %d processors (this host has %d)", c.CPUs, MaxCPUs, runtime.NumCPU())
	}
	if c.MemoryBytes < MinMemoryBytes || c.MemoryBytes%(1<<20) != 0 {
		return fmt.Errorf("--memory %d: a guest has whole MiB of memory, at least %dM", c.MemoryBytes, MinMemoryBytes>>20)
	}
	if c.Command != nil && !c.builtin() {
		return fmt.Errorf("a command (%q) runs in the built-in initramfs only: leave out --initrd, and --kernel FILE or name a fetched package by --kernel deb:PACKAGE", c.Command.Argv[0])
	}
	if c.Transport != "" && c.Transport != "pci" && c.Transport != "mmio" {
		return fmt.Errorf("--transport %s: it is pci or mmio", c.Transport)
	}
	c.fillPorts()
	return c.fillDevices()
}

func (c *Config) fillPorts() {
	if c.builtin() {
		if c.Serial.Kind == "" {
			c.Serial.Kind = PortLog
		}
		if c.Console.Kind == "" {
			c.Console.Kind = PortLog
		}
		return
	}
	if c.Console.Kind == "" {
		c.Console.Kind = PortNone
	}
	if c.Serial.Kind == "" {
		c.Serial.Kind = PortStdio
		if c.Console.Kind == PortStdio {
			c.Serial.Kind = PortLog
		}
	}
}

func (c *Config) fillDevices() error {
	if c.Console.Kind == PortStdio && c.Serial.Kind == PortStdio {
		return fmt.Errorf("--console stdio and --serial stdio exclude each other: one of them leads to the terminal")
	}
	ids := map[string]bool{}
	add := func(id *string, def string) error {
		if *id == "" {
			*id = def
		}
		if ids[*id] {
			return fmt.Errorf("two devices have the id %q; give each its own id=", *id)
		}
		ids[*id] = true
		return nil
	}
	for i := range c.Disks {
		if err := add(&c.Disks[i].ID, fmt.Sprintf("disk%d", i)); err != nil {
			return err
		}
	}
	nets := c.Nets[:0]
	none := false
	for i, n := range c.Nets {
		if n.None {
			none = true
			continue
		}
		if err := add(&n.ID, fmt.Sprintf("net%d", i)); err != nil {
			return err
		}
		if n.MAC == "" {
			n.MAC = newMAC(c.UUID, i)
		}
		nets = append(nets, n)
	}
	if none && len(nets) > 0 {
		return fmt.Errorf("--net none excludes other --net")
	}
	c.Nets = nets
	if n := len(c.Disks) + len(c.Nets) + 2; n > maxDevices {
		return fmt.Errorf("%d devices, and a machine has %d slots", n, maxDevices)
	}
	return nil
}

func joinWords(a, b string) string {
	switch {
	case a == "":
		return b
	case b == "":
		return a
	}
	return a + " " + b
}
