package blk

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/peervisor/peervisor/virtio"
)

// Config says what the disk looks like to the guest.
type Config struct {
	// Backend is the storage. New takes it over; Device.Close closes it.
	Backend Backend
	// Queues is the number of request queues, 1..64; 0 means 1. More than one is
	// offered as VIRTIO_BLK_F_MQ.
	Queues int
	// QueueSize is the size of each in descriptors, a power of two, 4..32768; 0 means 256.
	QueueSize int
	// Serial is the device ID string, up to 20 printable ASCII characters; Linux
	// shows it as /dev/disk/by-id/virtio-SERIAL. "" leaves it empty.
	Serial string
	// BlockBytes is the logical block size that the guest is told, a power of two,
	// 512..32768; 0 means that of the backend. An image's partition table belongs to one size.
	BlockBytes int
	// Workers bounds the requests that wait for storage at the same time, 1..256; 0 means 32.
	Workers int
	// Report, if set, is told of every error of the storage. It is called from any
	// goroutine, with no lock held, and must not block. The guest sees only IOERR.
	Report func(error)
}

// Bounds and defaults of Config.
const (
	maxQueues      = 64
	minQueueSize   = 4 // header, data, status and one to spare
	defQueueSize   = 256
	defWorkers     = 32
	maxWorkers     = 256
	maxSegments    = 256           // of one discard or write-zeroes request
	maxSegSectors  = 1 << 30 / 512 // 1 GiB for each of them
	featuresAlways = 1<<VIRTIO_BLK_F_SEG_MAX | 1<<VIRTIO_BLK_F_BLK_SIZE | 1<<VIRTIO_BLK_F_TOPOLOGY
)

func (c *Config) fill() error {
	if c.Backend == nil {
		return fmt.Errorf("disk: no backend")
	}
	in := c.Backend.Info()
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.Queues, 1)
	def(&c.QueueSize, defQueueSize)
	def(&c.Workers, defWorkers)
	def(&c.BlockBytes, in.BlockBytes)
	def(&c.BlockBytes, SectorBytes)
	pow2 := func(n int) bool { return bits.OnesCount(uint(n)) == 1 }
	switch {
	case c.Queues < 1 || c.Queues > maxQueues:
		return fmt.Errorf("disk: %d queues, expected 1..%d", c.Queues, maxQueues)
	case c.QueueSize < minQueueSize || c.QueueSize > virtio.MaxQueueSize || !pow2(c.QueueSize):
		return fmt.Errorf("disk: queue size %d, expected a power of two, %d..%d", c.QueueSize, minQueueSize, virtio.MaxQueueSize)
	case c.Workers < 1 || c.Workers > maxWorkers:
		return fmt.Errorf("disk: %d workers, expected 1..%d", c.Workers, maxWorkers)
	case blockSize(c.BlockBytes, 0) == 0:
		return fmt.Errorf("disk: block size %d, expected a power of two, %d..32768", c.BlockBytes, SectorBytes)
	case len(c.Serial) > VIRTIO_BLK_ID_BYTES:
		return fmt.Errorf("disk: serial number %q has %d characters, expected at most %d", c.Serial, len(c.Serial), VIRTIO_BLK_ID_BYTES)
	case in.SizeBytes < SectorBytes:
		return fmt.Errorf("disk: %d bytes are less than one sector of %d", in.SizeBytes, SectorBytes)
	}
	for _, ch := range []byte(c.Serial) {
		if ch < 0x20 || ch > 0x7e {
			return fmt.Errorf("disk: serial number %q, expected printable ASCII", c.Serial)
		}
	}
	return nil
}

// features is the offer for a backend. VIRTIO_BLK_F_CONFIG_WCE is in it: it
// costs one byte of state, and the machinery behind it (complete a write after the
// next flush) is needed anyway for drivers that negotiate no VIRTIO_BLK_F_FLUSH.
func (c *Config) features() uint64 {
	in := c.Backend.Info()
	f := uint64(featuresAlways | 1<<VIRTIO_BLK_F_FLUSH)
	if c.Queues > 1 {
		f |= 1 << VIRTIO_BLK_F_MQ
	}
	if in.ReadOnly {
		return f | 1<<VIRTIO_BLK_F_RO
	}
	f |= 1 << VIRTIO_BLK_F_CONFIG_WCE
	if _, ok := c.Backend.(Discarder); ok {
		f |= 1 << VIRTIO_BLK_F_DISCARD
	}
	if _, ok := c.Backend.(Zeroer); ok {
		f |= 1 << VIRTIO_BLK_F_WRITE_ZEROES
	}
	return f
}

// space is struct virtio_blk_config for the offer. Fields of features that are
// not offered are zero.
func (c *Config) space(features uint64) []byte {
	in := c.Backend.Info()
	p := make([]byte, configBytes)
	le := binary.LittleEndian
	le.PutUint64(p[offCapacity:], uint64(in.SizeBytes/SectorBytes))
	// One descriptor for the header, one for the status.
	le.PutUint32(p[offSegMax:], uint32(c.QueueSize-2))
	le.PutUint32(p[offBlkSize:], uint32(c.BlockBytes))
	physical := max(in.PhysicalBytes, c.BlockBytes)
	p[offPhysicalBlockExp] = byte(bits.TrailingZeros(uint(physical / c.BlockBytes)))
	le.PutUint16(p[offMinIOSize:], uint16(physical/c.BlockBytes))
	has := func(bit int) bool { return features&(1<<bit) != 0 }
	if has(VIRTIO_BLK_F_CONFIG_WCE) {
		p[offWriteback] = 1
	}
	if has(VIRTIO_BLK_F_MQ) {
		le.PutUint16(p[offNumQueues:], uint16(c.Queues))
	}
	if has(VIRTIO_BLK_F_DISCARD) {
		le.PutUint32(p[offMaxDiscard:], maxSegSectors)
		le.PutUint32(p[offMaxDiscardSeg:], maxSegments)
		granule := in.DiscardBytes
		if granule == 0 {
			granule = physical
		}
		le.PutUint32(p[offDiscardAlign:], uint32(max(granule, SectorBytes)/SectorBytes))
	}
	if has(VIRTIO_BLK_F_WRITE_ZEROES) {
		le.PutUint32(p[offMaxZeroes:], maxSegSectors)
		le.PutUint32(p[offMaxZeroesSeg:], maxSegments)
		if in.ZeroUnmaps {
			p[offZeroesMayUnmap] = 1
		}
	}
	return p
}
