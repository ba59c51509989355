package blk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/blk"
	"github.com/peervisor/peervisor/virtio/blk/blktest"
)

const all = 1<<blk.VIRTIO_BLK_F_FLUSH | 1<<blk.VIRTIO_BLK_F_DISCARD | 1<<blk.VIRTIO_BLK_F_WRITE_ZEROES

const sectors = 256

func newDisk(t testing.TB, cfg blk.Config) (*blktest.Disk, *blk.Device) {
	t.Helper()
	disk := blktest.New(blk.Info{SizeBytes: sectors * 512})
	cfg.Backend = disk
	dev, err := blk.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dev.Close(); err != nil {
			t.Error(err)
		}
	})
	return disk, dev
}

// 5.2.4: the fields of the configuration space, each where the specification has it.
func TestConfigSpace_5_2_4(t *testing.T) {
	disk := blktest.New(blk.Info{SizeBytes: 1<<20 + 100, BlockBytes: 512, PhysicalBytes: 4096, ZeroUnmaps: true})
	dev, err := blk.New(blk.Config{Backend: disk, Queues: 4, QueueSize: 128})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	in := dev.Info()
	if in.ID != virtio.VIRTIO_ID_BLOCK || len(in.Queues) != 4 || in.Features&virtio.TransportFeatureMask != 0 {
		t.Fatalf("info %+v", in)
	}
	for _, q := range in.Queues {
		if q.Replay != virtio.ReplayReexecute || q.Failure != (virtio.Failure{Form: virtio.FailStatus, Status: 1}) {
			t.Fatalf("queue %+v", q)
		}
	}
	le := binary.LittleEndian
	for _, c := range []struct {
		name      string
		got, want uint64
	}{
		{"capacity (a part of a sector is left out)", le.Uint64(in.Config), 2048},
		{"size_max", uint64(le.Uint32(in.Config[8:])), 0},
		{"seg_max", uint64(le.Uint32(in.Config[12:])), 126},
		{"blk_size", uint64(le.Uint32(in.Config[20:])), 512},
		{"physical_block_exp", uint64(in.Config[24]), 3},
		{"writeback", uint64(in.Config[32]), 1},
		{"unused0", uint64(in.Config[33]), 0},
		{"num_queues", uint64(le.Uint16(in.Config[34:])), 4},
		{"max_discard_sectors", uint64(le.Uint32(in.Config[36:])), 1 << 21},
		{"max_discard_seg", uint64(le.Uint32(in.Config[40:])), 256},
		{"discard_sector_alignment", uint64(le.Uint32(in.Config[44:])), 8},
		{"max_write_zeroes_sectors", uint64(le.Uint32(in.Config[48:])), 1 << 21},
		{"max_write_zeroes_seg", uint64(le.Uint32(in.Config[52:])), 256},
		{"write_zeroes_may_unmap and unused1", uint64(le.Uint32(in.Config[56:])), 1},
	} {
		if c.got != c.want {
			t.Errorf("%s = %d, want %d", c.name, c.got, c.want)
		}
	}
}

func TestReadWriteFlush(t *testing.T) {
	disk, dev := newDisk(t, blk.Config{Serial: "disk-0"})
	d := activate(t, dev, all)
	want := pattern(1, 4096)
	if w := d.write(8, want); w.status() != 0 || w.Used() != 1 {
		t.Fatalf("write: status %d, used %d", w.status(), w.Used())
	}
	if f := d.flush(); f.status() != 0 {
		t.Fatalf("flush: status %d", f.status())
	}
	if !bytes.Equal(disk.Stable()[8*512:][:4096], want) {
		t.Fatal("what was flushed is not in stable storage")
	}
	r := d.read(8, 4096)
	if r.status() != 0 || r.Used() != 4097 || !bytes.Equal(r.data(), want) {
		t.Fatalf("read: status %d, used %d", r.status(), r.Used())
	}
	if off, n := r.Touched(); off != 0 || n != 4097 {
		t.Fatalf("touched %d+%d", off, n)
	}
	id := d.do(header(blk.VIRTIO_BLK_T_GET_ID, 0), 20)
	if id.status() != 0 || string(bytes.TrimRight(id.data(), "\x00")) != "disk-0" {
		t.Fatalf("id %q, status %d", id.data(), id.status())
	}
}

