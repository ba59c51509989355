package guest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/peervisor/peervisor/kernel/agent"
	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/blk"
	"github.com/peervisor/peervisor/virtio/console"
	vnet "github.com/peervisor/peervisor/virtio/net"
	"github.com/peervisor/peervisor/virtio/rng"
	"github.com/peervisor/peervisor/vmm"
)

// portBytes is the room between the agent's client and a console port.
const portBytes = 512 << 10

// halves are a guest's open device halves and the ends of its lines.
type halves struct {
	list    []half
	serial  endpoint
	console endpoint
	agent   bool // the guest has the built-in initramfs: its ports are made for each boot
	log     *slog.Logger

	consoleDev *console.Device // of the current boot with agent, else of all boots
	ports      []*pipe         // of the current boot
}

// half is one device half with what closes it, in order.
type half struct {
	name   string
	dev    virtio.Device
	closed []func() error
}

// openHalves opens disks, networks, lines and entropy. On an error all that
// was opened is closed.
func openHalves(cfg *Config, log *slog.Logger, session endpoint, clog *logFile) (*halves, error) {
	h := &halves{agent: cfg.builtin(), log: log}
	err := h.open(cfg, session, clog)
	if err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

func (h *halves) open(cfg *Config, session endpoint, clog *logFile) error {
	for i := range cfg.Disks {
		if err := h.openDisk(&cfg.Disks[i]); err != nil {
			return err
		}
	}
	for i := range cfg.Nets {
		if err := h.openNet(&cfg.Nets[i]); err != nil {
			return err
		}
	}
	var err error
	if h.serial, err = openEndpoint("serial", cfg.Serial, session, clog); err != nil {
		return err
	}
	if h.console, err = openEndpoint("console", cfg.Console, session, clog); err != nil {
		return err
	}
	if !cfg.RNG.None {
		return h.openRNG(&cfg.RNG)
	}
	return nil
}

func (h *halves) openDisk(d *DiskSpec) error {
	b, err := blk.Open(blk.Options{Path: d.Path, ReadOnly: d.ReadOnly, Snapshot: d.Snapshot, Direct: d.Direct, ForceRaw: d.Raw})
	if err != nil {
		return err
	}
	serial := d.Serial
	if serial == "" {
		serial = d.ID[:min(len(d.ID), blk.VIRTIO_BLK_ID_BYTES)]
	}
	id := d.ID
	dev, err := blk.New(blk.Config{Backend: b, Queues: d.Queues, Serial: serial,
		Report: func(err error) { h.log.Error("disk", "device", id, "error", err) }})
	if err != nil {
		return errors.Join(err, b.Close())
	}
	h.add(d.ID, dev, dev.Close)
	return nil
}

func (h *halves) openNet(n *NetSpec) error {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return fmt.Errorf("--net mac=%s: %w", n.MAC, err)
	}
	var b interface {
		vnet.Backend
		io.Closer
	}
	if n.Tap != "" {
		b, err = newTap(n)
	} else {
		b, err = newUserNet(n, h.log)
	}
	if err != nil {
		return err
	}
	dev, err := vnet.New(vnet.Config{MAC: mac, MTU: n.MTU, Backend: b})
	if err != nil {
		return errors.Join(err, b.Close())
	}
	h.add(n.ID, dev, func() error { dev.Reset(); return nil }, b.Close)
	return nil
}

func (h *halves) openRNG(r *RNGSpec) error {
	src, closeSrc := io.Reader(rand.Reader), func() error { return nil }
	if r.Path != "" {
		f, err := os.Open(r.Path)
		if err != nil {
			return fmt.Errorf("--rng path=%s: %w", r.Path, err)
		}
		src, closeSrc = f, f.Close
	}
	dev, err := rng.New(rng.Config{Source: src, Report: func(err error) { h.log.Error("entropy", "error", err) },
		BytesPerSecond: int64(r.RateBytes)})
	if err != nil {
		return errors.Join(err, closeSrc())
	}
	h.add("rng", dev, dev.Close, closeSrc)
	return nil
}

func (h *halves) add(name string, dev virtio.Device, closers ...func() error) {
	h.list = append(h.list, half{name, dev, closers})
}

