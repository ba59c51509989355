package virtio_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/peervisor/peervisor/memory"
	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/virtiotest"
)

// 6.1: VIRTIO_F_VERSION_1 is offered and required. 2.2.1: what was not offered is
// refused. 2.2.1: the same set is accepted again after a reset.
func TestFeatures_2_2_1(t *testing.T) {
	const offered = 0b11 | 1<<28 | 1<<29 | 1<<32
	cases := []struct {
		name     string
		features uint64
		ok       bool
	}{
		{"all", offered, true},
		{"least", 1 << 32, true},
		{"a subset", 1<<32 | 1, true},
		{"without VERSION_1", offered &^ (1 << 32), false},
		{"none", 0, false},
		{"one too many", offered | 1<<2, false},
		{"packed ring", offered | 1<<34, false},
		{"ring reset", offered | 1<<40, false},
		{"bit 63", offered | 1<<63, false},
	}
	virtiotest.Each(t, func(t *testing.T, make maker) {
		d := virtiotest.NewDriver(t, virtiotest.NewDevice(1, 8), make)
		if d.Features != offered {
			t.Errorf("offered %#x, want %#x", d.Features, uint64(offered))
		}
		for range 2 {
			for _, c := range cases {
				d.Features = c.features
				if ok := d.Negotiate(); ok != c.ok {
					t.Errorf("%s: accepted %v, want %v", c.name, ok, c.ok)
				}
			}
		}
	})
}

// 2.1: the driver follows the order; bits that skip it are not set; bits are not
// cleared but by a reset.
func TestStatusOrder_2_1(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		half := virtiotest.NewDevice(1, 8)
		d := virtiotest.NewDriver(t, half, make)
		step := func(write, want byte) {
			t.Helper()
			d.T.SetStatus(write)
			if got := d.T.Status(); got != want {
				t.Errorf("status is %#x after writing %#x, want %#x", got, write, want)
			}
		}
		step(2, 0)     // DRIVER before ACKNOWLEDGE
		step(4, 0)     // DRIVER_OK alone
		step(1, 1)     // ACKNOWLEDGE
		step(8, 1)     // FEATURES_OK before DRIVER
		step(64|32, 1) // NEEDS_RESET is the device's, 32 is nobody's
		step(3, 3)
		step(7, 3)  // DRIVER_OK before FEATURES_OK
		step(11, 3) // FEATURES_OK without VERSION_1
		d.T.SetDriverFeatures(d.Features)
		step(1, 3) // no bit is cleared
		step(11, 11)
		d.T.SetDriverFeatures(0) // ignored from here
		step(15, 15)
		if f := half.Activated[0].Features; f != d.Features {
			t.Errorf("features %#x changed after FEATURES_OK", f)
		}
		step(15|128, 15|128)
		d.T.SetStatus(0) // 2.4.1: reset reinitializes to 0
		virtiotest.WaitFor(t, "status 0", func() bool { return d.T.Status() == 0 })
		step(15, 3)
	})
}

// 2.4.1, 4.1.4.3.1, 4.2.2.1: after a reset everything is as at first.
func TestReset_2_4_1(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		half := virtiotest.NewDevice(2, 64)
		d := virtiotest.NewDriver(t, half, make)
		d.Start(8)
		echo(t, d, d.Queues[0], 10, 2, false)
		old := d.Queues
		d.T.SetStatus(0)
		virtiotest.WaitFor(t, "status 0", func() bool { return d.T.Status() == 0 })
		for i := range 2 {
			if d.T.QueueEnabled(i) || d.T.QueueMax(i) != 64 {
				t.Errorf("queue %d: enabled %v, size %d", i, d.T.QueueEnabled(i), d.T.QueueMax(i))
			}
		}
		// No queue is touched, nobody is notified.
		before, used := d.T.QueueInterrupts(0), old[0].UsedIdx()
		old[0].Add(virtiotest.Buf{Addr: ram, Len: 1, Writable: true})
		old[0].Expose()
		d.T.Notify(0)
		d.Start(8)
		echo(t, d, d.Queues[1], 10, 2, false)
		if old[0].UsedIdx() != used || d.T.QueueInterrupts(0) != before && d.T.Name() == "pci" {
			t.Error("a queue from before the reset was worked")
		}
	})
}

