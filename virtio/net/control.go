package net

import "github.com/peervisor/peervisor/virtio"

// control answers commands of the control queue (section 5.1.6.5): class and
// command in the readable part, one status byte to write.
func (d *Device) control(ch virtio.Channel, reqs []*virtio.Request) {
	for _, r := range reqs {
		var cmd [2]byte
		status := byte(VIRTIO_NET_ERR)
		acked := r.ReadAt(cmd[:], 0) == len(cmd) &&
			cmd[0] == VIRTIO_NET_CTRL_ANNOUNCE && cmd[1] == VIRTIO_NET_CTRL_ANNOUNCE_ACK
		if acked {
			status = VIRTIO_NET_OK
		}
		r.SetUsed(r.WriteAt([]byte{status}, 0))
		if acked {
			d.setStatus(func(s uint16) uint16 { return s &^ VIRTIO_NET_S_ANNOUNCE })
		}
	}
	ch.Complete(reqs)
}
