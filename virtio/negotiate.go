package virtio

import (
	"errors"
	"fmt"

	"github.com/peervisor/peervisor/memory"
)

// Status is the device status register.
func (c *Core) Status() byte {
	c.state.Lock()
	defer c.state.Unlock()
	return c.status
}

// SetStatus applies a driver's write to the status register. A write of 0 starts
// a reset: if that has to wait for the device half, the status stays
// and a channel is returned that is closed when the status reads 0. Until then
// the driver's writes are ignored.
func (c *Core) SetStatus(v byte) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return c.resetting
	case v == 0:
		return c.resetLocked()
	case c.resetting != nil:
		return nil
	}
	for _, bit := range [...]byte{VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER,
		VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER_OK} {
		if v&bit == 0 || c.Status()&bit != 0 {
			continue
		}
		if err := c.mayLocked(bit); err != nil {
			c.grumble(fmt.Errorf("status bit %d refused: %w", bit, err))
			break
		}
		c.addStatus(bit)
		if bit == VIRTIO_CONFIG_S_DRIVER_OK {
			c.activateLocked()
		}
	}
	return nil
}

// mayLocked says why the driver may not set the status bit now.
func (c *Core) mayLocked(bit byte) error {
	before := map[byte]byte{
		VIRTIO_CONFIG_S_DRIVER:      VIRTIO_CONFIG_S_ACKNOWLEDGE,
		VIRTIO_CONFIG_S_FEATURES_OK: VIRTIO_CONFIG_S_DRIVER,
		VIRTIO_CONFIG_S_DRIVER_OK:   VIRTIO_CONFIG_S_FEATURES_OK,
	}[bit]
	switch status := c.Status(); {
	case status&before != before:
		return fmt.Errorf("status is %#x (3.1.1)", status)
	case bit == VIRTIO_CONFIG_S_DRIVER_OK && status&VIRTIO_CONFIG_S_NEEDS_RESET != 0:
		return errors.New("device needs a reset first (2.1.1)")
	case bit == VIRTIO_CONFIG_S_FEATURES_OK && c.features&(1<<VIRTIO_F_VERSION_1) == 0:
		return errors.New("VIRTIO_F_VERSION_1 was not accepted (6.1)")
	case bit == VIRTIO_CONFIG_S_FEATURES_OK && (c.highBits || c.features&^c.offered != 0):
		return fmt.Errorf("features %#x were not offered (2.2.1)", c.features&^c.offered)
	}
	return nil
}

func (c *Core) addStatus(bit byte) {
	c.state.Lock()
	defer c.state.Unlock()
	c.status |= bit
}

// activateLocked freezes what was agreed and starts the half and the workers.
func (c *Core) activateLocked() {
	a := newActivation(c, append([]*queue(nil), c.queues...))
	sizes := make([]uint16, len(c.queues))
	for i, q := range c.queues {
		if q != nil {
			sizes[i] = q.size
		}
	}
	c.state.Lock()
	c.act = a
	c.state.Unlock()
	if err := c.dev.Activate(Activation{Features: c.features, QueueSizes: sizes, Channel: a}); err != nil {
		a.NeedsReset(fmt.Errorf("activate device half: %w", err))
		return
	}
	a.start(c.paused)
}

// resetLocked starts a reset, or joins the one under way.
func (c *Core) resetLocked() <-chan struct{} {
	if c.resetting != nil {
		return c.resetting
	}
	act := c.current()
	if act == nil {
		c.dev.Reset() // idle, but it may have taken configuration writes
		c.clearLocked()
		return nil
	}
	done := make(chan struct{})
	c.resetting = done
	go func() {
		defer close(done)
		act.end()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.resetting = nil
		c.resets.Add(1)
		c.clearLocked()
	}()
	return done
}

// clearLocked brings all registers to their state after a reset.
func (c *Core) clearLocked() {
	c.features, c.highBits = 0, false
	for i := range c.setups {
		c.setups[i] = QueueSetup{MaxSize: c.setups[i].MaxSize, Size: c.setups[i].MaxSize}
		c.queues[i] = nil
	}
	c.notifier.ResetDone()
	c.state.Lock()
	defer c.state.Unlock()
	c.status, c.act = 0, nil
	c.unread = c.unread || string(c.config) != string(c.base)
	copy(c.config, c.base)
}

