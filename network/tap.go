package network

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	vnet "github.com/peervisor/peervisor/virtio/net"
)

// TapConfig describes a tap on this machine.
type TapConfig struct {
	// Name is the interface's, at most 15 bytes. Empty: the kernel chooses one. If it
	// exists it is used, which needs no privilege if it belongs to the user;
	// otherwise it is made, and goes with Close.
	Name string
	// Bridge is the bridge to attach the tap to; empty: none. It must exist, unless
	// CreateBridge is set.
	Bridge string
	// CreateBridge makes the bridge if there is none. Close removes it again if it has
	// no other ports then.
	CreateBridge bool
	// Persist leaves a tap that was made here, and its bridge, in place at Close.
	Persist bool
	// MTU is set on the tap, 68..65521; 0: left alone.
	MTU int
}

const maxTapMTU = 65521 // what the kernel takes

func (c *TapConfig) check() error {
	for _, n := range []struct{ what, name string }{{"tap", c.Name}, {"bridge", c.Bridge}} {
		if err := checkInterfaceName(n.name); err != nil {
			return fmt.Errorf("%s name %q: %w", n.what, n.name, err)
		}
	}
	if c.MTU != 0 && (c.MTU < 68 || c.MTU > maxTapMTU) {
		return fmt.Errorf("tap %s: MTU %d is not in 68..%d", c.Name, c.MTU, maxTapMTU)
	}
	if c.CreateBridge && c.Bridge == "" {
		return fmt.Errorf("tap %s: a bridge is to be created but not named", c.Name)
	}
	return nil
}

// checkInterfaceName keeps to what the kernel takes (dev_valid_name), without the
// templates of TUNSETIFF.
func checkInterfaceName(s string) error {
	switch {
	case len(s) >= unix.IFNAMSIZ:
		return fmt.Errorf("%d bytes long; the kernel takes at most %d", len(s), unix.IFNAMSIZ-1)
	case s == "." || s == "..", strings.ContainsAny(s, "/:% \t\n\v\f\r\x00"):
		return errors.New(`not an interface name: no spaces, "/", ":" or "%"`)
	}
	return nil
}

// Tap is an open tap with vnet headers. It implements the Backend of package
// virtio/net. All netlink work is done in the network namespace that OpenTap was
// called in.
type Tap struct {
	name string
	file *os.File // keeps the descriptor alive; not blocking
	raw  syscall.RawConn
	undo []func(*netlink.Handle) error // newest last
	nl   *netlink.Handle

	mu     sync.Mutex
	conn   *tapConn
	closed bool
}

var _ vnet.Backend = (*Tap)(nil)

// tapOffloads is what Linux does on a tap.
const tapOffloads = vnet.TxChecksum | vnet.TxTSO4 | vnet.TxTSO6 | vnet.TxECN |
	vnet.RxChecksum | vnet.RxTSO4 | vnet.RxTSO6 | vnet.RxECN

// OpenTap opens or makes a tap, attaches it to its bridge, and brings it up.
func OpenTap(cfg TapConfig) (*Tap, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("open tap: %w", err)
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open tap %s: open netlink socket: %w", cfg.Name, err)
	}
	t := &Tap{name: cfg.Name, nl: nl}
	if err := t.open(&cfg); err != nil {
		_ = t.Close()
		return nil, fmt.Errorf("open tap %s: %w", t.name, err)
	}
	return t, nil
}

func (t *Tap) open(cfg *TapConfig) error {
	existed := false
	if cfg.Name != "" {
		link, err := t.nl.LinkByName(cfg.Name)
		existed = err == nil
		if existed && link.Type() != "tuntap" && link.Type() != "tun" {
			return fmt.Errorf("%s is there already and is not a tap but of type %q: choose another name", cfg.Name, link.Type())
		}
	}
	fd, err := openTun()
	if err != nil {
		return err
	}
	if t.name, err = setupTun(fd, cfg.Name, existed); err != nil {
		_ = unix.Close(fd)
		return err
	}
	// After TUNSETIFF, since a descriptor without its interface reports an error to
	// the poller for good; not blocking before, so that it is polled at all.
	t.file = os.NewFile(uintptr(fd), "/dev/net/tun ("+t.name+")")
	if t.raw, err = t.file.SyscallConn(); err != nil {
		return fmt.Errorf("take descriptor: %w", err)
	}
	if err := t.plug(cfg, existed); err != nil {
		return err
	}
	if cfg.Persist && !existed {
		if err := t.control(func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1) }); err != nil {
			return fmt.Errorf("make it persistent: %w", err)
		}
		t.undo = nil
	}
	return nil
}

