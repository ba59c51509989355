// Package net is the device half of a virtio network device (virtio 1.2,
// section 5.1): one queue pair and a control queue, checksum and segmentation
// offload in both directions, mergeable receive buffers.
//
// It knows frames and their virtio_net_hdr, not what is in them and not where
// they go: that is the Backend's, which is a tap, a user-mode stack or a segment
// elsewhere (package network). It owns the requests that it was given and one
// goroutine, which receives; it borrows the backend.
//
// # Data paths
//
// Transmit: Submit copies and checks the 12-byte header, hands header and guest
// bytes to Conn.Send, and completes the whole batch with one call. Nothing waits;
// what the backend cannot take is dropped, as on a wire.
//
// Receive: buffers are kept in order until a frame comes. The receiving goroutine
// lends them to Conn.Recv, which fills them in place, and completes all buffers
// of all frames that are there with one call. Without buffers it does not ask the
// backend for frames, so that the backend's own queue fills and holds back its
// sources. Frames are dropped only where Stats says so.
//
// # The control queue
//
// It exists for VIRTIO_NET_F_GUEST_ANNOUNCE: a guest that was moved together with
// its network port tells the switches so. Receive modes, MAC filters and VLAN
// filters are not offered, since a backend has one guest on it and filters nothing;
// without them drivers change their own address freely.
//
// # Locks
//
// Device.mu (link, channel) and receiver.mu (buffers) are never held together,
// and neither is held during a call to the channel.
package net

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/peervisor/peervisor/virtio"
)

// Device is a network device half. It implements virtio.Device.
type Device struct {
	cfg      Config
	features uint64
	stats    counters
	down     atomic.Bool // the link, for the data paths

	mu     sync.Mutex
	status uint16         // the configuration field
	ch     virtio.Channel // nil while idle
	canAsk bool           // VIRTIO_NET_F_GUEST_ANNOUNCE was negotiated

	// Set by Activate, cleared by Reset; the data paths run in between.
	act *activation
}

// activation is what lives from Activate to Reset.
type activation struct {
	ch      virtio.Channel
	conn    Conn
	offload Offload
	tx      transmitter
	rx      *receiver
}

var _ virtio.Device = (*Device)(nil)

// New makes an idle device half.
func New(cfg Config) (*Device, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("configure network device: %w", err)
	}
	cfg.MAC = append(cfg.MAC[:0:0], cfg.MAC...)
	d := &Device{cfg: cfg, features: offered(&cfg), status: VIRTIO_NET_S_LINK_UP}
	if cfg.LinkDown {
		d.status = 0
		d.down.Store(true)
	}
	return d, nil
}

// Info implements virtio.Device.
func (d *Device) Info() virtio.Info {
	d.mu.Lock()
	space := d.cfg.space(d.status)
	d.mu.Unlock()
	drop := virtio.Failure{Form: virtio.FailDrop}
	return virtio.Info{
		ID:       virtio.VIRTIO_ID_NET,
		Features: d.features,
		Queues: []virtio.QueueInfo{
			receiveQueue:  {MaxSize: queueSize, Replay: virtio.ReplayStream, Failure: drop},
			transmitQueue: {MaxSize: queueSize, Replay: virtio.ReplayStream, Failure: drop},
			controlQueue: {MaxSize: controlQueueSize, Replay: virtio.ReplayRetain,
				Failure: virtio.Failure{Form: virtio.FailStatus, Status: VIRTIO_NET_ERR}},
		},
		Config: space,
	}
}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	if d.act != nil {
		return fmt.Errorf("activate network device %s: already active", d.cfg.MAC)
	}
	o, err := negotiated(a.Features & d.features)
	if err != nil {
		return fmt.Errorf("activate network device %s: %w", d.cfg.MAC, err)
	}
	conn, err := d.cfg.Backend.Attach(o)
	if err != nil {
		return fmt.Errorf("attach network device %s to its backend: %w", d.cfg.MAC, err)
	}
	act := &activation{ch: a.Channel, conn: conn, offload: o}
	act.rx = newReceiver(d, act, receiverConfig{
		merge:   a.Features&(1<<VIRTIO_NET_F_MRG_RXBUF) != 0,
		mtu:     d.mtuLimit(a.Features),
		offload: o,
	})
	d.act = act
	d.mu.Lock()
	d.ch = a.Channel
	d.canAsk = a.Features&(1<<VIRTIO_NET_F_GUEST_ANNOUNCE) != 0
	d.mu.Unlock()
	go act.rx.run()
	return nil
}

// mtuLimit is the longest frame without segmentation that the driver may be
// given: after VIRTIO_NET_F_MTU was negotiated, the MTU and an Ethernet header
// with a VLAN tag (section 5.1.4.1).
func (d *Device) mtuLimit(features uint64) int {
	if d.cfg.MTU == 0 || features&(1<<VIRTIO_NET_F_MTU) == 0 {
		return MaxFrameBytes
	}
	return d.cfg.MTU + EthernetBytes + 4
}

// WriteConfig implements virtio.Device. All fields are read-only for the driver.
func (d *Device) WriteConfig(int, []byte) {}

// Submit implements virtio.Device.
func (d *Device) Submit(queue int, reqs []*virtio.Request) {
	act := d.act
	if act == nil {
		return
	}
	switch queue {
	case receiveQueue:
		act.rx.post(reqs)
	case transmitQueue:
		act.tx.send(d, act, reqs)
	case controlQueue:
		d.control(act.ch, reqs)
	}
}

// Quiesce implements virtio.Device. Sent frames and commands complete within
// Submit, so only receive buffers are ever held.
func (d *Device) Quiesce(queue int) {
	if act := d.act; act != nil && queue == receiveQueue {
		if reqs := act.rx.takeBack(); len(reqs) > 0 {
			act.ch.Return(reqs)
		}
	}
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	act := d.act
	if act == nil {
		return
	}
	d.mu.Lock()
	d.ch, d.canAsk = nil, false
	d.status &^= VIRTIO_NET_S_ANNOUNCE
	d.mu.Unlock()
	act.rx.stop()
	d.act = nil
}

// SetLink plugs the cable in or pulls it. While the link is down, frames are
// dropped in both directions. It may be called from any goroutine.
func (d *Device) SetLink(up bool) {
	d.down.Store(!up)
	d.setStatus(func(s uint16) uint16 {
		if up {
			return s | VIRTIO_NET_S_LINK_UP
		}
		return s &^ VIRTIO_NET_S_LINK_UP
	})
}

// LinkUp says whether the link is up.
func (d *Device) LinkUp() bool { return !d.down.Load() }

// Announce asks the driver to send gratuitous packets, after the guest was
// moved. It reports whether the driver can.
func (d *Device) Announce() bool {
	d.mu.Lock()
	can := d.canAsk
	d.mu.Unlock()
	if can {
		d.setStatus(func(s uint16) uint16 { return s | VIRTIO_NET_S_ANNOUNCE })
	}
	return can
}

// setStatus changes the field status and tells the driver if it differs.
func (d *Device) setStatus(change func(uint16) uint16) {
	d.mu.Lock()
	was := d.status
	d.status = change(was)
	now, ch, space := d.status, d.ch, d.cfg.space(d.status)
	d.mu.Unlock()
	if ch != nil && now != was {
		ch.ConfigChanged(space)
	}
}