// 2.5.2: the configuration can be read before FEATURES_OK. Written, too: a driver
// negotiates with it.
func TestConfigBeforeFeaturesOK_2_5_2(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		half := virtiotest.NewDevice(1, 8)
		d := virtiotest.NewDriver(t, half, make)
		p := []byte{0, 0, 0, 0, 0, 0, 0, 0}
		d.T.ReadConfig(0, p)
		if !slices.Equal(p, half.DeviceInfo.Config) {
			t.Errorf("read %v", p)
		}
		d.T.WriteConfig(4, []byte{9})
		if _, _, n := half.Count(); n != 1 {
			t.Errorf("the half got %d writes", n)
		}
	})
}

// What a half may not say of itself.
func TestInfoIsChecked(t *testing.T) {
	mem := virtiotest.NewMemory(t, 1<<20)
	bad := map[string]func(i *virtio.Info){
		"feature bit 28":   func(i *virtio.Info) { i.Features |= 1 << 28 },
		"feature bit 49":   func(i *virtio.Info) { i.Features |= 1 << 49 },
		"device type 0":    func(i *virtio.Info) { i.ID = 0 },
		"1025 queues":      func(i *virtio.Info) { i.Queues = make([]virtio.QueueInfo, 1025) },
		"size 0":           func(i *virtio.Info) { i.Queues[0].MaxSize = 0 },
		"size 24":          func(i *virtio.Info) { i.Queues[0].MaxSize = 24 },
		"size 65535":       func(i *virtio.Info) { i.Queues[0].MaxSize = 65535 },
		"4097 config byte": func(i *virtio.Info) { i.Config = make([]byte, 4097) },
	}
	for name, f := range bad {
		d := virtiotest.NewDevice(1, 8)
		f(&d.DeviceInfo)
		if c, err := virtio.NewCore(virtio.CoreConfig{Name: "bad", Device: d, Memory: mem, Notifier: deaf{}}); err == nil {
			t.Errorf("%s: accepted", name)
			_ = c.Close()
		} else if !strings.HasPrefix(err.Error(), "virtio device bad: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type deaf struct{}

func (deaf) QueueInterrupt(int) error { return nil }
func (deaf) ConfigInterrupt() error   { return nil }
func (deaf) ResetDone()               {}

// 2.7.5.3.2: the WRITE flag of an indirect descriptor is ignored, and direct
// descriptors may come before it. 2.7.4.1: no framing is assumed; descriptors
// of length 0 carry nothing.
func TestIndirectAfterDirect_2_7_5_3_2(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		half := virtiotest.NewDevice(1, 8)
		lens := [][2]int{}
		half.Serve = func(d *virtiotest.Device, r *virtio.Request) {
			lens = append(lens, [2]int{r.ReadableLen(), r.WritableLen()})
			virtiotest.Echo(d, r)
		}
		d := virtiotest.NewDriver(t, half, make)
		d.Start(0)
		q := d.Queues[0]
		d.Put(ram, []byte("abcdefgh"))
		table := memory.Addr(ram + 0x1000)
		d.Put(table, virtiotest.Desc{Addr: ram + 3, Len: 5, Flags: next, Next: 2}.Bytes())
		d.Put(table+32, virtiotest.Desc{Addr: ram + 0x2000, Len: 100, Flags: write}.Bytes())
		q.SetDesc(0, virtiotest.Desc{Addr: ram, Len: 3, Flags: next, Next: 5})
		q.SetDesc(5, virtiotest.Desc{Addr: 0xFFFF_FFFF_FFFF_FFFF, Len: 0, Flags: next, Next: 6})
		q.SetDesc(6, virtiotest.Desc{Addr: uint64(table), Len: 48, Flags: indirect | write})
		q.Push(0)
		q.Kick()
		if u := q.Wait(1)[0]; u != (virtiotest.Used{ID: 0, Len: 8}) || string(d.Get(ram+0x2000, 8)) != "abcdefgh" {
			t.Errorf("used %+v, bytes %q", u, d.Get(ram+0x2000, 8))
		}
		// A chain of nothing at all is a request, too.
		q.SetDesc(1, virtiotest.Desc{})
		q.Push(1)
		q.Kick()
		q.Wait(1)
		settle(t, d)
		if want := [][2]int{{8, 100}, {0, 0}}; !slices.Equal(lens, want) {
			t.Errorf("lengths %v, want %v", lens, want)
		}
	})
}

// 2.7.7.2, without EVENT_IDX: flags 1 suppresses the interrupt, flags 0 demands
// it, used_event is ignored.
func TestUsedNotification_2_7_7_2_flags(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		d := virtiotest.NewDriver(t, virtiotest.NewDevice(1, 8), make)
		d.Features &^= 1 << virtio.VIRTIO_F_EVENT_IDX
		d.Start(0)
		q := d.Queues[0]
		send := func() int {
			t.Helper()
			before := d.T.Stats().Queues[0].Interrupts
			q.Add(virtiotest.Buf{Addr: ram, Len: 1, Writable: true})
			q.Kick()
			q.Wait(1)
			settle(t, d)
			return int(d.T.Stats().Queues[0].Interrupts - before)
		}
		q.SetUsedEvent(0x7777)
		if n := send(); n != 1 {
			t.Errorf("flags 0: %d interrupts", n)
		}
		q.SetAvailFlags(virtio.VIRTQ_AVAIL_F_NO_INTERRUPT)
		if n := send(); n != 0 {
			t.Errorf("flags 1: %d interrupts", n)
		}
	})
}

