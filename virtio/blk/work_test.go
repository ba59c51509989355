package blk_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/blk"
	"github.com/peervisor/peervisor/virtio/blk/blktest"
)

// Requests of one Submit that lie one after the other are one operation.
func TestAdjacentRequestsAreMerged(t *testing.T) {
	disk, dev := newDisk(t, blk.Config{})
	disk.SetContent(pattern(5, sectors*512))
	d := activate(t, dev, all)
	var rs []request
	for i := range 8 {
		rs = append(rs, d.make(0, header(blk.VIRTIO_BLK_T_IN, uint64(i*8)), 4096))
	}
	d.submit(rs...)
	for i, r := range rs {
		if r.status() != 0 || r.Used() != 4097 || !bytes.Equal(r.data(), pattern(5, sectors*512)[i*4096:][:4096]) {
			t.Fatalf("request %d: status %d, used %d, or wrong data", i, r.status(), r.Used())
		}
	}
	if disk.Ops() != 1 || dev.Stats().Merged != 7 || dev.Stats().Reads != 8 {
		t.Errorf("%d operations, %+v", disk.Ops(), dev.Stats())
	}
}

// A bad sector under merged requests fails the request that it is in and no other.
func TestMergedFailureIsOneRequests(t *testing.T) {
	for _, write := range []bool{false, true} {
		for _, hint := range []error{nil, blk.ErrWouldBlock, blk.ErrUnsure} {
			var mu sync.Mutex
			var reported []error
			disk, dev := newDisk(t, blk.Config{Report: func(err error) { mu.Lock(); reported = append(reported, err); mu.Unlock() }})
			disk.SetContent(pattern(5, sectors*512))
			disk.SetNoWait(hint)
			disk.Bad(3*512+100, 3*512+101)
			d := activate(t, dev, all)
			var rs []request
			for i := range 8 {
				if write {
					rs = append(rs, d.make(0, append(header(blk.VIRTIO_BLK_T_OUT, uint64(i)), pattern(byte(i), 512)...), 0))
				} else {
					rs = append(rs, d.make(0, header(blk.VIRTIO_BLK_T_IN, uint64(i)), 512))
				}
			}
			d.submit(rs...)
			for i, r := range rs {
				want := 0
				if i == 3 {
					want = 1
				}
				if r.status() != want {
					t.Errorf("write %v, hint %v: request %d has status %d", write, hint, i, r.status())
				}
				if !write && i != 3 && !bytes.Equal(r.data(), pattern(5, sectors*512)[i*512:][:512]) {
					t.Errorf("request %d has wrong data", i)
				}
				if write && i != 3 && !bytes.Equal(disk.Content()[i*512:][:512], pattern(byte(i), 512)) {
					t.Errorf("write %d is not there", i)
				}
			}
			mu.Lock()
			if len(reported) == 0 || !errors.Is(reported[0], blktest.ErrInjected) {
				t.Errorf("reported %v", reported)
			}
			mu.Unlock()
		}
	}
}

// Storage that is waited for does not hold up what is in the cache.
func TestSlowReadDoesNotBlockQueue(t *testing.T) {
	disk, dev := newDisk(t, blk.Config{})
	d := activate(t, dev, all)
	disk.SetNoWait(blk.ErrWouldBlock)
	open := disk.Shut()
	slow := []request{d.make(0, header(blk.VIRTIO_BLK_T_IN, 0), 512), d.make(0, header(blk.VIRTIO_BLK_T_IN, 100), 512)}
	d.send(slow...) // returns
	id := d.make(0, header(blk.VIRTIO_BLK_T_GET_ID, 0), 20)
	d.submit(id)
	if id.status() != 0 || slow[0].status() != 0xEE {
		t.Fatalf("status of the quick one %d, of a slow one %d", id.status(), slow[0].status())
	}
	open()
	d.ch.wait(t, 3)
	if dev.Stats().Deferred != 2 {
		t.Errorf("%+v", dev.Stats())
	}
}

