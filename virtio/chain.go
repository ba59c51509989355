package virtio

import (
	"encoding/binary"

	"github.com/peervisor/peervisor/memory"
)

// desc is a copy of one descriptor (virtio 1.2, section 2.7.5). The driver may
// change the original at any time; it is read once.
type desc struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16
}

// loadDesc copies descriptor i out of table.
func loadDesc(table []byte, i int) desc {
	b := table[descBytes*i : descBytes*i+descBytes]
	rest := binary.LittleEndian.Uint64(b[8:])
	return desc{
		addr: binary.LittleEndian.Uint64(b), len: uint32(rest),
		flags: uint16(rest >> 32), next: uint16(rest >> 48),
	}
}

// fetch walks the chain that starts at head into s.segs and s.at, and returns
// how many of the segments are device-readable: they come first. Descriptors of
// length 0 are legal, carry nothing and leave no segment.
//
// Bounds: at most q.size descriptors are looked at, besides the one that
// refers to an indirect table, so a loop ends; the bytes add up to less than 2^32.
func (q *queue) fetch(s *slot, head uint16) (readable int, err error) {
	s.segs, s.at = s.segs[:0], s.at[:0]
	table := q.desc.Bytes(0, q.desc.Len())
	inTable := false
	total := uint64(0)
	at := int(head)
	for seen := 0; ; {
		d := loadDesc(table, at)
		if d.flags&VIRTQ_DESC_F_INDIRECT != 0 {
			if table, err = q.indirectTable(d, inTable); err != nil {
				return 0, err
			}
			inTable, at = true, 0
			continue
		}
		if seen++; seen > int(q.size) {
			return 0, errChainLong
		}
		if total += uint64(d.len); total >= 1<<32 {
			return 0, errChainBytes
		}
		writable := d.flags&VIRTQ_DESC_F_WRITE != 0
		if !writable && len(s.at) > 0 {
			return 0, errReadAfter
		}
		if err := q.segment(s, d, writable); err != nil {
			return 0, err
		}
		if d.flags&VIRTQ_DESC_F_NEXT == 0 {
			return len(s.segs) - len(s.at), nil
		}
		if at = int(d.next); at >= len(table)/descBytes {
			return 0, errNextRange
		}
	}
}

// segment appends the buffer of d to the slot.
func (q *queue) segment(s *slot, d desc, writable bool) error {
	if d.len == 0 {
		return nil
	}
	b, err := q.mem.Readable(memory.Addr(d.addr), uint64(d.len))
	if err != nil {
		return err
	}
	s.segs = append(s.segs, b)
	if writable {
		s.at = append(s.at, memory.Addr(d.addr))
	}
	return nil
}

// indirectTable borrows the table that d refers to. Its WRITE flag is ignored
// (2.7.5.3.2). A table longer than next can address is refused.
func (q *queue) indirectTable(d desc, nested bool) ([]byte, error) {
	switch {
	case !q.indirect:
		return nil, errIndirectOff
	case nested:
		return nil, errIndirectNest
	case d.flags&VIRTQ_DESC_F_NEXT != 0:
		return nil, errIndirectNext
	case d.len == 0 || d.len%descBytes != 0 || d.len/descBytes > 1<<16:
		return nil, errIndirectTable
	}
	return q.mem.Readable(memory.Addr(d.addr), uint64(d.len))
}
