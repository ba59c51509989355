// Package console is the device half of the virtio console device (virtio 1.2,
// section 5.3): terminals and named byte streams between a guest and this side.
//
// It moves bytes and does not look at them. Line discipline, escape keys and
// what the streams mean are the owner's.
//
// # Streams
//
// Each direction of a port has a bounded buffer between the guest's requests and
// In or Out. So neither Reset nor Quiesce ever waits for In or Out:
//
//   - Input that was read and not delivered stays in the buffer, over Quiesce and Reset,
//     until the guest has the port open and posts buffers.
//   - A transmit request is completed when all of its bytes are in the buffer, not
//     before: that is when they are accepted. They are written whatever becomes of the
//     guest, unless Out fails. A request without room waits, unaccepted; Quiesce returns it
//     and Reset forgets it. Drain waits until everything accepted was written.
//   - A request larger than the buffer goes in piece by piece. Quiesce returns it too,
//     and remembers by its sequence number how much of it was accepted.
//
// Close ends the goroutines. One that is in a Read or Write that never returns keeps
// it from returning, unless In or Out can be given a deadline, as pipes, sockets and
// pollable files can: the owner ends the others first.
//
// # Replay
//
// Data queues are ReplayStream, control queues ReplayRetain. Transmit requests fail
// by being dropped, all others by DEVICE_NEEDS_RESET.
//
// # Locks
//
// Device.mu (control queue, size) before port.mu (streams and control state of one port).
// None is held while the channel, In, Out or Config.Events is called.
package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/peervisor/peervisor/virtio"
)

// Device is the device half. Its states are those of virtio.Device.
type Device struct {
	cfg   Config
	info  virtio.Info
	ports []*port // MaxPorts of them, plugged or not
	wg    sync.WaitGroup

	mu          sync.Mutex
	idle        sync.Cond // pumping or pushing changed
	channel     virtio.Channel
	multiport   bool // negotiated
	driverReady bool // DEVICE_READY came
	rx          fifo // buffers for control messages
	pumping     bool
	again       bool
	pushing     int // calls of Resize in Channel.ConfigChanged
	batch       []*virtio.Request
	msg         message
	cols, rows  uint16
	plugged     int // ports [0, plugged) were plugged
	closed      bool
}

// New makes an idle device half. It borrows the ports' In and Out and touches
// them from the first Activate on.
func New(cfg Config) (*Device, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	d := &Device{cfg: cfg, info: cfg.info(), cols: cfg.Cols, rows: cfg.Rows, plugged: len(cfg.Ports)}
	d.idle.L = &d.mu
	for id := range cfg.MaxPorts {
		p := newPort(d, id)
		if id < len(cfg.Ports) {
			p.plugLocked(cfg.Ports[id])
		}
		d.ports = append(d.ports, p)
	}
	return d, nil
}

// Info implements virtio.Device.
func (d *Device) Info() virtio.Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	in := d.info
	in.Config = d.cfg.space(d.cols, d.rows)
	return in
}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	if extra := a.Features &^ virtio.TransportFeatureMask &^ d.info.Features; extra != 0 {
		return fmt.Errorf("activate console: features %#x were not offered", extra)
	}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return errors.New("activate console: it is closed")
	}
	d.channel = a.Channel
	d.multiport = a.Features&(1<<VIRTIO_CONSOLE_F_MULTIPORT) != 0
	multiport := d.multiport
	d.mu.Unlock()
	for _, p := range d.ports {
		p.activate(a.Channel, multiport)
	}
	return nil
}

// WriteConfig implements virtio.Device: a write to emerg_wr is a byte of output of
// port 0, whatever the state of the device (5.3.5.1); it is lost when the buffer is
// full. The other fields keep their values.
func (d *Device) WriteConfig(off int, p []byte) {
	if off < 0 || off+len(p) > configBytes {
		return // the transport half has checked
	}
	if off <= offEmerg && offEmerg < off+len(p) {
		d.ports[0].emergency(p[offEmerg-off])
	}
	d.mu.Lock()
	ch, space := d.channel, d.cfg.space(d.cols, d.rows)
	d.mu.Unlock()
	if n := min(off+len(p), offEmerg); ch != nil && off < n && !bytes.Equal(space[off:n], p[:n-off]) {
		ch.ConfigChanged(space)
	}
}

func (p *port) emergency(b byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.discard {
		p.out.put([]byte{b})
		p.startWriterLocked()
	}
}

// Submit implements virtio.Device.
func (d *Device) Submit(queue int, reqs []*virtio.Request) {
	switch queue {
	case controlReceive:
		d.mu.Lock()
		for _, r := range reqs {
			d.rx.push(r)
		}
		d.mu.Unlock()
		d.pumpControl()
		return
	case controlTransmit:
		for _, r := range reqs {
			d.command(r)
			r.SetUsed(0)
		}
		d.mu.Lock()
		ch := d.channel
		d.mu.Unlock()
		ch.Complete(reqs)
		d.pumpControl()
		return
	}
	id, transmit := portOf(queue)
	if transmit {
		d.ports[id].send(reqs)
	} else {
		d.ports[id].post(reqs)
	}
}

