package net

// Names and numbers of "Virtual I/O Device (VIRTIO) Version 1.2", section 5.1
// (network device), in its spelling.

// Feature bits (section 5.1.3).
const (
	VIRTIO_NET_F_CSUM           = 0
	VIRTIO_NET_F_GUEST_CSUM     = 1
	VIRTIO_NET_F_MTU            = 3
	VIRTIO_NET_F_MAC            = 5
	VIRTIO_NET_F_GUEST_TSO4     = 7
	VIRTIO_NET_F_GUEST_TSO6     = 8
	VIRTIO_NET_F_GUEST_ECN      = 9
	VIRTIO_NET_F_HOST_TSO4      = 11
	VIRTIO_NET_F_HOST_TSO6      = 12
	VIRTIO_NET_F_HOST_ECN       = 13
	VIRTIO_NET_F_MRG_RXBUF      = 15
	VIRTIO_NET_F_STATUS         = 16
	VIRTIO_NET_F_CTRL_VQ        = 17
	VIRTIO_NET_F_GUEST_ANNOUNCE = 21
)

// Bits of the configuration field status (section 5.1.4).
const (
	VIRTIO_NET_S_LINK_UP  = 1
	VIRTIO_NET_S_ANNOUNCE = 2
)

// Values of virtio_net_hdr (section 5.1.6).
const (
	VIRTIO_NET_HDR_F_NEEDS_CSUM = 1
	VIRTIO_NET_HDR_F_DATA_VALID = 2

	VIRTIO_NET_HDR_GSO_NONE  = 0
	VIRTIO_NET_HDR_GSO_TCPV4 = 1
	VIRTIO_NET_HDR_GSO_TCPV6 = 4
	VIRTIO_NET_HDR_GSO_ECN   = 0x80
)

// Control queue (section 5.1.6.5).
const (
	VIRTIO_NET_OK  = 0
	VIRTIO_NET_ERR = 1

	VIRTIO_NET_CTRL_ANNOUNCE     = 3
	VIRTIO_NET_CTRL_ANNOUNCE_ACK = 0
)

// Queue numbers with one queue pair (section 5.1.2).
const (
	receiveQueue  = 0
	transmitQueue = 1
	controlQueue  = 2
)
