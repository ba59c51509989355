package network

import (
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// resolvConf is the machine's list of resolvers, read again when it changes.
type resolvConf struct {
	path string

	mu      sync.Mutex
	checked time.Time
	stamp   time.Time
	list    []netip.AddrPort
}

// resolvCheck is how long the file is believed not to have changed.
const resolvCheck = 5 * time.Second

// maxResolvConf bounds the file that is read.
const maxResolvConf = 64 << 10

// servers returns the current list. An unreadable file leaves the last one.
func (r *resolvConf) servers() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.checked) < resolvCheck {
		return r.list
	}
	r.checked = time.Now()
	info, err := os.Stat(r.path)
	if err != nil || info.Size() > maxResolvConf || info.ModTime().Equal(r.stamp) {
		return r.list
	}
	f, err := os.Open(r.path)
	if err != nil {
		return r.list
	}
	defer func() { _ = f.Close() }()
	conf, err := dns.ClientConfigFromReader(f)
	if err != nil {
		return r.list
	}
	r.stamp, r.list = info.ModTime(), nil
	for _, s := range conf.Servers {
		if a, err := netip.ParseAddr(s); err == nil {
			r.list = append(r.list, netip.AddrPortFrom(a, dnsPort))
		}
	}
	return r.list
}
