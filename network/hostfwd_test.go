package network

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseHostForward(t *testing.T) {
	ap := netip.MustParseAddrPort
	guest := func(p uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, p) }
	for in, want := range map[string]HostForward{
		"tcp:127.0.0.1:2222-:22":     {"tcp", ap("127.0.0.1:2222"), guest(22)},
		"udp:0.0.0.0:53-10.0.2.16:5": {"udp", ap("0.0.0.0:53"), ap("10.0.2.16:5")},
		"tcp::0-:65535":              {"tcp", ap("127.0.0.1:0"), guest(65535)},
		"tcp:[::1]:80-:80":           {"tcp", ap("[::1]:80"), guest(80)},
	} {
		got, err := ParseHostForward(in)
		if err != nil || got != want {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
	for in, says := range map[string]string{
		"":                         "neither tcp nor udp",
		"tcp":                      "neither tcp nor udp",
		"sctp:127.0.0.1:1-:1":      "neither tcp nor udp",
		"tcp:127.0.0.1:1":          `no "-"`,
		"tcp:127.0.0.1-:1":         "before the port",
		"tcp:2222-:22":             "before the port",
		"tcp::65536-:22":           "0..65535",
		"tcp::+1-:22":              "0..65535",
		"tcp::-:22":                "0..65535",
		"tcp::1-:0":                "guest port is 0",
		"tcp::1-:":                 "guest part",
		"tcp::1-[::1]:22":          "not IPv4",
		"tcp:::1:80-:80":           "brackets",
		"tcp:[127.0.0.1]:80-:80":   "brackets",
		"tcp:[fe80::1%eth0]:1-:80": "zone",
		"tcp:localhost:80-:80":     "not an IP address",
	} {
		if f, err := ParseHostForward(in); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, %v", in, f, err)
		}
	}
}

func FuzzParseHostForward(f *testing.F) {
	for _, s := range []string{"tcp:127.0.0.1:2222-:22", "udp:[::1]:1-10.0.2.15:2", "tcp::0-:1", "tcp:::-:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseHostForward(s)
		if err != nil {
			return
		}
		again, err := ParseHostForward(v.String())
		if err != nil || again != v {
			t.Errorf("%q is %v, which reads as %v, %v", s, v, again, err)
		}
	})
}
