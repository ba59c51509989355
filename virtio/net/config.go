package net

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
)

// Limits of Config.MTU: the specification asks for at least 68, and IPv4 hosts
// for no less; the upper end is the field's.
const (
	minMTU = 68
	maxMTU = 65535
)

// queueSize is the size of both data queues in descriptors: 512 buffers of
// 1.5 KiB hold about a dozen frames of 64 KiB.
const queueSize = 512

// controlQueueSize suffices: drivers send one command at a time.
const controlQueueSize = 16

// Config describes a network device.
type Config struct {
	// MAC is the guest's address: 6 bytes, not a group address. Required.
	MAC net.HardwareAddr
	// MTU is the largest packet in bytes that the driver is told of, 68..65535; 0:
	// the driver is told nothing and uses 1500.
	MTU int
	// Backend is what the device is plugged into. Borrowed. Required.
	Backend Backend
	// LinkDown starts the device with its link down.
	LinkDown bool
}

func (c *Config) check() error {
	switch {
	case len(c.MAC) != 6:
		return fmt.Errorf("MAC address %q has %d bytes, not 6", c.MAC, len(c.MAC))
	case c.MAC[0]&1 != 0:
		return fmt.Errorf("MAC address %s is a group address: its first byte must be even", c.MAC)
	case c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU):
		return fmt.Errorf("MTU %d is not in %d..%d", c.MTU, minMTU, maxMTU)
	case c.Backend == nil:
		return errors.New("network device without a backend")
	}
	return nil
}

// configBytes is the length of virtio_net_config as far as mtu (section 5.1.4):
// mac[6], status, max_virtqueue_pairs, mtu.
const configBytes = 12

// space renders virtio_net_config.
func (c *Config) space(status uint16) []byte {
	b := make([]byte, configBytes)
	copy(b, c.MAC)
	binary.LittleEndian.PutUint16(b[6:], status)
	binary.LittleEndian.PutUint16(b[8:], 1) // one pair; read only with VIRTIO_NET_F_MQ
	binary.LittleEndian.PutUint16(b[10:], uint16(c.MTU))
	return b
}

// featureOf pairs each offload with its feature bit.
var featureOf = [...]struct {
	offload Offload
	bit     int
}{
	{TxChecksum, VIRTIO_NET_F_CSUM},
	{TxTSO4, VIRTIO_NET_F_HOST_TSO4},
	{TxTSO6, VIRTIO_NET_F_HOST_TSO6},
	{TxECN, VIRTIO_NET_F_HOST_ECN},
	{RxChecksum, VIRTIO_NET_F_GUEST_CSUM},
	{RxTSO4, VIRTIO_NET_F_GUEST_TSO4},
	{RxTSO6, VIRTIO_NET_F_GUEST_TSO6},
	{RxECN, VIRTIO_NET_F_GUEST_ECN},
}

// offered is the device's feature set for what its backend can do.
func offered(c *Config) uint64 {
	f := uint64(1)<<VIRTIO_NET_F_MAC | 1<<VIRTIO_NET_F_STATUS | 1<<VIRTIO_NET_F_MRG_RXBUF |
		1<<VIRTIO_NET_F_CTRL_VQ | 1<<VIRTIO_NET_F_GUEST_ANNOUNCE
	if c.MTU != 0 {
		f |= 1 << VIRTIO_NET_F_MTU
	}
	o := closure(c.Backend.Offloads())
	for _, p := range featureOf {
		if o&p.offload != 0 {
			f |= 1 << p.bit
		}
	}
	return f
}

// closure drops offloads whose precondition is missing (section 5.1.3.1).
func closure(o Offload) Offload {
	if o&TxChecksum == 0 {
		o &^= TxTSO4 | TxTSO6
	}
	if o&RxChecksum == 0 {
		o &^= RxTSO4 | RxTSO6
	}
	if o&(TxTSO4|TxTSO6) == 0 {
		o &^= TxECN
	}
	if o&(RxTSO4|RxTSO6) == 0 {
		o &^= RxECN
	}
	return o
}

// negotiated turns the driver's feature set into offloads. A driver that breaks the
// rules of section 5.1.3.1 is refused.
func negotiated(features uint64) (Offload, error) {
	var o Offload
	for _, p := range featureOf {
		if features&(1<<p.bit) != 0 {
			o |= p.offload
		}
	}
	if closure(o) != o {
		return 0, fmt.Errorf("driver negotiated offloads %#x without what they require", o)
	}
	if features&(1<<VIRTIO_NET_F_GUEST_ANNOUNCE) != 0 && features&(1<<VIRTIO_NET_F_CTRL_VQ) == 0 {
		return 0, errors.New("driver negotiated VIRTIO_NET_F_GUEST_ANNOUNCE without VIRTIO_NET_F_CTRL_VQ")
	}
	return o, nil
}
