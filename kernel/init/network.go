package main

import (
	"errors"
	"os"
	"sync"
	"time"

	"github.com/peervisor/peervisor/kernel/init/netconf"
)

// networkWait bounds how long the first command waits for an answer on interfaces
// that have a link, beyond what the rest of the boot took. Asking goes on after that.
const networkWait = 4 * time.Second

// askAgain is the pause after a round without an answer, askFor the length of one.
const (
	askFor   = 60 * time.Second
	askAgain = 30 * time.Second
)

// network brings up all interfaces in the background.
type network struct {
	notice func(string)
	// settled is closed when each interface with a link has its lease.
	settled  chan struct{}
	once     sync.Once // await
	resolver sync.Mutex
}

// startNetwork brings up the loopback interface, and the others by DHCP unless
// the command line says not to.
func startNetwork(sys string, dhcp bool, notice func(string)) *network {
	n := &network{notice: notice, settled: make(chan struct{})}
	if err := netconf.UpLoopback(); err != nil {
		notice("network: loopback: " + err.Error())
	}
	var interfaces []netconf.Interface
	if dhcp {
		var err error
		if interfaces, err = netconf.Interfaces(sys); err != nil {
			notice("network: " + err.Error())
		}
	}
	var leased sync.WaitGroup
	for _, i := range interfaces {
		if err := i.Up(); err != nil {
			notice("network: " + i.Name + ": " + err.Error())
			continue
		}
		first := func() {}
		if i.Carrier(sys) {
			leased.Add(1)
			first = sync.OnceFunc(leased.Done)
		}
		guarded("network "+i.Name, func() { n.keep(i, first) })
	}
	guarded("network", func() {
		leased.Wait()
		close(n.settled)
	})
	return n
}

// await waits for the first leases, for a bounded time after it was first called.
func (n *network) await() {
	n.once.Do(func() {
		timer := time.NewTimer(networkWait)
		defer timer.Stop()
		select {
		case <-n.settled:
		case <-timer.C:
			n.notice("network: no DHCP answer so far, going on without")
		}
	})
}

// keep gets a lease and renews it, for ever.
func (n *network) keep(i netconf.Interface, first func()) {
	conn, err := netconf.Listen(i.Index)
	if err != nil {
		n.notice("network: " + i.Name + ": " + err.Error())
		first()
		return
	}
	client := &netconf.Client{Conn: conn, MAC: i.MAC}
	for {
		lease, err := client.Acquire(time.Now().Add(askFor))
		if err == nil {
			err = n.apply(i, lease)
		}
		first()
		if err != nil {
			if !errors.Is(err, netconf.ErrNoAnswer) {
				n.notice("network: " + i.Name + ": " + err.Error())
			}
			time.Sleep(askAgain)
			continue
		}
		n.renew(client, i, lease)
	}
}

// renew returns when a lease could not be kept.
func (n *network) renew(client *netconf.Client, i netconf.Interface, lease *netconf.Lease) {
	for {
		time.Sleep(lease.For / 2)
		next, err := client.Renew(lease, time.Now().Add(lease.For*3/8))
		if err == nil {
			err = n.apply(i, next)
		}
		if err != nil {
			n.notice("network: " + i.Name + ": renew lease: " + err.Error())
			return
		}
		lease = next
	}
}

func (n *network) apply(i netconf.Interface, lease *netconf.Lease) error {
	if err := i.Apply(lease); err != nil {
		return err
	}
	n.resolver.Lock()
	defer n.resolver.Unlock()
	if len(lease.DNS) == 0 {
		return nil
	}
	if err := os.WriteFile("/etc/resolv.conf", []byte(lease.Resolver()), 0o644); err != nil {
		n.notice("network: " + err.Error()) // a root that is read-only
	}
	return nil
}
