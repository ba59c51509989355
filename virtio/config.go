package virtio

import (
	"bytes"
	"fmt"
	"time"
)

// ConfigLen is the length of the device configuration space in bytes.
func (c *Core) ConfigLen() int { return len(c.config) }

// ReadConfig fills p from the cached configuration space at off. Bytes beyond
// its end are 0.
func (c *Core) ReadConfig(off uint64, p []byte) {
	clear(p)
	c.state.Lock()
	defer c.state.Unlock()
	if c.unread {
		c.unread, c.torn = false, true
	}
	if off < uint64(len(c.config)) {
		copy(p, c.config[off:])
	}
}

// WriteConfig applies a driver's write of p at off: to the cache, and to the half.
// One that is not wholly inside is ignored.
func (c *Core) WriteConfig(off uint64, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.resetting != nil {
		return
	}
	if n := uint64(len(c.config)); off > n || uint64(len(p)) > n-off {
		c.grumble(fmt.Errorf("configuration write of %d bytes at %d is outside of %d", len(p), off, n))
		return
	}
	c.state.Lock()
	copy(c.config[off:], p)
	c.state.Unlock()
	c.dev.WriteConfig(int(off), p)
}

// Generation is the driver's read of the generation register. It differs from the
// last one if the driver has read a configuration in between that had changed
// (4.1.4.3.1). Counting here and not at the changes keeps a narrow register from
// wrapping between two reads.
func (c *Core) Generation() uint32 {
	c.state.Lock()
	defer c.state.Unlock()
	if c.torn {
		c.generation++
		c.torn = false
	}
	return c.generation
}

// pushConfig takes over what the half says of its configuration space, and reports
// whether the driver is to be told.
func (c *Core) pushConfig(a *activation, config []byte) (notify bool, err error) {
	c.state.Lock()
	defer c.state.Unlock()
	if c.act != a {
		return false, nil
	}
	if len(config) != len(c.config) {
		return false, fmt.Errorf("device half pushed %d bytes of configuration space for %d", len(config), len(c.config))
	}
	c.unread = c.unread || !bytes.Equal(c.config, config)
	copy(c.config, config)
	copy(c.base, config)
	return c.status&VIRTIO_CONFIG_S_DRIVER_OK != 0, nil
}

// configInterrupt notifies the driver of a change of configuration or status.
func (c *Core) configInterrupt() {
	c.configInterrupts.Add(1)
	if err := c.notifier.ConfigInterrupt(); err != nil {
		c.grumble(fmt.Errorf("configuration interrupt: %w", err))
	}
}

// grumble logs what the driver or the half did wrong, boundedly: a driver can do
// it all day.
func (c *Core) grumble(err error) {
	if c.log != nil && c.grumbles.allow(time.Now()) {
		c.log.Warn("virtio device", "device", c.name, "err", err)
	}
}
