package blk

// Names and numbers of the virtio 1.2 block device, section 5.2, in its
// spelling.

// Feature bits (5.2.3).
const (
	VIRTIO_BLK_F_SIZE_MAX     = 1
	VIRTIO_BLK_F_SEG_MAX      = 2
	VIRTIO_BLK_F_GEOMETRY     = 4
	VIRTIO_BLK_F_RO           = 5
	VIRTIO_BLK_F_BLK_SIZE     = 6
	VIRTIO_BLK_F_FLUSH        = 9
	VIRTIO_BLK_F_TOPOLOGY     = 10
	VIRTIO_BLK_F_CONFIG_WCE   = 11
	VIRTIO_BLK_F_MQ           = 12
	VIRTIO_BLK_F_DISCARD      = 13
	VIRTIO_BLK_F_WRITE_ZEROES = 14
)

// Request types (5.2.6).
const (
	VIRTIO_BLK_T_IN           = 0
	VIRTIO_BLK_T_OUT          = 1
	VIRTIO_BLK_T_FLUSH        = 4
	VIRTIO_BLK_T_GET_ID       = 8
	VIRTIO_BLK_T_DISCARD      = 11
	VIRTIO_BLK_T_WRITE_ZEROES = 13
)

// Status byte (5.2.6).
const (
	VIRTIO_BLK_S_OK     = 0
	VIRTIO_BLK_S_IOERR  = 1
	VIRTIO_BLK_S_UNSUPP = 2
)

// Flags of struct virtio_blk_discard_write_zeroes (5.2.6).
const VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1

// Sizes of the structures of 5.2.6, in bytes.
const (
	// SectorBytes is the unit of every sector number and of the capacity,
	// whatever the block size.
	SectorBytes = 512
	// VIRTIO_BLK_ID_BYTES is the length of the device ID string.
	VIRTIO_BLK_ID_BYTES = 20

	headerBytes  = 4 + 4 + 8 // struct virtio_blk_req up to data: type, reserved, sector
	segmentBytes = 8 + 4 + 4 // struct virtio_blk_discard_write_zeroes
)

// Offsets in struct virtio_blk_config (5.2.4).
const (
	offCapacity         = 0  // le64
	offSegMax           = 12 // le32
	offBlkSize          = 20 // le32
	offPhysicalBlockExp = 24 // u8
	offAlignmentOffset  = 25 // u8
	offMinIOSize        = 26 // le16
	offOptIOSize        = 28 // le32
	offWriteback        = 32 // u8
	offNumQueues        = 34 // le16
	offMaxDiscard       = 36 // le32, sectors
	offMaxDiscardSeg    = 40 // le32
	offDiscardAlign     = 44 // le32, sectors
	offMaxZeroes        = 48 // le32, sectors
	offMaxZeroesSeg     = 52 // le32
	offZeroesMayUnmap   = 56 // u8, then 3 unused
	configBytes         = 60 // up to and with unused1; the rest is for features that are not offered
)
