package virtio

import (
	"errors"
	"fmt"
	"slices"
)

// ErrNotPaused is wrapped by State of a device that may still change it.
var ErrNotPaused = errors.New("virtio device is not paused")

// State is the modelled device behind a transport's registers: all that a driver could
// tell apart, and nothing of how this package works. Requests that the half gave back
// at the pause are part of it; there are no others.
type State struct {
	// Status is the device status register.
	Status byte
	// Features is what the driver wrote; HighFeatures that it wrote a bit above 63,
	// which no device offers.
	Features     uint64
	HighFeatures bool
	// Config is what the driver sees of the configuration space, HalfConfig what the half said
	// last: the difference is the driver's writes, which a reset undoes.
	Config, HalfConfig []byte
	// Generation is the value that the generation register had last; Unread and Torn
	// say whether the next read of the configuration, and of it, notices a change.
	Generation   uint32
	Unread, Torn bool
	Queues       []QueueState
}

// QueueState is one virtqueue of a State. The fields after Setup are 0 where it is not enabled
// or the device is not live.
type QueueState struct {
	Setup QueueSetup
	// NextAvail is the index of the next available entry to take, UsedIdx of the
	// next used entry to write.
	NextAvail, UsedIdx uint16
	// Signalled is UsedIdx when used_event was last looked at (EVENT_IDX).
	Signalled uint16
	// NextSeq is the sequence number of the next request to take.
	NextSeq uint64
	// Stopped says that the driver took the queue back (MMIO).
	Stopped bool
	// Returned are the requests taken but not used, by their sequence numbers.
	Returned []ReturnedRequest
}

// ReturnedRequest names a request by its sequence number and its chain's head.
type ReturnedRequest struct {
	Seq  uint64
	Head uint16
}

// State is a copy of the modelled device's state. The device must be paused, with no
// reset under way, and stay so until the caller is done with the copy.
func (c *Core) State() (State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.paused || c.resetting != nil || c.closed {
		return State{}, fmt.Errorf("state of virtio device %s: %w", c.name, ErrNotPaused)
	}
	act := c.current()
	s := State{Features: c.features, HighFeatures: c.highBits}
	for i, setup := range c.setups {
		qs := QueueState{Setup: setup}
		if q := c.queues[i]; q != nil && act != nil {
			var err error
			if qs, err = q.state(setup); err != nil {
				return State{}, fmt.Errorf("state of virtio device %s queue %d: %w", c.name, i, err)
			}
			qs.Stopped = act.workers[i] != nil && act.workers[i].stopping.Load()
		}
		s.Queues = append(s.Queues, qs)
	}
	c.state.Lock()
	defer c.state.Unlock()
	s.Status, s.Generation, s.Unread, s.Torn = c.status, c.generation, c.unread, c.torn
	s.Config, s.HalfConfig = slices.Clone(c.config), slices.Clone(c.base)
	return s, nil
}

// state describes a queue whose worker is parked.
func (q *queue) state(setup QueueSetup) (QueueState, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.out > 0 {
		return QueueState{}, fmt.Errorf("%d requests are with the device half: %w", q.out, ErrNotPaused)
	}
	s := QueueState{Setup: setup, NextAvail: q.next, UsedIdx: q.usedIdx, Signalled: q.signalled, NextSeq: q.nextSeq}
	for _, r := range q.back {
		s.Returned = append(s.Returned, ReturnedRequest{Seq: r.Seq, Head: uint16(r.Token)})
	}
	slices.SortFunc(s.Returned, func(a, b ReturnedRequest) int { return int(int64(a.Seq - b.Seq)) })
	return s, nil
}
