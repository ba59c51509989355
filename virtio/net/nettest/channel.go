package nettest

import (
	"sync"
	"testing"
	"time"

	"github.com/peervisor/peervisor/virtio"
)

// deadline bounds every wait of a test.
const deadline = 20 * time.Second

// Channel stands for the transport half: it makes requests and collects how
// they ended, in order.
type Channel struct {
	t testing.TB

	mu        sync.Mutex
	cond      *sync.Cond
	seq       [8]uint64
	completed [8][][]*virtio.Request // by queue: one element a call
	returned  [8][]*virtio.Request
	configs   [][]byte
	broken    []error
}

// NewChannel makes a channel that fails t if a wait takes too long.
func NewChannel(t testing.TB) *Channel {
	c := &Channel{t: t}
	c.cond = sync.NewCond(&c.mu)
	return c
}

// Request makes the next request of a queue.
func (c *Channel) Request(queue int, readable, writable [][]byte) *virtio.Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &virtio.Request{}
	r.Init(c, queue, c.seq[queue], 0, readable, writable)
	c.seq[queue]++
	return r
}

// Complete implements virtio.Channel.
func (c *Channel) Complete(reqs []*virtio.Request) {
	if len(reqs) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	q := reqs[0].Queue
	c.completed[q] = append(c.completed[q], append([]*virtio.Request(nil), reqs...))
	c.cond.Broadcast()
}

// Return implements virtio.Channel.
func (c *Channel) Return(reqs []*virtio.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range reqs {
		c.returned[r.Queue] = append(c.returned[r.Queue], r)
	}
	c.cond.Broadcast()
}

// ConfigChanged implements virtio.Channel.
func (c *Channel) ConfigChanged(config []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.configs = append(c.configs, append([]byte(nil), config...))
	c.cond.Broadcast()
}

// NeedsReset implements virtio.Channel.
func (c *Channel) NeedsReset(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = append(c.broken, reason)
	c.cond.Broadcast()
}

// wait blocks until ok holds, with c.mu held in ok.
func (c *Channel) wait(what string, ok func() bool) {
	c.t.Helper()
	expired := false
	t := time.AfterFunc(deadline, func() {
		c.mu.Lock()
		expired = true
		c.mu.Unlock()
		c.cond.Broadcast()
	})
	defer t.Stop()
	for !ok() {
		if expired {
			c.t.Fatalf("no %s within %v", what, deadline)
		}
		c.cond.Wait()
	}
}

// WaitCompleted waits for n completed requests of the queue and takes them, as
// the calls that completed them.
func (c *Channel) WaitCompleted(queue, n int) [][]*virtio.Request {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wait("completion", func() bool {
		k := 0
		for _, call := range c.completed[queue] {
			k += len(call)
		}
		return k >= n
	})
	out := c.completed[queue]
	c.completed[queue] = nil
	return out
}

// TakeReturned takes the returned requests of the queue.
func (c *Channel) TakeReturned(queue int) []*virtio.Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.returned[queue]
	c.returned[queue] = nil
	return out
}

// WaitConfig waits for a configuration push and takes the newest.
func (c *Channel) WaitConfig() []byte {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wait("configuration change", func() bool { return len(c.configs) > 0 })
	out := c.configs[len(c.configs)-1]
	c.configs = nil
	return out
}

// WaitBroken waits for NeedsReset and returns its reason.
func (c *Channel) WaitBroken() error {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wait("NeedsReset", func() bool { return len(c.broken) > 0 })
	return c.broken[0]
}
