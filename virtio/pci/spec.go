package pci

// Names and numbers of the PCI and MSI-X specifications and of virtio 1.2,
// section 4.1, in their spelling; and the layout of docs/machine-v1.md.

// Configuration space (PCI Local Bus 3.0, section 6.1).
const (
	PCI_VENDOR_ID           = 0x00
	PCI_DEVICE_ID           = 0x02
	PCI_COMMAND             = 0x04
	PCI_STATUS              = 0x06
	PCI_REVISION_ID         = 0x08
	PCI_CLASS_PROG          = 0x09 // then sub-class and class
	PCI_HEADER_TYPE         = 0x0E
	PCI_BASE_ADDRESS_0      = 0x10
	PCI_SUBSYSTEM_VENDOR_ID = 0x2C
	PCI_SUBSYSTEM_ID        = 0x2E
	PCI_CAPABILITY_LIST     = 0x34
	PCI_INTERRUPT_LINE      = 0x3C
	PCI_INTERRUPT_PIN       = 0x3D

	PCI_COMMAND_MEMORY       = 0x0002
	PCI_COMMAND_MASTER       = 0x0004
	PCI_COMMAND_INTX_DISABLE = 0x0400
	PCI_STATUS_INTERRUPT     = 0x0008
	PCI_STATUS_CAP_LIST      = 0x0010

	PCI_CAP_ID_VNDR = 0x09
	PCI_CAP_ID_MSIX = 0x11

	PCI_MSIX_FLAGS         = 2 // offset in the capability
	PCI_MSIX_TABLE         = 4
	PCI_MSIX_PBA           = 8
	PCI_MSIX_FLAGS_ENABLE  = 0x8000
	PCI_MSIX_FLAGS_MASKALL = 0x4000

	PCI_MSIX_ENTRY_SIZE        = 16
	PCI_MSIX_ENTRY_LOWER_ADDR  = 0
	PCI_MSIX_ENTRY_UPPER_ADDR  = 4
	PCI_MSIX_ENTRY_DATA        = 8
	PCI_MSIX_ENTRY_VECTOR_CTRL = 12
	PCI_MSIX_ENTRY_CTRL_MASK   = 1
)

// Virtio over PCI (virtio 1.2, section 4.1).
const (
	VIRTIO_PCI_VENDOR_ID   = 0x1AF4
	VIRTIO_PCI_DEVICE_BASE = 0x1040 // plus the device type

	VIRTIO_PCI_CAP_COMMON_CFG = 1
	VIRTIO_PCI_CAP_NOTIFY_CFG = 2
	VIRTIO_PCI_CAP_ISR_CFG    = 3
	VIRTIO_PCI_CAP_DEVICE_CFG = 4
	VIRTIO_PCI_CAP_PCI_CFG    = 5

	// Fields of struct virtio_pci_cap.
	VIRTIO_PCI_CAP_BAR    = 4
	VIRTIO_PCI_CAP_OFFSET = 8
	VIRTIO_PCI_CAP_LENGTH = 12
	VIRTIO_PCI_CFG_DATA   = 16

	VIRTIO_MSI_NO_VECTOR = 0xFFFF

	VIRTIO_PCI_ISR_QUEUE  = 1
	VIRTIO_PCI_ISR_CONFIG = 2

	// Fields of struct virtio_pci_common_cfg.
	VIRTIO_PCI_COMMON_DFSELECT   = 0
	VIRTIO_PCI_COMMON_DF         = 4
	VIRTIO_PCI_COMMON_GFSELECT   = 8
	VIRTIO_PCI_COMMON_GF         = 12
	VIRTIO_PCI_COMMON_MSIX       = 16
	VIRTIO_PCI_COMMON_NUMQ       = 18
	VIRTIO_PCI_COMMON_STATUS     = 20
	VIRTIO_PCI_COMMON_CFGGEN     = 21
	VIRTIO_PCI_COMMON_Q_SELECT   = 22
	VIRTIO_PCI_COMMON_Q_SIZE     = 24
	VIRTIO_PCI_COMMON_Q_MSIX     = 26
	VIRTIO_PCI_COMMON_Q_ENABLE   = 28
	VIRTIO_PCI_COMMON_Q_NOFF     = 30
	VIRTIO_PCI_COMMON_Q_DESCLO   = 32
	VIRTIO_PCI_COMMON_Q_DESCHI   = 36
	VIRTIO_PCI_COMMON_Q_AVAILLO  = 40
	VIRTIO_PCI_COMMON_Q_AVAILHI  = 44
	VIRTIO_PCI_COMMON_Q_USEDLO   = 48
	VIRTIO_PCI_COMMON_Q_USEDHI   = 52
	VIRTIO_PCI_COMMON_Q_NDATA    = 56
	VIRTIO_PCI_COMMON_Q_RESET    = 58
	virtioPCICommonBytes         = 60
	virtioPCICapBytes            = 16
	virtioPCINotifyCapBytes      = 20
	virtioPCICfgCapBytes         = 20
	msixCapBytes                 = 12
	notifyMultiplier             = 4
	subsystemBase                = 0x40 // 4.1.2.1: 0x40 or higher
	maxVectors                   = 1024
	configBytes, configStdBytes  = 4096, 256
	barMask                      = ^uint32(BARLenBytes - 1)
	firstCap                     = 0x40
	commonOff, isrOff, deviceOff = 0x0000, 0x1000, 0x2000
	notifyOff, tableOff, pbaOff  = 0x4000, 0x8000, 0xC000
)

// BARLenBytes is the length of BAR 0, the only one.
const BARLenBytes = 64 << 10
