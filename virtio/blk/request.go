package blk

import (
	"encoding/binary"

	"github.com/peervisor/peervisor/virtio"
)

// command is a checked request header.
type command struct {
	typ uint32
	off int64 // bytes
	n   int   // bytes of data: written by the device for IN, read by it for the others
}

// segment is a checked range of a discard or write-zeroes request, in bytes.
type segment struct {
	off, n int64
	unmap  bool
}

// verdict is a status that ends a request before it reaches the storage, or
// proceed.
type verdict int

const (
	proceed verdict = -1
	refuse  verdict = VIRTIO_BLK_S_IOERR
	unknown verdict = VIRTIO_BLK_S_UNSUPP
	noRoom  verdict = 256 // not even room for a status byte
)

// limits is what requests are checked against.
type limits struct {
	sectors  uint64 // capacity
	readOnly bool
	discard  bool // negotiated
	zeroes   bool
}

// decode copies the header of r and checks it (5.2.6). All arithmetic on the
// driver's numbers is in uint64 with the subtraction on the trusted side.
func (l *limits) decode(r *virtio.Request) (command, verdict) {
	if r.WritableLen() < 1 {
		return command{}, noRoom
	}
	var h [headerBytes]byte
	if r.ReadAt(h[:], 0) < headerBytes {
		return command{}, refuse
	}
	c := command{typ: binary.LittleEndian.Uint32(h[0:])}
	sector := binary.LittleEndian.Uint64(h[8:])
	switch c.typ {
	case VIRTIO_BLK_T_IN:
		c.n = r.WritableLen() - 1
		return l.transfer(c, sector)
	case VIRTIO_BLK_T_OUT:
		c.n = r.ReadableLen() - headerBytes
		if l.readOnly {
			return c, refuse
		}
		return l.transfer(c, sector)
	case VIRTIO_BLK_T_FLUSH:
		return c, proceed // the driver should send sector 0 and no data; neither matters
	case VIRTIO_BLK_T_GET_ID:
		if r.WritableLen()-1 < VIRTIO_BLK_ID_BYTES {
			return c, refuse
		}
		return c, proceed
	case VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES:
		c.n = r.ReadableLen() - headerBytes
		switch {
		case l.readOnly:
			return c, refuse
		case c.typ == VIRTIO_BLK_T_DISCARD && !l.discard, c.typ == VIRTIO_BLK_T_WRITE_ZEROES && !l.zeroes:
			return c, unknown
		case c.n == 0 || c.n%segmentBytes != 0 || c.n > maxSegments*segmentBytes:
			return c, refuse
		}
		return c, proceed
	}
	return c, unknown
}

func (l *limits) transfer(c command, sector uint64) (command, verdict) {
	if c.n%SectorBytes != 0 || !l.inside(sector, uint64(c.n/SectorBytes)) {
		return c, refuse
	}
	c.off = int64(sector * SectorBytes)
	return c, proceed
}

func (l *limits) inside(sector, count uint64) bool {
	return sector <= l.sectors && count <= l.sectors-sector
}

// segments copies and checks the ranges of a discard or write-zeroes request.
// All of them are checked before the first is carried out.
func (l *limits) segments(dst []segment, c command, r *virtio.Request) ([]segment, verdict) {
	for at := 0; at < c.n; at += segmentBytes {
		var p [segmentBytes]byte
		r.ReadAt(p[:], headerBytes+at)
		sector := binary.LittleEndian.Uint64(p[0:])
		count := binary.LittleEndian.Uint32(p[8:])
		flags := binary.LittleEndian.Uint32(p[12:])
		known := uint32(0)
		if c.typ == VIRTIO_BLK_T_WRITE_ZEROES {
			known = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
		}
		if flags&^known != 0 {
			return dst, unknown
		}
		if count > maxSegSectors || !l.inside(sector, uint64(count)) {
			return dst, refuse
		}
		dst = append(dst, segment{off: int64(sector * SectorBytes), n: int64(count) * SectorBytes, unmap: flags != 0})
	}
	return dst, proceed
}

// finish fills in the status and the used length. wrote is how many bytes of
// data the device has put at the start of the device-writable room.
//
// The used length names only bytes that were written, from the first one on
// (2.7.8.2): a failed read that left the data alone has used length 0, although
// its status byte is there. Drivers look at the status.
func finish(r *virtio.Request, status byte, wrote int) {
	if wrote > 0 {
		r.Wrote(0, wrote)
	}
	last := r.WritableLen() - 1
	r.WriteAt([]byte{status}, last)
	if wrote == last {
		wrote++
	}
	r.SetUsed(wrote)
}
