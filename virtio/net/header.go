package net

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// HeaderBytes is the length of virtio_net_hdr: 12 bytes in a modern device,
// whether or not receive buffers are merged (section 5.1.6).
const HeaderBytes = 12

// EthernetBytes is the length of an Ethernet header without a VLAN tag.
const EthernetBytes = 14

// MaxFrameBytes bounds a frame in either direction: an Ethernet header, a VLAN
// tag, and the largest IPv6 packet (40 + 65535).
const MaxFrameBytes = EthernetBytes + 4 + 40 + 65535

// Header is virtio_net_hdr, little-endian, HeaderBytes long.
type Header []byte

// Flags is the field flags.
func (h Header) Flags() uint8 { return h[0] }

// GSOType is the field gso_type.
func (h Header) GSOType() uint8 { return h[1] }

// HdrLen is the field hdr_len: the length of the headers, as a hint only.
func (h Header) HdrLen() uint16 { return binary.LittleEndian.Uint16(h[2:]) }

// GSOSize is the field gso_size: payload bytes of each segment.
func (h Header) GSOSize() uint16 { return binary.LittleEndian.Uint16(h[4:]) }

// CsumStart is the field csum_start: offset in the frame.
func (h Header) CsumStart() uint16 { return binary.LittleEndian.Uint16(h[6:]) }

// CsumOffset is the field csum_offset: offset from CsumStart.
func (h Header) CsumOffset() uint16 { return binary.LittleEndian.Uint16(h[8:]) }

// NumBuffers is the field num_buffers: set on received frames only.
func (h Header) NumBuffers() uint16 { return binary.LittleEndian.Uint16(h[10:]) }

// SetNumBuffers sets the field num_buffers.
func (h Header) SetNumBuffers(n uint16) { binary.LittleEndian.PutUint16(h[10:], n) }

// Clear zeroes the header: a frame with complete checksums and no segments.
func (h Header) Clear() { clear(h[:HeaderBytes]) }

// SetPartialChecksum asks the other side to sum the frame from start to its end and
// to store the result at start + offset, where the pseudo-header's sum is.
func (h Header) SetPartialChecksum(start, offset int) {
	h[0] |= VIRTIO_NET_HDR_F_NEEDS_CSUM
	binary.LittleEndian.PutUint16(h[6:], uint16(start))
	binary.LittleEndian.PutUint16(h[8:], uint16(offset))
}

// SetGSO says that the frame stands for several, of at most size payload bytes
// each after hdrLen bytes of headers.
func (h Header) SetGSO(gsoType uint8, hdrLen, size int) {
	h[1] = gsoType
	binary.LittleEndian.PutUint16(h[2:], uint16(hdrLen))
	binary.LittleEndian.PutUint16(h[4:], uint16(size))
}

// Why a transmitted frame is refused.
var (
	errShort    = errors.New("frame shorter than an Ethernet header")
	errLong     = errors.New("frame longer than any packet")
	errChecksum = errors.New("checksum position outside the frame")
	errSegments = errors.New("segmentation that was not negotiated or makes no sense")
)

// sanitizeSent checks the copied header h of a frame of frameBytes that the driver
// wants sent, and clears what the device must ignore, so that a backend sees
// only what was negotiated and lies within the frame.
func sanitizeSent(h Header, frameBytes int, o Offload) error {
	switch {
	case frameBytes < EthernetBytes:
		return errShort
	case frameBytes > MaxFrameBytes:
		return errLong
	}
	h.SetNumBuffers(0)
	h[0] &= VIRTIO_NET_HDR_F_NEEDS_CSUM // unknown flags are ignored
	if o&TxChecksum == 0 {
		h[0] = 0
	}
	partial := h[0] != 0
	if !partial {
		clear(h[6:10])
	} else if start := int(h.CsumStart()); start < EthernetBytes || start+int(h.CsumOffset())+2 > frameBytes {
		return fmt.Errorf("%w: %d+%d of %d", errChecksum, start, h.CsumOffset(), frameBytes)
	}
	return sanitizeGSO(h, frameBytes, o, partial)
}

func sanitizeGSO(h Header, frameBytes int, o Offload, partial bool) error {
	if h.GSOType() == VIRTIO_NET_HDR_GSO_NONE {
		clear(h[1:6])
		return nil
	}
	var need Offload
	switch h.GSOType() &^ VIRTIO_NET_HDR_GSO_ECN {
	case VIRTIO_NET_HDR_GSO_TCPV4:
		need = TxTSO4
	case VIRTIO_NET_HDR_GSO_TCPV6:
		need = TxTSO6
	}
	if h.GSOType()&VIRTIO_NET_HDR_GSO_ECN != 0 {
		need |= TxECN
	}
	switch {
	case need&^TxECN == 0, o&need != need, !partial, h.GSOSize() == 0:
		return fmt.Errorf("%w: type %#x, size %d, offloads %#x", errSegments, h.GSOType(), h.GSOSize(), o)
	}
	// hdr_len is a hint that drivers get wrong: keep it inside the frame.
	if int(h.HdrLen()) > frameBytes {
		binary.LittleEndian.PutUint16(h[2:], uint16(min(int(h.CsumStart())+20, frameBytes)))
	}
	return nil
}