// Quiesce implements virtio.Device.
func (d *Device) Quiesce(queue int) {
	switch queue {
	case controlReceive:
		d.mu.Lock()
		reqs, ch := d.rx.take(), d.channel
		d.mu.Unlock()
		if len(reqs) > 0 {
			ch.Return(reqs)
		}
	case controlTransmit: // holds nothing
	default:
		id, transmit := portOf(queue)
		d.ports[id].quiesce(transmit)
	}
}

// Reset implements virtio.Device. It does not wait for In or Out.
func (d *Device) Reset() {
	d.mu.Lock()
	if d.channel == nil {
		d.mu.Unlock()
		return
	}
	d.rx.take()
	d.multiport, d.driverReady = false, false
	for d.pumping {
		d.idle.Wait()
	}
	d.mu.Unlock()
	for _, p := range d.ports {
		p.reset()
	}
	d.mu.Lock()
	for d.pumping || d.pushing > 0 { // by a port that was just ending its work, or by Resize
		d.idle.Wait()
	}
	d.channel = nil
	d.mu.Unlock()
}

// Close resets the half and waits for its goroutines; see the package comment
// for In and Out that block. Output that was accepted and not written is lost, which is
// the error: call Drain first. A second Close does nothing.
func (d *Device) Close() error {
	d.Reset()
	d.mu.Lock()
	done := d.closed
	d.closed = true
	d.mu.Unlock()
	if done {
		return nil
	}
	for _, p := range d.ports {
		p.close()
	}
	d.wg.Wait()
	var errs []error
	for _, p := range d.ports {
		if lost := p.unwritten(); lost > 0 {
			errs = append(errs, fmt.Errorf("close console port %d %q: %d bytes of output were not written", p.id, p.cfg.Name, lost))
		}
	}
	return errors.Join(errs...)
}

// Drain waits until all output that was accepted so far, on all ports, was written
// or lost to an error that Events was told of.
func (d *Device) Drain(ctx context.Context) error {
	for _, p := range d.ports {
		if err := p.drain(ctx); err != nil {
			return fmt.Errorf("drain console port %d %q: %w", p.id, p.cfg.Name, err)
		}
	}
	return nil
}

func (p *port) drain(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.idle.Broadcast()
	})
	defer stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.out.n > 0 && !p.closing {
		if err := ctx.Err(); err != nil {
			return err
		}
		p.idle.Wait()
	}
	return nil
}

// Resize tells the guest the size of a console port's terminal. With port 0 it is
// also what drivers without multiport read from the configuration space.
func (d *Device) Resize(id int, cols, rows uint16) error {
	if id < 0 || id >= len(d.ports) {
		return fmt.Errorf("resize console port %d: there are %d", id, len(d.ports))
	}
	p := d.ports[id]
	p.mu.Lock()
	c := &p.control
	changed := c.cols != cols || c.rows != rows
	c.cols, c.rows = cols, rows
	if changed && c.ready && p.cfg.Console && !p.removed {
		c.want |= wantSize
	}
	p.mu.Unlock()
	if !changed {
		return nil
	}
	if id == 0 {
		d.mu.Lock()
		d.cols, d.rows = cols, rows
		ch, space := d.channel, d.cfg.space(cols, rows)
		d.pushing++
		d.mu.Unlock()
		if ch != nil {
			ch.ConfigChanged(space)
		}
		d.mu.Lock()
		d.pushing--
		d.idle.Broadcast()
		d.mu.Unlock()
	}
	d.pumpControl()
	return nil
}

// Plug adds a port while the guest runs and returns its number. A number is not
// used again, so Config.MaxPorts bounds all ports there ever are.
func (d *Device) Plug(cfg Port) (int, error) {
	if err := cfg.check(); err != nil {
		return 0, err
	}
	d.mu.Lock()
	if d.closed || d.plugged == len(d.ports) {
		n := len(d.ports)
		d.mu.Unlock()
		return 0, fmt.Errorf("plug console port %q: all %d ports were used, or the console is closed", cfg.Name, n)
	}
	id := d.plugged
	d.plugged++
	ready, active := d.driverReady, d.channel != nil
	p := d.ports[id]
	p.mu.Lock()
	p.plugLocked(cfg)
	if active {
		p.startReaderLocked()
	}
	if ready {
		p.control.want |= wantAdd
	}
	p.mu.Unlock()
	d.mu.Unlock()
	d.pumpControl()
	return id, nil
}

// Unplug takes a port away from the guest. What the guest still sends is thrown
// away, its buffers are not filled any more. The owner ends In and Out.
func (d *Device) Unplug(id int) error {
	if id < 0 || id >= len(d.ports) {
		return fmt.Errorf("unplug console port %d: there are %d", id, len(d.ports))
	}
	p := d.ports[id]
	p.mu.Lock()
	if !p.present || p.removed {
		p.mu.Unlock()
		return fmt.Errorf("unplug console port %d: it is not plugged", id)
	}
	p.removed, p.discard = true, true
	p.control.want &^= wantAll
	if p.control.added {
		p.control.want |= wantRemove
	}
	ch := p.channel
	p.txOff = 0
	var waiting []*virtio.Request
	if ch != nil {
		waiting = p.tx.take()
		p.completing++
	}
	p.mu.Unlock()
	for _, r := range waiting {
		r.SetUsed(0)
	}
	if len(waiting) > 0 {
		ch.Complete(waiting)
	}
	if ch != nil {
		p.mu.Lock()
		p.completing--
		p.idle.Broadcast()
		p.mu.Unlock()
	}
	d.pumpControl()
	return nil
}
