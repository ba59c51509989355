package network

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"
)

// Defaults of UserConfig. The addresses are the ones that QEMU's user network
// has, since guests and scripts know them.
const (
	DefaultMaxTCP  = 1024
	DefaultMaxUDP  = 512
	DefaultMaxPing = 32
	DefaultUDPIdle = 60 * time.Second

	defaultMTU = 1500
	minUserMTU = 576 // what every IPv4 host must take
	// maxUserMTU keeps a packet and its headers within one 64 KiB buffer.
	maxUserMTU = 65000
)

var defaultNetwork = netip.MustParsePrefix("10.0.2.0/24")

// UserConfig describes a user network. The zero value is usable.
type UserConfig struct {
	// Network is the guest's IPv4 network; zero: 10.0.2.0/24. At most /28.
	Network netip.Prefix
	// Gateway, DNS and Guest are addresses in Network: this side, its name server,
	// and what DHCP gives to the first client. Zero: the network's .2, .3 and .15,
	// or .14 in a /28.
	Gateway, DNS, Guest netip.Addr
	// MTU is the largest packet in bytes, told by DHCP, 576..65000; 0: 1500.
	MTU int
	// Hostname is what DHCP calls the guest; empty: nothing.
	Hostname string
	// Forwards are ports of this machine that lead to the guest. They are bound by
	// NewUser.
	Forwards []HostForward
	// Restrict cuts the guest off: no connections but through Forwards, no names but
	// the gateway's.
	Restrict bool
	// HostAccess lets the guest reach this machine: the gateway's address stands for
	// 127.0.0.1, and the machine's own addresses and link-local ones are permitted.
	HostAccess bool
	// Resolvers answer the guest's DNS queries; nil: those of /etc/resolv.conf, read
	// again when it changes.
	Resolvers []netip.AddrPort
	// MaxTCP, MaxUDP and MaxPing bound the connections and flows at one time; 0: the
	// defaults, 1024, 512 and 32. A TCP connection holds at most 2 MiB of data.
	MaxTCP, MaxUDP, MaxPing int
	// UDPIdle ends a UDP flow without traffic; 0: one minute. Pings take a quarter.
	UDPIdle time.Duration
	// Log gets what a person should know; nil: nowhere.
	Log *slog.Logger
}

// withDefaults fills in what is zero and checks the rest.
func (c UserConfig) withDefaults() (UserConfig, error) {
	if !c.Network.IsValid() {
		c.Network = defaultNetwork
	}
	c.Network = c.Network.Masked()
	if !c.Network.Addr().Is4() || c.Network.Bits() > 28 || c.Network.Bits() < 8 {
		return c, fmt.Errorf("network %v is not an IPv4 network of /8 to /28", c.Network)
	}
	guest := 15
	if c.Network.Bits() == 28 {
		guest = 14 // .15 is its broadcast address
	}
	for _, a := range []struct {
		addr *netip.Addr
		host int
	}{{&c.Gateway, 2}, {&c.DNS, 3}, {&c.Guest, guest}} {
		if !a.addr.IsValid() {
			*a.addr = nthAddr(c.Network, a.host)
		}
	}
	def(&c.MTU, defaultMTU)
	def(&c.MaxTCP, DefaultMaxTCP)
	def(&c.MaxUDP, DefaultMaxUDP)
	def(&c.MaxPing, DefaultMaxPing)
	def(&c.UDPIdle, DefaultUDPIdle)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, c.check()
}

func def[T int | time.Duration](p *T, v T) {
	if *p == 0 {
		*p = v
	}
}

func (c *UserConfig) check() error {
	for _, a := range []struct {
		what string
		addr netip.Addr
	}{{"gateway", c.Gateway}, {"DNS", c.DNS}, {"guest", c.Guest}} {
		if !c.isHost(a.addr) {
			return fmt.Errorf("%s address %v is not a host's in %v", a.what, a.addr, c.Network)
		}
	}
	if c.Gateway == c.DNS || c.Gateway == c.Guest || c.DNS == c.Guest {
		return fmt.Errorf("gateway %v, DNS %v and guest %v must differ", c.Gateway, c.DNS, c.Guest)
	}
	if c.MTU < minUserMTU || c.MTU > maxUserMTU {
		return fmt.Errorf("MTU %d is not in %d..%d", c.MTU, minUserMTU, maxUserMTU)
	}
	if c.MaxTCP < 0 || c.MaxUDP < 0 || c.MaxPing < 0 || c.UDPIdle < 0 {
		return errors.New("a limit is negative")
	}
	if len(c.Hostname) > 63 {
		return fmt.Errorf("host name %q has more than 63 bytes", c.Hostname)
	}
	for _, f := range c.Forwards {
		if err := f.check(c); err != nil {
			return err
		}
	}
	return nil
}

// isHost says whether a is an address of the network that a host can have.
func (c *UserConfig) isHost(a netip.Addr) bool {
	return c.Network.Contains(a) && a != c.Network.Addr() && a != broadcastOf(c.Network)
}

// nthAddr is the n-th address of an IPv4 network.
func nthAddr(p netip.Prefix, n int) netip.Addr {
	return fromUint32(toUint32(p.Addr()) + uint32(n))
}

// broadcastOf is the last address of an IPv4 network.
func broadcastOf(p netip.Prefix) netip.Addr {
	return fromUint32(toUint32(p.Addr()) | (1<<(32-p.Bits()) - 1))
}

func toUint32(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func fromUint32(v uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}
