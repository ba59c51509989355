// Package netconf brings up a guest's network interfaces: link, a DHCP lease
// (RFC 2131), address, route and resolver.
//
// It is a client of the servers that a small guest meets: no relay options, no
// INIT-REBOOT, no DECLINE. IPv6 is the kernel's own business (SLAAC).
package netconf

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"time"
)

// Interface is a network interface that DHCP can be spoken on.
type Interface struct {
	Name  string
	Index int
	MAC   [6]byte
}

// arphrdEther is ARPHRD_ETHER of linux/if_arp.h.
const arphrdEther = "1"

// Interfaces lists the Ethernet interfaces below sys (/sys).
func Interfaces(sys string) ([]Interface, error) {
	entries, err := os.ReadDir(sys + "/class/net")
	if err != nil {
		return nil, err
	}
	var list []Interface
	for _, e := range entries {
		dir := sys + "/class/net/" + e.Name() + "/"
		if readWord(dir+"type") != arphrdEther {
			continue
		}
		mac, ok := parseMAC(readWord(dir + "address"))
		index := parseDecimal(readWord(dir + "ifindex"))
		if ok && index > 0 {
			list = append(list, Interface{Name: e.Name(), Index: index, MAC: mac})
		}
	}
	return list, nil
}

// Carrier tells whether an interface that is up has a link.
func (i Interface) Carrier(sys string) bool {
	return readWord(sys+"/class/net/"+i.Name+"/carrier") == "1"
}

func readWord(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func parseDecimal(s string) int {
	n := 0
	for _, c := range s {
		if c < '0' || c > '9' || n > 1<<24 {
			return 0
		}
		n = n*10 + int(c-'0')
	}
	return n
}

func parseMAC(s string) (mac [6]byte, ok bool) {
	if len(s) != 17 {
		return mac, false
	}
	for i := range mac {
		hi, lo := nibble(s[3*i]), nibble(s[3*i+1])
		if hi < 0 || lo < 0 || i < 5 && s[3*i+2] != ':' {
			return mac, false
		}
		mac[i] = byte(hi<<4 | lo)
	}
	return mac, true
}

func nibble(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}

// Addr is an IPv4 address; the zero value is none. (net/netip would be a
// hundredth of the program's size.)
type Addr [4]byte

// Is tells whether it is an address.
func (a Addr) Is() bool { return a != Addr{} }

func (a Addr) String() string {
	var b []byte
	for i, v := range a {
		if i > 0 {
			b = append(b, '.')
		}
		b = strconv.AppendUint(b, uint64(v), 10)
	}
	return string(b)
}

// Lease is what a server granted.
type Lease struct {
	Address Addr
	// PrefixBits is the length of the network's prefix, 0..32.
	PrefixBits int
	Router     Addr
	Server     Addr
	DNS        []Addr
	Domain     string
	MTU        int // 0: not said
	// For is how long it is good; at least minLease.
	For time.Duration
}

// Resolver is /etc/resolv.conf for a lease.
func (l *Lease) Resolver() string {
	var b strings.Builder
	if l.Domain != "" {
		b.WriteString("search " + l.Domain + "\n")
	}
	for _, a := range l.DNS {
		b.WriteString("nameserver " + a.String() + "\n")
	}
	return b.String()
}

// ErrNoAnswer: no server answered in time.
var ErrNoAnswer = errors.New("no DHCP answer")