// newBoot readies what belongs to one boot: with the built-in initramfs a new
// console device with the agent's ports, whose host ends it returns.
func (h *halves) newBoot() (*agent.Ports, error) {
	if h.console.out == nil && !h.agent {
		return nil, nil
	}
	if !h.agent {
		if h.consoleDev != nil {
			return nil, nil // the first boot's: a reboot resets it
		}
		dev, err := console.New(console.Config{Ports: []console.Port{{Console: true, In: h.console.in, Out: h.console.out}}, ResizeRowsFirst: true})
		h.consoleDev = dev
		return nil, err
	}
	names := []string{"ctl", "stdin", "stdout", "stderr", "log"}
	ports := []console.Port{{Console: true, In: h.console.in, Out: orDiscard(h.console.out)}}
	host := map[string]pipes{}
	for _, n := range names {
		p := pipes{toGuest: newPipe(portBytes), toHost: newPipe(portBytes)}
		host[n] = p
		h.ports = append(h.ports, p.toGuest, p.toHost)
		ports = append(ports, console.Port{Name: "peervisor." + n, In: p.toGuest, Out: p.toHost})
	}
	dev, err := console.New(console.Config{Ports: ports, ResizeRowsFirst: true})
	if err != nil {
		return nil, err
	}
	h.consoleDev = dev
	return &agent.Ports{Ctl: host["ctl"], Stdin: host["stdin"], Stdout: host["stdout"], Stderr: host["stderr"], Log: host["log"]}, nil
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// pipes are one port's two directions, seen from the host.
type pipes struct{ toGuest, toHost *pipe }

func (p pipes) Read(b []byte) (int, error)  { return p.toHost.Read(b) }
func (p pipes) Write(b []byte) (int, error) { return p.toGuest.Write(b) }
func (p pipes) Close() error {
	return errors.Join(p.toGuest.Close(), p.toHost.Close())
}

// drainWait bounds how long the last output of a guest may take to its readers'
// pipes once the machine has ended.
const drainWait = 2 * time.Second

// endBoot says that the guest of this boot writes no more: the agent's client
// sees the end of its ports after what is still in them.
func (h *halves) endBoot() {
	if h.consoleDev != nil {
		ctx, cancel := context.WithTimeout(context.Background(), drainWait)
		defer cancel()
		if err := h.consoleDev.Drain(ctx); err != nil {
			h.log.Warn("console output was cut off", "error", err)
		}
	}
	for _, p := range h.ports {
		p.CloseWrite()
	}
}

// devices is the machine's configuration, in the order of the slots: disks,
// networks, entropy, console.
func (h *halves) devices(transport string) []vmm.DeviceConfig {
	t := vmm.TransportPCI
	if transport == "mmio" {
		t = vmm.TransportMMIO
	}
	var out []vmm.DeviceConfig
	for _, d := range h.list {
		out = append(out, vmm.DeviceConfig{Name: d.name, Half: d.dev, Transport: t})
	}
	if h.consoleDev != nil {
		out = append(out, vmm.DeviceConfig{Name: "console", Half: h.consoleDev, Transport: t})
	}
	return out
}

// resize tells the size of the terminal behind the virtio console.
func (h *halves) resize(ws Winsize) {
	if h != nil && h.consoleDev != nil {
		_ = h.consoleDev.Resize(0, uint16(ws.Cols), uint16(ws.Rows))
	}
}

// retireBoot closes what newBoot made, after the machine is closed.
func (h *halves) retireBoot() error {
	for _, p := range h.ports {
		_ = p.Close()
	}
	h.ports = nil
	if !h.agent || h.consoleDev == nil {
		return nil
	}
	dev := h.consoleDev
	h.consoleDev = nil
	return dev.Close()
}

// close closes everything, newest first. No machine uses it any more.
func (h *halves) close() error {
	h.agent = true // retire the console in any case
	errs := []error{h.retireBoot()}
	for i := len(h.list) - 1; i >= 0; i-- {
		for _, c := range h.list[i].closed {
			errs = append(errs, c())
		}
	}
	for _, e := range []endpoint{h.serial, h.console} {
		if e.close != nil {
			errs = append(errs, e.close())
		}
	}
	return errors.Join(errs...)
}
