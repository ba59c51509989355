package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Why a destination is not tried. The guest sees errRefused as a closed port and
// errUnreachable as an unreachable host.
var (
	errRefused     = errors.New("the guest may not reach this address")
	errUnreachable = errors.New("no such host on the guest's network")
)

// policy decides what the guest may reach; see the package comment.
type policy struct {
	network              netip.Prefix
	gateway, dns         netip.Addr
	hostAccess, restrict bool
	// routeType asks the kernel what an address is to this machine (RTN_…). It is asked
	// each time, since addresses come and go. An error refuses.
	routeType func(netip.Addr) (int, error)
}

// Ranges that are no destination for anyone, whatever the routing table says.
// 0.0.0.0 in particular means this machine to connect(2).
var neverReached = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("224.0.0.0/4"), // multicast
	netip.MustParsePrefix("240.0.0.0/4"), // reserved, broadcast
}

// linkLocal has the metadata services of clouds, which speak with the machine's
// own authority.
var linkLocal = netip.MustParsePrefix("169.254.0.0/16")

// target maps a destination of the guest to the address to connect to.
func (p *policy) target(dst netip.Addr) (netip.Addr, error) {
	switch {
	case dst == p.gateway && p.hostAccess && !p.restrict:
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil
	case dst == p.gateway || dst == p.dns:
		return netip.Addr{}, errRefused
	case p.network.Contains(dst):
		return netip.Addr{}, errUnreachable
	case p.restrict || !dst.Is4():
		return netip.Addr{}, errRefused
	}
	for _, n := range neverReached {
		if n.Contains(dst) {
			return netip.Addr{}, errRefused
		}
	}
	if linkLocal.Contains(dst) && !p.hostAccess {
		return netip.Addr{}, errRefused
	}
	kind, err := p.routeType(dst)
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return netip.Addr{}, fmt.Errorf("%w: %w", errUnreachable, err)
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%w: ask for its route: %w", errRefused, err)
	case kind == unix.RTN_UNICAST, kind == unix.RTN_LOCAL && p.hostAccess:
		return dst, nil
	}
	return netip.Addr{}, errRefused
}

// kernelRoutes asks the routing table over one netlink socket, which belongs
// to the network namespace that it was opened in.
type kernelRoutes struct{ h *netlink.Handle }

func openKernelRoutes() (*kernelRoutes, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket for routes: %w", err)
	}
	return &kernelRoutes{h}, nil
}

func (k *kernelRoutes) typeOf(a netip.Addr) (int, error) {
	rs, err := k.h.RouteGet(a.AsSlice())
	if err != nil {
		return 0, err
	}
	if len(rs) == 0 {
		return 0, unix.EHOSTUNREACH
	}
	return rs[0].Type, nil
}

func (k *kernelRoutes) close() { k.h.Close() }
