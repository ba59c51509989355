package virtio

// Names and numbers of "Virtual I/O Device (VIRTIO) Version 1.2", in its
// spelling. Only what all devices share stands here; each device folder has its own.

// DeviceID is a device type (section 5).
type DeviceID uint32

// Device types (section 5).
const (
	VIRTIO_ID_NET     DeviceID = 1
	VIRTIO_ID_BLOCK   DeviceID = 2
	VIRTIO_ID_CONSOLE DeviceID = 3
	VIRTIO_ID_RNG     DeviceID = 4
)

// Device status bits (section 2.1).
const (
	VIRTIO_CONFIG_S_ACKNOWLEDGE = 1
	VIRTIO_CONFIG_S_DRIVER      = 2
	VIRTIO_CONFIG_S_DRIVER_OK   = 4
	VIRTIO_CONFIG_S_FEATURES_OK = 8
	VIRTIO_CONFIG_S_NEEDS_RESET = 64
	VIRTIO_CONFIG_S_FAILED      = 128
)

// Reserved feature bits (section 6): they belong to the transport half.
const (
	VIRTIO_F_INDIRECT_DESC     = 28
	VIRTIO_F_EVENT_IDX         = 29
	VIRTIO_F_VERSION_1         = 32
	VIRTIO_F_ACCESS_PLATFORM   = 33
	VIRTIO_F_RING_PACKED       = 34
	VIRTIO_F_IN_ORDER          = 35
	VIRTIO_F_ORDER_PLATFORM    = 36
	VIRTIO_F_SR_IOV            = 37
	VIRTIO_F_NOTIFICATION_DATA = 38
	VIRTIO_F_NOTIF_CONFIG_DATA = 39
	VIRTIO_F_RING_RESET        = 40

	// TransportFeatureMask covers bits 24 to 49.
	TransportFeatureMask uint64 = (1<<50 - 1) &^ (1<<24 - 1)
)

// Descriptor flags (section 2.7.5) and ring flags (2.7.6, 2.7.8).
const (
	VIRTQ_DESC_F_NEXT     = 1
	VIRTQ_DESC_F_WRITE    = 2
	VIRTQ_DESC_F_INDIRECT = 4

	VIRTQ_AVAIL_F_NO_INTERRUPT = 1
	VIRTQ_USED_F_NO_NOTIFY     = 1
)