// 5.2.6.2 and DESIGN: a flush covers what was completed before it was sent, and
// only a Flush that started later acknowledges it; waiting ones share the next.
func TestFlushesAreMergedSafely(t *testing.T) {
	disk, dev := newDisk(t, blk.Config{Queues: 2})
	d := activate(t, dev, all)
	open := disk.Shut()
	first := d.make(0, header(blk.VIRTIO_BLK_T_FLUSH, 0), 0)
	d.send(first) // its Flush is under way, or will be before the write below
	open()
	d.ch.wait(t, 1)

	gate := disk.Shut()
	early := d.make(0, header(blk.VIRTIO_BLK_T_FLUSH, 0), 0)
	d.send(early)
	gate()
	d.ch.wait(t, 2)
	if w := d.write(0, pattern(4, 512)); w.status() != 0 {
		t.Fatal("write failed")
	}
	gate = disk.Shut()
	var rs []request
	for i := range 6 {
		r := d.make(i%2, header(blk.VIRTIO_BLK_T_FLUSH, 0), 0)
		rs = append(rs, r)
		d.send(r)
	}
	gate()
	d.ch.wait(t, 3+6)
	for _, r := range rs {
		if r.status() != 0 {
			t.Errorf("flush: status %d", r.status())
		}
	}
	if !bytes.Equal(disk.Stable()[:512], pattern(4, 512)) {
		t.Error("an acknowledged flush left a completed write behind")
	}
	if n := disk.Flushes(); n > 5 {
		t.Errorf("%d flushes of the backend for 8 requests: they do not share", n)
	}
}

// After a failed flush nothing is written any more; reads go on.
func TestFailedFlushIsForGood(t *testing.T) {
	disk, dev := newDisk(t, blk.Config{})
	d := activate(t, dev, all)
	disk.FailAfter(0, true)
	if f := d.flush(); f.status() != 1 {
		t.Fatalf("status of the failed flush %d", f.status())
	}
	check := func() {
		t.Helper()
		if f := d.flush(); f.status() != 1 {
			t.Errorf("the next flush: status %d", f.status())
		}
		if w := d.write(0, pattern(1, 512)); w.status() != 1 {
			t.Errorf("write: status %d", w.status())
		}
		z := d.do(append(header(blk.VIRTIO_BLK_T_WRITE_ZEROES, 0), ranges([3]uint64{0, 1, 0})...), 0)
		if z.status() != 1 {
			t.Errorf("zeroes: status %d", z.status())
		}
		if r := d.read(0, 512); r.status() != 0 {
			t.Errorf("read: status %d", r.status())
		}
	}
	check()
	dev.Reset()
	d = activate(t, dev, all)
	check()
	if err := dev.Err(); !errors.Is(err, blk.ErrFailed) || !errors.Is(err, blktest.ErrInjected) {
		t.Errorf("Err() = %v", err)
	}
	if disk.Flushes() != 0 || !bytes.Equal(disk.Content(), make([]byte, sectors*512)) {
		t.Error("something was written after the failure")
	}
}

// Fail operation 0, 1, 2 … of a workload: the request gets IOERR, what was
// acknowledged by a flush is stable, nothing is lost or ends twice.
func TestFaultSweep(t *testing.T) {
	for _, hint := range []error{nil, blk.ErrWouldBlock, blk.ErrUnsure} {
		for fail := 0; ; fail++ {
			disk, dev := newDisk(t, blk.Config{})
			disk.SetNoWait(hint)
			disk.FailAfter(fail, true)
			d := activate(t, dev, all)
			failed := 0
			for i := range 6 {
				p := pattern(byte(i), 1024)
				w := d.write(uint64(i*4), p)
				f := d.flush()
				r := d.read(uint64(i*4), 1024)
				for _, x := range []request{w, f, r} {
					if x.status() != 0 {
						failed++
					}
				}
				if w.status() == 0 && f.status() == 0 && !bytes.Equal(disk.Stable()[i*4*512:][:1024], p) {
					t.Fatalf("failure %d: an acknowledged flush lost write %d", fail, i)
				}
				if w.status() == 0 && r.status() == 0 && !bytes.Equal(r.data(), p) {
					t.Fatalf("failure %d: write %d is not read back", fail, i)
				}
			}
			dev.Reset()
			if len(d.ch.done) != 18 {
				t.Fatalf("failure %d: %d of 18 requests ended", fail, len(d.ch.done))
			}
			if failed == 0 {
				if fail != 18 {
					t.Fatalf("no failure seen after %d operations", fail)
				}
				break
			}
		}
	}
}

