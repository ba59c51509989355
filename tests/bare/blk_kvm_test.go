package bare

import (
	"fmt"
	"testing"

	"github.com/peervisor/peervisor/virtio"
)

func TestGuestSaysHello(t *testing.T) {
	r := run(t, spec{cmdline: "bare.test=hello"})
	if r.RAMEnd != 128<<20 {
		t.Errorf("guest sees RAM up to %#x, want 128 MiB", r.RAMEnd)
	}
}

func TestBlkVerifiesDataUnderLoad(t *testing.T) {
	for _, keys := range []string{
		"op=randrw depth=1",
		"op=randrw depth=32 flush_every=64",
		"op=randrw depth=32 wait=irq",
		"op=randrw depth=32 wait=irq event_idx=0",
		"op=randrw depth=16 event_idx=0 indirect=0 pieces=7",
		"op=randrw depth=16 size=512 wait=irq pieces=3",
		"op=randrw depth=8 size=256K pieces=30 wait=irq",
		"op=seqwrite depth=16 size=64K flush_every=16",
		"op=seqread depth=16 size=256K",
		"op=randrw depth=2 ring=8 indirect=0 wait=irq",
	} {
		t.Run(keys, func(t *testing.T) {
			r := run(t, spec{cmdline: "bare.test=blk verify=1 seconds=60 ops=3000 span=32M " + keys, halves: []virtio.Device{disk(t, 32, 1)}})
			if r.Ops < 3000 {
				t.Errorf("%d operations, want at least 3000: %s", r.Ops, r.Line)
			}
		})
	}
}

func TestBlkInterruptsWakeASleepingGuest(t *testing.T) {
	r := run(t, spec{cmdline: "bare.test=blk op=randread depth=1 wait=irq seconds=60 ops=2000", halves: []virtio.Device{disk(t, 16, 1)}})
	// Each sleep ended by an interrupt; a request that was done before the guest
	// slept needs none.
	if r.Waits > 0 && r.IRQs == 0 || r.IRQs > r.Ops+1 {
		t.Errorf("%d operations, %d sleeps, %d interrupts", r.Ops, r.Waits, r.IRQs)
	}
}

func TestBlkPollingGuestGetsFewInterrupts(t *testing.T) {
	for _, eventIdx := range []int{0, 1} {
		r := run(t, spec{cmdline: fmt.Sprintf("bare.test=blk op=randread depth=8 seconds=60 ops=5000 event_idx=%d", eventIdx),
			halves: []virtio.Device{disk(t, 16, 1)}})
		// It asks for none; with EVENT_IDX one may come every 65536 entries.
		if r.IRQs > 1 {
			t.Errorf("event_idx=%d: %d interrupts for %d operations, want none", eventIdx, r.IRQs, r.Ops)
		}
	}
}

func TestBlkQueuesAndProcessors(t *testing.T) {
	for _, n := range []int{2, 4} {
		t.Run(fmt.Sprintf("%d queues of one disk", n), func(t *testing.T) {
			run(t, spec{cpus: n, halves: []virtio.Device{disk(t, 32, n)},
				cmdline: fmt.Sprintf("bare.test=blk op=randrw verify=1 depth=8 seconds=60 ops=1000 flush_every=50 cpus=%d", n)})
		})
		t.Run(fmt.Sprintf("%d disks", n), func(t *testing.T) {
			var halves []virtio.Device
			for range n {
				halves = append(halves, disk(t, 16, 1))
			}
			run(t, spec{cpus: n, halves: halves,
				cmdline: fmt.Sprintf("bare.test=blk op=randrw verify=1 depth=8 seconds=60 ops=1000 cpus=%d disks=%d", n, n)})
		})
	}
}

func TestChaosBlkSoak(t *testing.T) {
	chaos(t, 1, func(i int) {
		r := run(t, spec{halves: []virtio.Device{disk(t, 64, 1)}, cmdline: fmt.Sprintf("bare.test=blk-soak seconds=3 seed=%d", i+1)})
		if r.Resets == 0 || r.Flushes == 0 {
			t.Errorf("nothing was mixed: %s", r.Line)
		}
		t.Log(r.Line)
	})
}