// plug sets MTU and bridge, and brings the tap up. What is as it should be is left
// alone, so that a tap that an administrator has prepared needs no privilege.
func (t *Tap) plug(cfg *TapConfig, existed bool) error {
	link, err := t.nl.LinkByName(t.name)
	if err != nil {
		return fmt.Errorf("find it again: %w", err)
	}
	if cfg.MTU != 0 && link.Attrs().MTU != cfg.MTU {
		if err := t.nl.LinkSetMTU(link, cfg.MTU); err != nil {
			return t.permission(fmt.Errorf("set MTU %d: %w", cfg.MTU, err))
		}
		if was := link.Attrs().MTU; existed {
			t.undo = append(t.undo, func(nl *netlink.Handle) error { return nl.LinkSetMTU(link, was) })
		}
	}
	if cfg.Bridge != "" {
		if err := t.attachBridge(cfg, link, existed); err != nil {
			return err
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := t.nl.LinkSetUp(link); err != nil {
			return t.permission(fmt.Errorf("bring it up: %w", err))
		}
		if existed {
			t.undo = append(t.undo, func(nl *netlink.Handle) error { return nl.LinkSetDown(link) })
		}
	}
	return nil
}

func (t *Tap) attachBridge(cfg *TapConfig, link netlink.Link, existed bool) error {
	br, err := t.nl.LinkByName(cfg.Bridge)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing) && !cfg.CreateBridge:
		return fmt.Errorf("there is no bridge %s: make it (ip link add %s type bridge) or ask for it to be created", cfg.Bridge, cfg.Bridge)
	case errors.As(err, &missing):
		if br, err = t.makeBridge(cfg.Bridge); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("find bridge %s: %w", cfg.Bridge, err)
	case br.Type() != "bridge":
		return fmt.Errorf("%s is not a bridge but of type %q", cfg.Bridge, br.Type())
	}
	switch master := link.Attrs().MasterIndex; master {
	case br.Attrs().Index:
		return nil
	case 0:
	default:
		return fmt.Errorf("it is attached to another bridge (interface %d) than %s: detach it first (ip link set %s nomaster)", master, cfg.Bridge, t.name)
	}
	if err := t.nl.LinkSetMaster(link, br); err != nil {
		return t.permission(fmt.Errorf("attach it to bridge %s: %w", cfg.Bridge, err))
	}
	if existed {
		t.undo = append(t.undo, func(nl *netlink.Handle) error { return nl.LinkSetNoMaster(link) })
	}
	return nil
}

func (t *Tap) makeBridge(name string) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := t.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return nil, t.permission(fmt.Errorf("create bridge %s: %w", name, err))
	}
	br, err := t.nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find bridge %s again: %w", name, err)
	}
	t.undo = append(t.undo, func(nl *netlink.Handle) error { return removeEmptyBridge(nl, br) })
	if err := t.nl.LinkSetUp(br); err != nil {
		return nil, fmt.Errorf("bring bridge %s up: %w", name, err)
	}
	return br, nil
}

// removeEmptyBridge deletes a bridge that nothing is attached to any more.
func removeEmptyBridge(nl *netlink.Handle, br netlink.Link) error {
	links, err := nl.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		if l.Attrs().MasterIndex == br.Attrs().Index {
			return nil
		}
	}
	if err := nl.LinkDel(br); err != nil {
		return fmt.Errorf("remove bridge %s: %w", br.Attrs().Name, err)
	}
	return nil
}

// permission says what to do where the kernel said no.
func (t *Tap) permission(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: this needs CAP_NET_ADMIN, or an administrator who prepares the tap: %s", err, prepareHint(t.name))
	}
	return err
}

func prepareHint(name string) string {
	if name == "" {
		name = "NAME"
	}
	return fmt.Sprintf("ip tuntap add %s mode tap user $USER vnet_hdr; ip link set %s master BRIDGE up", name, name)
}

// Name is the interface's name.
func (t *Tap) Name() string { return t.name }

// Offloads implements the Backend of package virtio/net.
func (t *Tap) Offloads() vnet.Offload { return tapOffloads }

// Attach implements the Backend of package virtio/net.
func (t *Tap) Attach(o vnet.Offload) (vnet.Conn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return nil, fmt.Errorf("attach to tap %s: %w", t.name, io.ErrClosedPipe)
	case t.conn != nil:
		return nil, fmt.Errorf("attach to tap %s: a device is attached already", t.name)
	}
	if err := t.control(func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tunOffloads(o)) }); err != nil {
		return nil, fmt.Errorf("set offloads of tap %s: %w", t.name, err)
	}
	if err := t.file.SetReadDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("poll tap %s: %w", t.name, err)
	}
	t.conn = newTapConn(t)
	return t.conn, nil
}

func (t *Tap) control(f func(fd int) error) error {
	var err error
	if cerr := t.raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// Close closes the tap and takes back what OpenTap did. The device half must have
// let go (Reset). A second Close does nothing.
func (t *Tap) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	var errs []error
	if t.file != nil {
		errs = append(errs, t.file.Close()) // removes a tap that is not persistent
	}
	for i := len(t.undo) - 1; i >= 0; i-- {
		errs = append(errs, t.undo[i](t.nl))
	}
	t.nl.Close()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close tap %s: %w", t.name, err)
	}
	return nil
}