// settle waits until nothing is under way in the transport half: used entries
// are visible before the interrupt is.
func settle(t *testing.T, d *virtiotest.Driver) {
	t.Helper()
	if err := d.T.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.T.Resume(); err != nil {
		t.Fatal(err)
	}
}

// 2.7.7.2, with EVENT_IDX: an interrupt comes exactly when the entry of used_event is
// written, flags are ignored.
func TestUsedNotification_2_7_7_2_event(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		half := holding(1, 16)
		r := rig{virtiotest.NewDriver(t, half, make), half, nil}
		r.Start(0)
		q := r.Queues[0]
		q.SetAvailFlags(virtio.VIRTQ_AVAIL_F_NO_INTERRUPT)
		used := 0
		complete := func(n int) int {
			t.Helper()
			before := r.T.Stats().Queues[0].Interrupts
			r.post(t, 0, n)
			reqs := half.Held(0)
			for _, req := range reqs {
				req.SetUsed(1)
			}
			half.Channel().Complete(reqs)
			q.Wait(n)
			used += n
			return int(r.T.Stats().Queues[0].Interrupts - before)
		}
		for _, c := range []struct{ event, n, want int }{
			{0, 1, 1},      // entry 0 is used_event
			{0, 1, 0},      // passed
			{2, 1, 1},      // entry 2
			{5, 2, 0},      // entries 3, 4
			{5, 3, 1},      // entries 5, 6, 7
			{10, 3, 1},     // entries 8, 9, 10: the last one
			{10, 2, 0},     //
			{0xFFFF, 2, 0}, // far ahead
		} {
			q.SetUsedEvent(uint16(c.event))
			first := used
			if got := complete(c.n); got != c.want {
				t.Errorf("used_event %d, entries %d to %d: %d interrupts, want %d", c.event, first, used-1, got, c.want)
			}
		}
	})
}

// 2.7.10.1: with EVENT_IDX the device leaves flags 0 and asks by avail_event;
// without, by flags. In both the driver's last notification is never lost.
func TestAvailNotification_2_7_10_1(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		for _, eventIdx := range []bool{true, false} {
			d := virtiotest.NewDriver(t, virtiotest.NewDevice(1, 8), make)
			if !eventIdx {
				d.Features &^= 1 << virtio.VIRTIO_F_EVENT_IDX
			}
			d.Start(0)
			q := d.Queues[0]
			for i := range 200 {
				q.Add(virtiotest.Buf{Addr: ram, Len: 1, Writable: true})
				q.Kick()
				q.Wait(1)
				if eventIdx && q.UsedFlags() != 0 {
					t.Fatal("flags are set in spite of EVENT_IDX")
				}
				if i%20 == 0 { // let it go to sleep: then it must want the next one
					virtiotest.WaitFor(t, "the device to want notifications", func() bool {
						if eventIdx {
							return q.AvailEvent() == uint16(i+1)
						}
						return q.UsedFlags() == 0
					})
				}
			}
			// Spurious notifications are handled.
			for range 50 {
				d.T.Notify(0)
			}
			echo(t, d, q, 10, 2, false)
		}
	})
}

// 2.7: indices wrap at 2^16, and the ring at its size.
func TestIndicesWrap_2_7(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, make maker) {
		d := virtiotest.NewDriver(t, virtiotest.NewDevice(1, 256), make)
		d.Start(256)
		q := d.Queues[0]
		for sent := 0; sent < 1<<16+1000; sent += 128 {
			for range 128 {
				q.Add(virtiotest.Buf{Addr: ram, Len: 1, Writable: true})
			}
			q.Kick()
			q.Wait(128)
		}
	})
}
