package virtio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/peervisor/peervisor/memory"
)

// ResetWait bounds Reset and Close: a device half whose Reset has not returned
// by then is reported.
const ResetWait = 30 * time.Second

// ErrClosed is wrapped by what is asked of a closed transport half.
var ErrClosed = errors.New("transport half is closed")

// transportFeatures are the bits that the transport half offers.
const transportFeatures uint64 = 1<<VIRTIO_F_VERSION_1 | 1<<VIRTIO_F_INDIRECT_DESC | 1<<VIRTIO_F_EVENT_IDX

// Notifier is what Core needs of a transport: the way to the driver. Its methods
// are called from any goroutine, hold none of Core's locks but for ResetDone, and
// do not block for longer than a system call.
type Notifier interface {
	// QueueInterrupt sends a used buffer notification for the queue.
	QueueInterrupt(queue int) error
	// ConfigInterrupt sends a configuration change notification.
	ConfigInterrupt() error
	// ResetDone clears the transport's registers that a device reset clears.
	// It calls nothing of Core.
	ResetDone()
}

// CoreConfig describes a Core. All but Log are required.
type CoreConfig struct {
	Name     string
	Device   Device
	Memory   *memory.Memory
	Notifier Notifier
	// Log gets what the driver did wrong, bounded. nil: nothing is logged.
	Log *slog.Logger
}

// QueueSetup is what a driver sets up of one virtqueue, and reads back.
type QueueSetup struct {
	// MaxSize is the half's; Size is the driver's choice, MaxSize at first.
	MaxSize, Size uint16
	// Desc, Driver and Device are the guest-physical addresses of the
	// descriptor table, the available ring and the used ring.
	Desc, Driver, Device memory.Addr
	// Enabled says that the checks were passed and the rings borrowed.
	Enabled bool
}

// QueueArea names one of a queue's addresses.
type QueueArea int

const (
	AreaDesc QueueArea = iota
	AreaDriver
	AreaDevice
)

// Core is what all transports share of a transport half: the device status,
// feature negotiation, queues with their workers, and the configuration space.
// pci.Function and mmio.Device put registers in front of it.
//
// The status register (virtio 1.2, section 2.1). Bits are only ever added, in
// this order; a write that skips one leaves it and those after it unset:
//
//	       write 0 (any state)
//	 ┌───────────────────────────────┐
//	 ▼                               │
//	0 ─► ACKNOWLEDGE ─► DRIVER ─► FEATURES_OK ─► DRIVER_OK
//	       features written here │  queues enabled  │ Activate, one worker a queue:
//	       refused: bit unset ◄──┘  here, and only  │ everything is frozen
//	                                                ▼
//	     0 ◄── the half is reset ◄── write 0 ◄── live ──► NEEDS_RESET (workers stop)
//	             (status still reads as before)
//
// Locks, in order: mu, then an activation's half or gate.mu, then a queue's mu or
// state. Device.Activate and WriteConfig are called with mu held; what a half
// calls back takes only the leaves.
type Core struct {
	name     string
	dev      Device
	mem      *memory.Memory
	notifier Notifier
	log      *slog.Logger
	id       DeviceID
	offered  uint64
	bells    []*bell
	counts   []queueCounters

	resets, broken, configInterrupts atomic.Uint64

	// mu orders the driver's writes and the owner's calls.
	mu        sync.Mutex
	features  uint64 // driver's
	highBits  bool   // the driver wrote a feature bit above 63
	setups    []QueueSetup
	queues    []*queue      // those enabled
	resetting chan struct{} // closed when the reset under way is done; nil: none
	paused    bool
	closed    bool

	// state is a leaf lock.
	state      sync.Mutex
	status     byte
	act        *activation // from DRIVER_OK to the end of the reset
	config     []byte      // what the driver sees
	base       []byte      // what the half said last
	generation uint32
	unread     bool // config changed since the driver last read of it
	torn       bool // the driver has read a change since it read the generation
	grumbles   limiter
}

// NewCore checks the half's Info and makes the eventfds of its queues.
func NewCore(cfg CoreConfig) (*Core, error) {
	if cfg.Device == nil || cfg.Memory == nil || cfg.Notifier == nil {
		return nil, fmt.Errorf("virtio device %s: device half, memory and notifier are required", cfg.Name)
	}
	info := cfg.Device.Info()
	if err := checkInfo(info); err != nil {
		return nil, fmt.Errorf("virtio device %s: %w", cfg.Name, err)
	}
	c := &Core{
		name: cfg.Name, dev: cfg.Device, mem: cfg.Memory, notifier: cfg.Notifier, log: cfg.Log,
		id: info.ID, offered: info.Features | transportFeatures,
		counts: make([]queueCounters, len(info.Queues)),
		config: slices.Clone(info.Config), base: slices.Clone(info.Config),
	}
	for i, q := range info.Queues {
		b, err := newBell(cfg.Name, i)
		if err != nil {
			return nil, errors.Join(err, c.closeBells())
		}
		c.bells = append(c.bells, b)
		c.setups = append(c.setups, QueueSetup{MaxSize: q.MaxSize, Size: q.MaxSize})
	}
	c.queues = make([]*queue, len(c.setups))
	return c, nil
}

