package network

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// HostForward leads a port of this machine to a port of the guest.
type HostForward struct {
	// Proto is "tcp" or "udp".
	Proto string
	// Host is where to listen. Port 0 takes a free one (see User.Forwards).
	Host netip.AddrPort
	// Guest is where it leads. An invalid address stands for UserConfig.Guest. The
	// port is not 0.
	Guest netip.AddrPort
}

// ParseHostForward reads a value of hostfwd as QEMU has it,
//
//	PROTO:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT
//
// for example tcp:127.0.0.1:2222-:22. Unlike there, an empty host address means
// 127.0.0.1: who wants all the machine's addresses writes 0.0.0.0. An IPv6 host
// address stands in brackets.
func ParseHostForward(s string) (HostForward, error) {
	fail := func(what string) (HostForward, error) {
		return HostForward{}, fmt.Errorf("host forward %q: %s; expected PROTO:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT, as in tcp:127.0.0.1:2222-:22", s, what)
	}
	proto, rest, ok := strings.Cut(s, ":")
	if !ok || proto != "tcp" && proto != "udp" {
		return fail("protocol is neither tcp nor udp")
	}
	// A zone could hold a dash, but scoped addresses are refused anyway.
	hostPart, guestPart, ok := strings.Cut(rest, "-")
	if !ok {
		return fail("no \"-\" between host and guest")
	}
	host, err := parseAddrPort(hostPart, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	if err != nil {
		return fail("host part: " + err.Error())
	}
	guest, err := parseAddrPort(guestPart, netip.Addr{})
	switch {
	case err != nil:
		return fail("guest part: " + err.Error())
	case guest.Port() == 0:
		return fail("guest port is 0")
	case guest.Addr().IsValid() && !guest.Addr().Is4():
		return fail("guest address is not IPv4")
	}
	return HostForward{Proto: proto, Host: host, Guest: guest}, nil
}

// parseAddrPort reads [ADDR]:PORT, with def for an empty address.
func parseAddrPort(s string, def netip.Addr) (netip.AddrPort, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return netip.AddrPort{}, fmt.Errorf("%q has no \":\" before the port", s)
	}
	// ParseUint takes no sign, so "+80" is refused.
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q is not a number in 0..65535", s[i+1:])
	}
	text := s[:i]
	if text == "" {
		return netip.AddrPortFrom(def, uint16(port)), nil
	}
	bracketed := strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]")
	if bracketed {
		text = text[1 : len(text)-1]
	}
	addr, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return netip.AddrPort{}, fmt.Errorf("%q is not an IP address", text)
	case addr.Zone() != "":
		return netip.AddrPort{}, fmt.Errorf("address %q has a zone", text)
	case bracketed != addr.Is6():
		return netip.AddrPort{}, fmt.Errorf("address %q: brackets are for IPv6, and needed there", text)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), nil
}

// String renders f so that ParseHostForward reads it.
func (f HostForward) String() string {
	guest := ""
	if f.Guest.Addr().IsValid() {
		guest = f.Guest.Addr().String()
	}
	host := ""
	if f.Host.Addr().IsValid() {
		host = f.Host.Addr().String()
		if f.Host.Addr().Is6() {
			host = "[" + host + "]"
		}
	}
	return fmt.Sprintf("%s:%s:%d-%s:%d", f.Proto, host, f.Host.Port(), guest, f.Guest.Port())
}

func (f HostForward) check(c *UserConfig) error {
	g := f.Guest.Addr()
	switch {
	case f.Proto != "tcp" && f.Proto != "udp":
		return fmt.Errorf("host forward %v: protocol %q is neither tcp nor udp", f, f.Proto)
	case !f.Host.Addr().IsValid():
		return fmt.Errorf("host forward %v: no host address", f)
	case f.Guest.Port() == 0:
		return fmt.Errorf("host forward %v: guest port is 0", f)
	case g.IsValid() && (!c.isHost(g) || g == c.Gateway || g == c.DNS):
		return fmt.Errorf("host forward %v: %v is not a guest's address in %v", f, g, c.Network)
	}
	return nil
}
