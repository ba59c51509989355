package network

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPolicy(t *testing.T) {
	routes := map[string]int{
		"1.1.1.1": unix.RTN_UNICAST, "192.168.1.9": unix.RTN_LOCAL, "192.168.1.255": unix.RTN_BROADCAST,
		"169.254.169.254": unix.RTN_UNICAST, "10.9.9.9": unix.RTN_UNICAST,
	}
	mk := func(access, restrict bool) *policy {
		return &policy{network: defaultNetwork, gateway: netip.MustParseAddr("10.0.2.2"), dns: netip.MustParseAddr("10.0.2.3"),
			hostAccess: access, restrict: restrict, routeType: func(a netip.Addr) (int, error) {
				switch a.String() {
				case "5.5.5.5":
					return 0, unix.ENETUNREACH
				case "6.6.6.6":
					return 0, errors.New("netlink is gone")
				}
				return routes[a.String()], nil
			}}
	}
	normal, access, restrict := mk(false, false), mk(true, false), mk(true, true)
	for _, c := range []struct {
		p    *policy
		dst  string
		want string // an address, or "" with the error below
		err  error
	}{
		{normal, "1.1.1.1", "1.1.1.1", nil},
		{normal, "10.9.9.9", "10.9.9.9", nil},
		{normal, "10.0.2.2", "", errRefused},
		{normal, "10.0.2.3", "", errRefused},
		{normal, "10.0.2.77", "", errUnreachable},
		{normal, "127.0.0.1", "", errRefused},
		{normal, "127.1.2.3", "", errRefused},
		{normal, "0.0.0.0", "", errRefused},
		{normal, "0.1.2.3", "", errRefused},
		{normal, "169.254.169.254", "", errRefused},
		{normal, "192.168.1.9", "", errRefused},
		{normal, "192.168.1.255", "", errRefused},
		{normal, "224.0.0.251", "", errRefused},
		{normal, "255.255.255.255", "", errRefused},
		{normal, "250.1.1.1", "", errRefused},
		{normal, "5.5.5.5", "", errUnreachable},
		{normal, "6.6.6.6", "", errRefused},
		{normal, "::ffff:127.0.0.1", "", errRefused},
		{normal, "::1", "", errRefused},
		{access, "10.0.2.2", "127.0.0.1", nil},
		{access, "10.0.2.3", "", errRefused},
		{access, "192.168.1.9", "192.168.1.9", nil},
		{access, "169.254.169.254", "169.254.169.254", nil},
		{access, "127.0.0.1", "", errRefused},
		{access, "0.0.0.0", "", errRefused},
		{access, "192.168.1.255", "", errRefused},
		{restrict, "1.1.1.1", "", errRefused},
		{restrict, "10.0.2.2", "", errRefused},
	} {
		got, err := c.p.target(netip.MustParseAddr(c.dst))
		if !errors.Is(err, c.err) || c.err == nil && got.String() != c.want {
			t.Errorf("%s (access %v, restrict %v): %v, %v", c.dst, c.p.hostAccess, c.p.restrict, got, err)
		}
	}
}

// The kernel itself says which addresses are this machine's.
func TestKernelRoutes(t *testing.T) {
	k, err := openKernelRoutes()
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	for _, a := range []string{"127.0.0.1", "127.9.9.9"} {
		if kind, err := k.typeOf(netip.MustParseAddr(a)); err != nil || kind != unix.RTN_LOCAL {
			t.Errorf("%s: type %d, %v", a, kind, err)
		}
	}
}