// 2.1 and the contract: when Reset returns, nothing touches a request.
func TestResetDuringIO(t *testing.T) {
	disk, dev := newDisk(t, blk.Config{Workers: 2})
	disk.SetNoWait(blk.ErrWouldBlock)
	for range 20 {
		d := activate(t, dev, all)
		open := disk.Shut()
		for i := range 16 {
			d.send(d.make(0, header(blk.VIRTIO_BLK_T_IN, uint64(i*3)), 512))
			if i%4 == 0 {
				d.send(d.make(0, header(blk.VIRTIO_BLK_T_FLUSH, 0), 0))
			}
		}
		go open()
		dev.Reset()
		d.ch.mu.Lock()
		d.ch.closed = true
		d.ch.mu.Unlock()
		open()
		if d.ch.late || len(d.ch.done) > 20 {
			t.Fatal("a completion came after Reset")
		}
	}
	dev.Reset() // of an idle half does nothing
}

// Random reads, writes and zeroes over several queues at once, with odd
// descriptor boundaries, against a model.
func TestRandomAgainstModel(t *testing.T) {
	for _, hint := range []error{nil, blk.ErrWouldBlock, blk.ErrUnsure} {
		disk, dev := newDisk(t, blk.Config{Queues: 4})
		disk.SetNoWait(hint)
		d := activate(t, dev, all)
		rng := rand.New(rand.NewPCG(1, 2))
		d.cuts = rng
		model := make([]byte, sectors*512)
		for range 300 {
			at, n := rng.IntN(sectors), 1+rng.IntN(16)
			n = min(n, sectors-at)
			switch rng.IntN(3) {
			case 0:
				p := pattern(byte(rng.Uint32()), n*512)
				copy(model[at*512:], p)
				if w := d.write(uint64(at), p); w.status() != 0 {
					t.Fatalf("write: status %d", w.status())
				}
			case 1:
				clear(model[at*512 : (at+n)*512])
				z := d.do(append(header(blk.VIRTIO_BLK_T_WRITE_ZEROES, 0), ranges([3]uint64{uint64(at), uint64(n), 1})...), 0)
				if z.status() != 0 {
					t.Fatalf("zeroes: status %d", z.status())
				}
			default:
				rs := make([]request, 4)
				for i := range rs {
					k := min(n, sectors-at)
					rs[i] = d.make(2, header(blk.VIRTIO_BLK_T_IN, uint64(at)), k*512)
				}
				d.submit(rs...)
				for _, r := range rs {
					if r.status() != 0 || !bytes.Equal(r.data(), model[at*512:][:len(r.data())]) {
						t.Fatal("a read differs from the model")
					}
				}
			}
		}
		if !bytes.Equal(disk.Content(), model) {
			t.Fatal("the disk differs from the model")
		}
	}
}

// The queue is drained by itself: a quiesced disk holds nothing back.
func TestQuiesce(t *testing.T) {
	disk, dev := newDisk(t, blk.Config{})
	disk.SetNoWait(blk.ErrWouldBlock)
	d := activate(t, dev, all)
	for i := range 10 {
		d.send(d.make(0, header(blk.VIRTIO_BLK_T_IN, uint64(i*9)), 512))
	}
	dev.Quiesce(0)
	d.ch.wait(t, 10)
	if len(d.ch.returned) != 0 {
		t.Error("requests were returned")
	}
}

var _ virtio.Device = (*blk.Device)(nil)
