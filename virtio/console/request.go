package console

import (
	"encoding/binary"

	"github.com/peervisor/peervisor/virtio"
)

// want is the set of control messages that the driver has not been sent yet. A
// message is made when there is a buffer for it, from what is true then; so a driver
// that posts no buffers, or says DEVICE_READY for ever, piles up nothing. The bits
// are in the order of sending.
type want uint8

const (
	wantAdd want = 1 << iota
	wantConsole
	wantName
	wantSize
	wantOpen
	wantRemove
	wantAll = 1<<iota - 1
)

// portState is what the driver and the device know of each other about a port.
//
//	DEVICE_READY        PORT_READY            PORT_OPEN 1
//	────────────► added ──────────► ready ◄──────────────► guestOpen
//	  PORT_ADD           CONSOLE_PORT,         PORT_OPEN 0
//	                     PORT_NAME, RESIZE,
//	                     PORT_OPEN
type portState struct {
	added, ready, guestOpen bool
	shown                   bool // the last PORT_OPEN that was sent had value 1
	want                    want
	cols, rows              uint16
}

// hostOpenLocked is whether the guest is to see the port as open on our side:
// until In has ended and everything of it was delivered.
func (p *port) hostOpenLocked() bool {
	return p.present && !p.removed && (p.cfg.KeepOpen || !p.ended || p.in.n > 0)
}

// noteOpenLocked asks for PORT_OPEN if our side has changed.
func (p *port) noteOpenLocked() bool {
	c := &p.control
	if !c.ready || c.want&wantOpen != 0 || c.shown == p.hostOpenLocked() {
		return false
	}
	c.want |= wantOpen
	return true
}

// message is one control message to the driver.
type message struct {
	buf [controlBytes + maxNameBytes]byte
	n   int
}

func (m *message) set(id int, event, value uint16) {
	binary.LittleEndian.PutUint32(m.buf[0:], uint32(id))
	binary.LittleEndian.PutUint16(m.buf[4:], event)
	binary.LittleEndian.PutUint16(m.buf[6:], value)
	m.n = controlBytes
}

// nextMessage makes the port's next message, if it has one.
func (p *port) nextMessage(m *message) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &p.control
	if c.want&wantRemove != 0 {
		c.want = wantRemove
	}
	next := c.want & -c.want
	c.want &^= next
	switch next {
	case wantAdd:
		c.added = true
		m.set(p.id, VIRTIO_CONSOLE_PORT_ADD, 0)
	case wantConsole:
		m.set(p.id, VIRTIO_CONSOLE_CONSOLE_PORT, 1)
	case wantName:
		m.set(p.id, VIRTIO_CONSOLE_PORT_NAME, 1)
		m.n += copy(m.buf[m.n:], p.cfg.Name)
	case wantSize:
		m.set(p.id, VIRTIO_CONSOLE_RESIZE, 0)
		first, second := c.cols, c.rows
		if p.d.cfg.ResizeRowsFirst {
			first, second = second, first
		}
		binary.LittleEndian.PutUint16(m.buf[m.n:], first)
		binary.LittleEndian.PutUint16(m.buf[m.n+2:], second)
		m.n += 4
	case wantOpen:
		c.shown = p.hostOpenLocked()
		value := uint16(0)
		if c.shown {
			value = 1
		}
		m.set(p.id, VIRTIO_CONSOLE_PORT_OPEN, value)
	case wantRemove:
		*c = portState{}
		m.set(p.id, VIRTIO_CONSOLE_PORT_REMOVE, 0)
	default:
		return false
	}
	return true
}

// driverReady answers DEVICE_READY: the port is added once.
func (p *port) driverReady() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.present && !p.removed && !p.control.added {
		p.control.want |= wantAdd
	}
}

// portReady answers PORT_READY with all that there is to say about the port.
func (p *port) portReady() {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &p.control
	if !c.added || c.ready || p.removed {
		return
	}
	c.ready = true
	c.want |= wantOpen
	if p.cfg.Name != "" {
		c.want |= wantName
	}
	if p.cfg.Console {
		c.want |= wantConsole
		if c.cols != 0 || c.rows != 0 {
			c.want |= wantSize
		}
	}
}

// portOpen takes the driver's PORT_OPEN.
func (p *port) portOpen(open bool) {
	p.mu.Lock()
	changed := p.control.ready && p.control.guestOpen != open
	if changed {
		p.control.guestOpen = open
	}
	p.mu.Unlock()
	switch {
	case changed && open:
		p.event(GuestOpened, nil)
		p.pumpIn()
	case changed:
		p.event(GuestClosed, nil)
	}
}

// command takes one message of the driver. One that is short, or names a port
// that is not there, or an event that only the device may send, is ignored.
func (d *Device) command(r *virtio.Request) {
	var b [controlBytes]byte
	if r.ReadAt(b[:], 0) < controlBytes {
		return
	}
	id := binary.LittleEndian.Uint32(b[0:])
	event := binary.LittleEndian.Uint16(b[4:])
	value := binary.LittleEndian.Uint16(b[6:])
	if event == VIRTIO_CONSOLE_DEVICE_READY {
		if value == 1 {
			d.mu.Lock()
			d.driverReady = true
			d.mu.Unlock()
			for _, p := range d.ports {
				p.driverReady()
			}
		}
		return
	}
	if id >= uint32(len(d.ports)) {
		return
	}
	switch p := d.ports[id]; event {
	case VIRTIO_CONSOLE_PORT_READY:
		if value == 1 {
			p.portReady()
		}
	case VIRTIO_CONSOLE_PORT_OPEN:
		p.portOpen(value != 0)
	}
}

// pumpControl sends control messages as long as there are messages and buffers.
// As with pumpIn, one goroutine does it at a time, so that their order holds.
func (d *Device) pumpControl() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.again = true
	if d.pumping {
		return
	}
	d.pumping = true
	for d.again {
		d.again = false
		for d.fillControlLocked() {
			ch, batch := d.channel, d.batch
			d.mu.Unlock()
			ch.Complete(batch)
			d.mu.Lock()
		}
	}
	d.pumping = false
	d.idle.Broadcast()
}

func (d *Device) fillControlLocked() bool {
	clear(d.batch)
	d.batch = d.batch[:0]
	if d.channel == nil || !d.multiport {
		return false
	}
	for _, p := range d.ports {
		for d.rx.len() > 0 && len(d.batch) < maxBatch && p.nextMessage(&d.msg) {
			// A buffer that is too small gets what fits; Linux's are 4 KiB.
			r := d.rx.pop()
			r.SetUsed(r.WriteAt(d.msg.buf[:d.msg.n], 0))
			d.batch = append(d.batch, r)
		}
	}
	return len(d.batch) > 0
}