// 5.2.6: every way in which a request can be wrong, and the status it gets.
func TestBadRequests_5_2_6(t *testing.T) {
	type H = []byte
	cat := func(p ...[]byte) []byte { return bytes.Join(p, nil) }
	const ok, ioerr, unsupp = 0, 1, 2
	in, out := uint32(blk.VIRTIO_BLK_T_IN), uint32(blk.VIRTIO_BLK_T_OUT)
	dis, zer := uint32(blk.VIRTIO_BLK_T_DISCARD), uint32(blk.VIRTIO_BLK_T_WRITE_ZEROES)
	data := make([]byte, 512)
	for _, c := range []struct {
		name string
		out  []byte
		room int
		want int
	}{
		{"short header", make(H, 15), 512, ioerr},
		{"no header", nil, 512, ioerr},
		{"read of no bytes", header(in, 0), 0, ok},
		{"read of no bytes at the end", header(in, sectors), 0, ok},
		{"read of no bytes past the end", header(in, sectors+1), 0, ioerr},
		{"read of half a sector", header(in, 0), 256, ioerr},
		{"read of a sector and a byte", header(in, 0), 513, ioerr},
		{"read of the last sector", header(in, sectors-1), 512, ok},
		{"read past the end", header(in, sectors), 512, ioerr},
		{"read over the end", header(in, sectors-1), 1024, ioerr},
		{"read at a sector whose byte offset overflows", header(in, 1<<55), 512, ioerr},
		{"read at the last sector number", header(in, 1<<64-1), 512, ioerr},
		{"read at a sector that wraps to 0", header(in, 1<<55-1), 1024, ioerr},
		{"write of no bytes", header(out, 0), 0, ok},
		{"write of half a sector", cat(header(out, 0), data[:100]), 0, ioerr},
		{"write past the end", cat(header(out, sectors), data), 0, ioerr},
		{"write at a huge sector", cat(header(out, 1<<63), data), 0, ioerr},
		{"id with too little room", header(blk.VIRTIO_BLK_T_GET_ID, 0), 19, ioerr},
		{"id with more room", header(blk.VIRTIO_BLK_T_GET_ID, 0), 64, ok},
		{"flush with a sector and data", cat(header(blk.VIRTIO_BLK_T_FLUSH, 77), data), 0, ok},
		{"scsi command", header(2, 0), 0, unsupp},
		{"lifetime", header(10, 0), 6, unsupp},
		{"secure erase", cat(header(14, 0), ranges([3]uint64{0, 1, 0})), 0, unsupp},
		{"unknown type", header(1<<31, 0), 0, unsupp},
		{"discard", cat(header(dis, 0), ranges([3]uint64{0, 8, 0}, [3]uint64{8, 8, 0})), 0, ok},
		{"discard of nothing", cat(header(dis, 0), ranges([3]uint64{0, 0, 0})), 0, ok},
		{"discard without segments", header(dis, 0), 0, ioerr},
		{"discard with part of a segment", cat(header(dis, 0), ranges([3]uint64{0, 8, 0})[:15]), 0, ioerr},
		{"discard with unmap", cat(header(dis, 0), ranges([3]uint64{0, 8, 1})), 0, unsupp},
		{"discard with an unknown flag", cat(header(dis, 0), ranges([3]uint64{0, 8, 2})), 0, unsupp},
		{"discard over the end", cat(header(dis, 0), ranges([3]uint64{sectors - 1, 2, 0})), 0, ioerr},
		{"discard that overflows", cat(header(dis, 0), ranges([3]uint64{1<<64 - 1, 2, 0})), 0, ioerr},
		{"discard of too many sectors", cat(header(dis, 0), ranges([3]uint64{0, 1<<32 - 1, 0})), 0, ioerr},
		{"discard with too many segments", cat(header(dis, 0), make([]byte, 257*16)), 0, ioerr},
		{"zeroes", cat(header(zer, 0), ranges([3]uint64{0, 8, 0})), 0, ok},
		{"zeroes with unmap", cat(header(zer, 0), ranges([3]uint64{0, 8, 1})), 0, ok},
		{"zeroes with an unknown flag", cat(header(zer, 0), ranges([3]uint64{0, 8, 1 << 31})), 0, unsupp},
		{"zeroes over the end", cat(header(zer, 0), ranges([3]uint64{0, sectors + 1, 0})), 0, ioerr},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk, dev := newDisk(t, blk.Config{})
			d := activate(t, dev, all)
			before := disk.Content()
			r := d.do(c.out, c.room)
			if r.status() != c.want {
				t.Fatalf("status %d, want %d", r.status(), c.want)
			}
			if c.want != ok {
				if !bytes.Equal(disk.Content(), before) {
					t.Error("a refused request changed the disk")
				}
				if r.Used() > 1 || (r.Used() == 1) != (c.room == 0) {
					t.Errorf("used length %d of %d names bytes that were not written", r.Used(), c.room+1)
				}
			}
		})
	}
}