func checkInfo(info Info) error {
	switch {
	case info.ID == 0 || info.ID > 0xFFFF-0x1040:
		return fmt.Errorf("device type %d is not 1 to %d", info.ID, 0xFFFF-0x1040)
	case info.Features&TransportFeatureMask != 0:
		return fmt.Errorf("device half offers feature bit %d, which is the transport half's", bits.TrailingZeros64(info.Features&TransportFeatureMask))
	case len(info.Queues) > MaxQueues:
		return fmt.Errorf("%d queues exceed %d", len(info.Queues), MaxQueues)
	case len(info.Config) > MaxConfigBytes:
		return fmt.Errorf("%d bytes of configuration space exceed %d", len(info.Config), MaxConfigBytes)
	}
	for i, q := range info.Queues {
		if q.MaxSize == 0 || q.MaxSize > MaxQueueSize || q.MaxSize&(q.MaxSize-1) != 0 {
			return fmt.Errorf("queue %d: size %d is not a power of two up to %d", i, q.MaxSize, MaxQueueSize)
		}
	}
	return nil
}

// ID is the device type.
func (c *Core) ID() DeviceID { return c.id }

// Queues is the number of virtqueues.
func (c *Core) Queues() int { return len(c.setups) }

// DoorbellFD is the eventfd of queue i, valid until Close.
func (c *Core) DoorbellFD(i int) int { return c.bells[i].fd }

// Notify passes on a driver's notification of queue i that arrived as an exit.
// An index without a queue is ignored.
func (c *Core) Notify(i uint32) {
	if i < uint32(len(c.bells)) {
		c.bells[i].kick()
	}
}

// Pause stops taking requests, quiesces the half and returns when nothing is
// outstanding. When ctx ends first, everything goes on and the error says what
// was outstanding. A driver may still write registers: what it starts, starts
// paused. A second Pause does nothing.
func (c *Core) Pause(ctx context.Context) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return fmt.Errorf("pause virtio device %s: %w", c.name, ErrClosed)
	}
	c.paused = true
	resetting := c.resetting
	act := c.current()
	c.mu.Unlock()
	var err error
	switch {
	case resetting != nil:
		select {
		case <-resetting:
		case <-ctx.Done():
			err = fmt.Errorf("reset under way: %w", context.Cause(ctx))
		}
	case act != nil:
		err = act.pause(ctx)
	}
	if err != nil {
		_ = c.Resume()
		return fmt.Errorf("pause virtio device %s: %w", c.name, err)
	}
	return nil
}

// Resume goes on after Pause, first with the requests that the half gave back.
// Without a Pause it does nothing.
func (c *Core) Resume() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("resume virtio device %s: %w", c.name, ErrClosed)
	}
	c.paused = false
	if act := c.current(); act != nil {
		act.resume()
	}
	return nil
}

// Reset resets the device as a driver's write of 0 to the status does, and waits
// for it, at most ResetWait.
func (c *Core) Reset() error { return c.await("reset", c.SetStatus(0)) }

// Close resets the half, joins the workers and closes the eventfds. A second
// Close does nothing. It fails when the half's Reset does not return.
func (c *Core) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	done := c.resetLocked()
	c.closed = true
	c.mu.Unlock()
	if err := c.await("close", done); err != nil {
		return err
	}
	return c.closeBells()
}

func (c *Core) await(op string, done <-chan struct{}) error {
	if done == nil {
		return nil
	}
	t := time.NewTimer(ResetWait)
	defer t.Stop()
	select {
	case <-done:
		return nil
	case <-t.C:
		return fmt.Errorf("%s virtio device %s: the device half's Reset has not returned after %v", op, c.name, ResetWait)
	}
}

func (c *Core) closeBells() error {
	var errs []error
	for _, b := range c.bells {
		errs = append(errs, b.close())
	}
	return errors.Join(errs...)
}

func (c *Core) current() *activation {
	c.state.Lock()
	defer c.state.Unlock()
	return c.act
}

// Stats is a snapshot of the counters.
func (c *Core) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Stats{
		Name: c.name, Status: c.Status(), Resets: c.resets.Load(), Broken: c.broken.Load(),
		ConfigInterrupts: c.configInterrupts.Load(),
	}
	for i := range c.counts {
		n, q := &c.counts[i], QueueStats{Kicks: c.bells[i].kicks()}
		q.Wakes, q.PollHits = n.wakes.Load(), n.pollHits.Load()
		q.Requests, q.Completed = n.requests.Load(), n.completed.Load()
		q.ReadBytes, q.WrittenBytes = n.readBytes.Load(), n.writtenBytes.Load()
		q.Interrupts = n.interrupts.Load()
		if live := c.queues[i]; live != nil {
			q.SizeDescs = live.size
			q.InFlight, q.Returned = live.load()
			q.InFlight += q.Returned
		}
		s.Queues = append(s.Queues, q)
	}
	return s
}
