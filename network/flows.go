package network

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// flowKind tells tables and replies apart.
type flowKind uint8

const (
	flowUDP flowKind = iota
	flowPing
	flowForward // UDP from this machine through a HostForward
	flowKinds
)

// flowKey names a flow as the guest sees it: its own address and the other's. For
// a ping the guest's port is the identifier, the other port 0.
type flowKey struct {
	kind         flowKind
	guest, other netip.AddrPort
}

// flow is one entry of the tables. last is nanoseconds since flows.epoch.
type flow struct {
	key  flowKey
	last atomic.Int64
	// send passes a datagram of the guest on without waiting; false: not taken.
	send func(payload []byte) bool
	// close ends the flow's goroutine, if it has one. It does not wait.
	close func()
}

// flows holds the connectionless traffic: bounded tables that drop the entry
// that was idle longest.
type flows struct {
	u     *User
	epoch time.Time
	limit [flowKinds]int

	mu     sync.Mutex
	table  map[flowKey]*flow
	open   [flowKinds]int
	closed bool
}

func (f *flows) init(u *User) {
	f.u, f.epoch, f.table = u, time.Now(), make(map[flowKey]*flow)
	f.limit = [flowKinds]int{flowUDP: u.cfg.MaxUDP, flowPing: u.cfg.MaxPing, flowForward: u.cfg.MaxUDP}
}

func (f *flows) now() int64 { return int64(time.Since(f.epoch)) }

func (f *flows) touch(fl *flow) { fl.last.Store(f.now()) }

// idle is how long the flow has had no traffic.
func (f *flows) idle(fl *flow) time.Duration { return time.Duration(f.now() - fl.last.Load()) }

func (f *flows) count() (udp, ping int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open[flowUDP] + f.open[flowForward], f.open[flowPing]
}

func (f *flows) get(k flowKey) *flow {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.table[k]
	if fl != nil {
		f.touch(fl)
	}
	return fl
}

// add enters a flow, in place of the one of its kind that was idle longest if
// the table is full. false: the network is closing.
func (f *flows) add(fl *flow) bool {
	f.touch(fl)
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return false
	}
	var victim *flow
	if kind := fl.key.kind; f.open[kind] >= f.limit[kind] {
		victim = f.oldestLocked(kind)
	}
	if victim != nil {
		f.removeLocked(victim)
	}
	if old := f.table[fl.key]; old != nil {
		f.removeLocked(old)
		defer old.close()
	}
	f.table[fl.key] = fl
	f.open[fl.key.kind]++
	f.mu.Unlock()
	if victim != nil {
		f.u.stats.limitDrops.Add(1)
		victim.close()
	}
	return true
}

func (f *flows) oldestLocked(kind flowKind) *flow {
	var oldest *flow
	for k, fl := range f.table {
		if k.kind == kind && (oldest == nil || fl.last.Load() < oldest.last.Load()) {
			oldest = fl
		}
	}
	return oldest
}

func (f *flows) removeLocked(fl *flow) {
	if f.table[fl.key] == fl {
		delete(f.table, fl.key)
		f.open[fl.key.kind]--
	}
}

// remove takes a flow out, if it is still in.
func (f *flows) remove(fl *flow) {
	f.mu.Lock()
	f.removeLocked(fl)
	f.mu.Unlock()
}

// sweep ends the flows of a kind that were idle for so long. Flows with a reader
// do that themselves.
func (f *flows) sweep(kind flowKind, idle time.Duration) {
	var old []*flow
	f.mu.Lock()
	for k, fl := range f.table {
		if k.kind == kind && f.idle(fl) >= idle {
			old = append(old, fl)
			f.removeLocked(fl)
		}
	}
	f.mu.Unlock()
	for _, fl := range old {
		fl.close()
	}
}

// closeAll ends all flows; their goroutines are waited for elsewhere.
func (f *flows) closeAll() {
	f.mu.Lock()
	f.closed = true
	var all []*flow
	for _, fl := range f.table {
		all = append(all, fl)
	}
	clear(f.table)
	f.open = [flowKinds]int{}
	f.mu.Unlock()
	for _, fl := range all {
		fl.close()
	}
}