// A segment that is wrong keeps the ones before it from being carried out.
func TestSegmentsAreCheckedFirst(t *testing.T) {
	disk, dev := newDisk(t, blk.Config{})
	disk.SetContent(pattern(3, sectors*512))
	d := activate(t, dev, all)
	r := d.do(append(header(blk.VIRTIO_BLK_T_WRITE_ZEROES, 0), ranges([3]uint64{0, 8, 0}, [3]uint64{sectors, 1, 0})...), 0)
	if r.status() != blk.VIRTIO_BLK_S_IOERR || !bytes.Equal(disk.Content(), pattern(3, sectors*512)) {
		t.Fatalf("status %d, or the disk changed", r.status())
	}
}

func TestNoRoomForStatus(t *testing.T) {
	_, dev := newDisk(t, blk.Config{})
	d := activate(t, dev, all)
	r := d.raw(0, header(blk.VIRTIO_BLK_T_IN, 0), nil)
	d.submit(r)
	if len(d.ch.resets) != 1 || r.Used() != 0 {
		t.Fatalf("resets %v, used %d", d.ch.resets, r.Used())
	}
}

// 5.2.6.2: read-only devices fail writes with IOERR and write nothing.
func TestReadOnly_5_2_6_2(t *testing.T) {
	disk := blktest.New(blk.Info{SizeBytes: sectors * 512, ReadOnly: true})
	dev, err := blk.New(blk.Config{Backend: disk})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if f := dev.Info().Features; f&(1<<blk.VIRTIO_BLK_F_RO) == 0 || f&(1<<blk.VIRTIO_BLK_F_DISCARD) != 0 {
		t.Fatalf("features %#x", f)
	}
	d := activate(t, dev, 1<<blk.VIRTIO_BLK_F_RO|1<<blk.VIRTIO_BLK_F_FLUSH)
	if r := d.write(0, make([]byte, 512)); r.status() != 1 {
		t.Errorf("write: status %d", r.status())
	}
	z := d.do(append(header(blk.VIRTIO_BLK_T_WRITE_ZEROES, 0), ranges([3]uint64{0, 1, 0})...), 0)
	if z.status() != 1 {
		t.Errorf("zeroes: status %d", z.status())
	}
	if r := d.read(0, 512); r.status() != 0 {
		t.Errorf("read: status %d", r.status())
	}
	if r := d.flush(); r.status() != 0 {
		t.Errorf("flush: status %d", r.status())
	}
	if disk.Ops() != 1 {
		t.Errorf("%d operations reached the disk, want the read alone", disk.Ops())
	}
}

// 5.2.6.2: commands that were not negotiated are unsupported.
func TestNotNegotiated(t *testing.T) {
	_, dev := newDisk(t, blk.Config{})
	d := activate(t, dev, 1<<blk.VIRTIO_BLK_F_FLUSH)
	for _, typ := range []uint32{blk.VIRTIO_BLK_T_DISCARD, blk.VIRTIO_BLK_T_WRITE_ZEROES} {
		r := d.do(append(header(typ, 0), ranges([3]uint64{0, 1, 0})...), 0)
		if r.status() != blk.VIRTIO_BLK_S_UNSUPP {
			t.Errorf("type %d: status %d", typ, r.status())
		}
	}
}

