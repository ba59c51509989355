package vmm

import (
	"sync/atomic"
	"time"

	"github.com/peervisor/peervisor/kvm"
	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/vmm/chipset"
)

// Stats is a snapshot of a machine's counters. Counters run from New on; each
// is exact, but they are not of one instant.
type Stats struct {
	State State   `json:"state"`
	Times Times   `json:"times"`
	CPUs  int     `json:"cpus"`
	Exits []Exits `json:"exits"`
	// Ranges has what the guest's exits reached, one entry for each range of the
	// buses. Notifications by ioeventfd are not exits and are not in it.
	Ranges []RangeStats `json:"ranges"`
	// Unclaimed counts accesses to ports and addresses where nobody answers.
	Unclaimed uint64 `json:"unclaimed"`
	// Kicks counts requests to a vCPU to leave the guest.
	Kicks uint64 `json:"kicks"`
	// LostDoorbells counts notification addresses that KVM had no room for: they
	// work, by exits.
	LostDoorbells uint64 `json:"lostDoorbells"`
	// Devices has the virtio devices in the order of the configuration.
	Devices []virtio.Stats `json:"devices"`
}

// Times are moments of a machine's life; zero: not reached.
type Times struct {
	// New is when New was called, Loaded when the kernel was in memory, Ready when
	// New returned, FirstEntry when vCPU 0 was about to enter the guest for the
	// first time, Ended when the guest had ended.
	New        time.Time `json:"new"`
	Loaded     time.Time `json:"loaded"`
	Ready      time.Time `json:"ready"`
	FirstEntry time.Time `json:"firstEntry"`
	Ended      time.Time `json:"ended"`
}

// Exits counts returns of KVM_RUN of one kind: "io", "mmio", "intr" and so on,
// after KVM's exit reasons.
type Exits struct {
	Kind  string `json:"kind"`
	Count uint64 `json:"count"`
}

// RangeStats counts accesses to one range of a bus.
type RangeStats struct {
	Name   string `json:"name"`
	Reads  uint64 `json:"reads"`
	Writes uint64 `json:"writes"`
}

// exitCounters has one counter for each exit reason, and one for the others.
type exitCounters [kvm.ExitReasons + 1]atomic.Uint64

func (c *exitCounters) add(r kvm.ExitReason) { c[min(int(r), kvm.ExitReasons)].Add(1) }

// counted is a Handler that counts on its way to another.
type counted struct {
	name          string
	h             chipset.Handler
	reads, writes atomic.Uint64
}

func (c *counted) Read(off uint64, p []byte) {
	c.reads.Add(1)
	c.h.Read(off, p)
}

func (c *counted) Write(off uint64, p []byte) {
	c.writes.Add(1)
	c.h.Write(off, p)
}

func exitKind(i int) string {
	if i >= kvm.ExitReasons {
		return "other"
	}
	return kvm.ExitReason(i).String()
}
