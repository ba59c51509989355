package console

// Names and numbers of the virtio 1.2 console device, section 5.3, in the
// spelling of Linux's header where the specification has two.

// Feature bits (5.3.3).
const (
	VIRTIO_CONSOLE_F_SIZE        = 0
	VIRTIO_CONSOLE_F_MULTIPORT   = 1
	VIRTIO_CONSOLE_F_EMERG_WRITE = 2
)

// Control events (5.3.6.2).
const (
	VIRTIO_CONSOLE_DEVICE_READY = 0 // driver to device
	VIRTIO_CONSOLE_PORT_ADD     = 1 // VIRTIO_CONSOLE_DEVICE_ADD in the specification
	VIRTIO_CONSOLE_PORT_REMOVE  = 2 // VIRTIO_CONSOLE_DEVICE_REMOVE in the specification
	VIRTIO_CONSOLE_PORT_READY   = 3 // driver to device
	VIRTIO_CONSOLE_CONSOLE_PORT = 4
	VIRTIO_CONSOLE_RESIZE       = 5
	VIRTIO_CONSOLE_PORT_OPEN    = 6 // both ways
	VIRTIO_CONSOLE_PORT_NAME    = 7
)

// Offsets in struct virtio_console_config (5.3.4).
const (
	offCols     = 0 // le16
	offRows     = 2 // le16
	offMaxPorts = 4 // le32
	offEmerg    = 8 // le32
	configBytes = 12
)

// controlBytes is the length of struct virtio_console_control: le32 id, le16
// event, le16 value (5.3.6.2).
const controlBytes = 8

// The control queues (5.3.2). Ports have queues 0 and 1, then 4 and 5, and so on.
const (
	controlReceive  = 2
	controlTransmit = 3
)

// portOf names the port and the direction of a data queue. Queues 2 and 3 are not one.
func portOf(queue int) (port int, transmit bool) {
	port = queue / 2
	if port > 0 {
		port--
	}
	return port, queue%2 == 1
}