// breakDevice sets DEVICE_NEEDS_RESET (2.1.2), stops the workers and tells the
// driver, once. a is the activation that broke, nil while there is none: a
// reset that is over by now is not undone.
func (c *Core) breakDevice(a *activation, reason error) {
	c.state.Lock()
	if c.act != a || c.status&VIRTIO_CONFIG_S_NEEDS_RESET != 0 {
		c.state.Unlock()
		return
	}
	c.status |= VIRTIO_CONFIG_S_NEEDS_RESET
	notify := c.status&VIRTIO_CONFIG_S_DRIVER_OK != 0
	c.state.Unlock()
	c.broken.Add(1)
	if a != nil {
		a.gate.set(func(g *gate) { g.broken = true })
	}
	c.grumble(fmt.Errorf("needs reset: %w", reason))
	if notify {
		c.configInterrupt()
	}
}

// DeviceFeatures are bits sel*32 to sel*32+31 of those offered.
func (c *Core) DeviceFeatures(sel uint32) uint32 { return word(c.offered, sel) }

// DriverFeatures are those that the driver wrote.
func (c *Core) DriverFeatures(sel uint32) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return word(c.features, sel)
}

func word(v uint64, sel uint32) uint32 {
	if sel > 1 {
		return 0
	}
	return uint32(v >> (32 * sel))
}

// SetDriverFeatures applies a driver's write of bits sel*32 to sel*32+31. After
// FEATURES_OK it is ignored.
func (c *Core) SetDriverFeatures(sel, v uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.resetting != nil || c.Status()&VIRTIO_CONFIG_S_FEATURES_OK != 0 {
		return
	}
	if sel > 1 {
		c.highBits = c.highBits || v != 0
		return
	}
	c.features = c.features&^(0xFFFF_FFFF<<(32*sel)) | uint64(v)<<(32*sel)
}

// Queue is the setup of queue i; of one that does not exist, all zeroes.
func (c *Core) Queue(i uint32) QueueSetup {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i >= uint32(len(c.setups)) {
		return QueueSetup{}
	}
	if act := c.current(); c.setups[i].Enabled && act != nil && act.stopped(int(i)) {
		c.setups[i].Enabled = false
	}
	return c.setups[i]
}

// SetQueueSize applies a driver's write of the queue size. An illegal one reads
// back as 0, and the queue cannot be enabled with it.
func (c *Core) SetQueueSize(i, size uint32) {
	c.setup(i, func(s *QueueSetup) {
		if size > uint32(s.MaxSize) || size&(size-1) != 0 {
			size = 0
		}
		s.Size = uint16(size)
	})
}

// SetQueueArea applies a driver's write of the low or high half of an address.
func (c *Core) SetQueueArea(i uint32, area QueueArea, high bool, v uint32) {
	c.setup(i, func(s *QueueSetup) {
		p := [...]*memory.Addr{&s.Desc, &s.Driver, &s.Device}[area]
		if high {
			*p = *p&0xFFFF_FFFF | memory.Addr(v)<<32
		} else {
			*p = *p&^0xFFFF_FFFF | memory.Addr(v)
		}
	})
}

// setup changes the setup of a queue that is the driver's: not enabled, before
// DRIVER_OK.
func (c *Core) setup(i uint32, f func(s *QueueSetup)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i < uint32(len(c.setups)) && !c.setups[i].Enabled && !c.frozenLocked() {
		f(&c.setups[i])
	}
}

func (c *Core) frozenLocked() bool {
	return c.closed || c.resetting != nil || c.Status()&VIRTIO_CONFIG_S_DRIVER_OK != 0
}

// EnableQueue applies a driver's write that enables queue i. A queue that fails
// the checks stays disabled, and the device needs a reset.
func (c *Core) EnableQueue(i uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i >= uint32(len(c.setups)) || c.setups[i].Enabled || c.closed || c.resetting != nil {
		return
	}
	if err := c.enableLocked(int(i)); err != nil {
		c.breakDevice(c.current(), fmt.Errorf("enable queue %d: %w", i, err))
	}
}

func (c *Core) enableLocked(i int) error {
	if s := c.Status(); s&VIRTIO_CONFIG_S_FEATURES_OK == 0 || s&VIRTIO_CONFIG_S_DRIVER_OK != 0 {
		return fmt.Errorf("status is %#x, not between FEATURES_OK and DRIVER_OK (3.1.1)", s)
	}
	q, err := newQueue(c.mem, i, c.setups[i], c.features, &c.counts[i])
	if err != nil {
		return err
	}
	c.queues[i], c.setups[i].Enabled = q, true
	return nil
}

// DisableQueue applies a driver's write that takes queue i back, which MMIO
// knows. Of a live queue it reads as enabled until nothing of it is with the half any
// more; it cannot be enabled again before a reset.
func (c *Core) DisableQueue(i uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i >= uint32(len(c.setups)) || !c.setups[i].Enabled || c.resetting != nil {
		return
	}
	if act := c.current(); act != nil {
		act.stopQueue(int(i))
		return
	}
	c.queues[i], c.setups[i].Enabled = nil, false
}