// 5.2.6.2: without a negotiated flush a write is stable when it is acknowledged.
func TestWritethroughWithoutFlush_5_2_6_2(t *testing.T) {
	disk, dev := newDisk(t, blk.Config{})
	d := activate(t, dev, 1<<blk.VIRTIO_BLK_F_WRITE_ZEROES)
	if r := d.write(0, pattern(9, 1024)); r.status() != 0 || !bytes.Equal(disk.Stable()[:1024], pattern(9, 1024)) {
		t.Fatalf("status %d, or the write is not stable", r.status())
	}
	z := d.do(append(header(blk.VIRTIO_BLK_T_WRITE_ZEROES, 0), ranges([3]uint64{0, 1, 0})...), 0)
	if z.status() != 0 || !bytes.Equal(disk.Stable()[:512], make([]byte, 512)) {
		t.Fatalf("status %d, or the zeroes are not stable", z.status())
	}
}

// 5.2.5.2 and 5.2.6.2: the cache mode that the driver chooses.
func TestCacheMode(t *testing.T) {
	disk, dev := newDisk(t, blk.Config{})
	const wce = 1 << blk.VIRTIO_BLK_F_CONFIG_WCE
	d := activate(t, dev, wce|1<<blk.VIRTIO_BLK_F_FLUSH)
	if d.write(0, pattern(1, 512)); disk.Flushes() != 0 {
		t.Fatal("a write in writeback mode flushed")
	}
	dev.WriteConfig(32, []byte{0})
	if d.write(1, pattern(2, 512)); disk.Flushes() != 1 {
		t.Fatal("a write in writethrough mode did not flush")
	}
	state, err := dev.SaveState()
	if err != nil {
		t.Fatal(err)
	}
	dev.WriteConfig(32, []byte{7})
	if n := len(d.ch.configs); n != 1 || d.ch.configs[0][32] != 1 {
		t.Fatalf("writeback 7 is not shown as 1: %v", d.ch.configs)
	}
	dev.WriteConfig(0, []byte{1})
	if n := len(d.ch.configs); n != 2 || !bytes.Equal(d.ch.configs[1], dev.Info().Config) {
		t.Fatal("a write to capacity is not shown as undone")
	}
	dev.Reset()
	if err := dev.RestoreState(blk.StateVersion, state); err != nil {
		t.Fatal(err)
	}
	if again, _ := dev.SaveState(); !bytes.Equal(again, state) || dev.Info().Config[32] != 0 {
		t.Fatal("save, restore, save is not equal")
	}
	for _, bad := range [][]byte{nil, {2}, {0, 0}} {
		if dev.RestoreState(blk.StateVersion, bad) == nil {
			t.Errorf("state %v was accepted", bad)
		}
	}
	d = activate(t, dev, wce)
	defer dev.Reset()
	if d.write(2, pattern(3, 512)); disk.Flushes() != 2 || dev.Info().Config[32] != 0 {
		t.Fatal("with CONFIG_WCE and no FLUSH the mode is not writethrough")
	}
}

func TestCloseClosesBackend(t *testing.T) {
	disk, dev := newDisk(t, blk.Config{})
	activate(t, dev, all)
	if err := errors.Join(dev.Close(), dev.Close()); err != nil || !disk.Closed() {
		t.Fatalf("close: %v", err)
	}
	if dev.Activate(virtio.Activation{Channel: newChannel()}) == nil {
		t.Error("a closed disk was activated")
	}
}

func TestBadConfig(t *testing.T) {
	ok := blktest.New(blk.Info{SizeBytes: 512})
	for name, c := range map[string]blk.Config{
		"no backend":       {},
		"too many queues":  {Backend: ok, Queues: 65},
		"odd queue size":   {Backend: ok, QueueSize: 100},
		"tiny queue":       {Backend: ok, QueueSize: 2},
		"odd block size":   {Backend: ok, BlockBytes: 1000},
		"long serial":      {Backend: ok, Serial: "123456789012345678901"},
		"binary serial":    {Backend: ok, Serial: "a\x00"},
		"too many workers": {Backend: ok, Workers: 1000},
		"empty disk":       {Backend: blktest.New(blk.Info{})},
	} {
		if _, err := blk.New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
