package rng

import (
	"crypto/rand"
	"fmt"
	"io"
	"math/bits"
	"time"

	"github.com/peervisor/peervisor/virtio"
)

// Config says where the entropy comes from and how much of it there is.
type Config struct {
	// Source gives the random bytes; nil means crypto/rand. Read is called from one
	// goroutine and may block; Close waits for it. It is borrowed: the owner closes it.
	Source io.Reader
	// MaxBytes bounds what one request gets, 1..1 MiB; 0 means 64 KiB.
	MaxBytes int
	// BytesPerSecond limits the rate over time; 0 means no limit.
	BytesPerSecond int64
	// BurstBytes is how much can be had at once after a pause, with a limit only;
	// 0 means what one second allows, and at least 1.
	BurstBytes int64
	// QueueSize in descriptors, a power of two, 1..32768; 0 means 64.
	QueueSize int
	// Report, if set, is told when Source failed. It is called from any goroutine,
	// with no lock held, and must not block.
	Report func(error)
	// Clock measures the rate; nil means real time.
	Clock Clock
}

// Clock is the time that a rate limit needs.
type Clock interface {
	Now() time.Time
	// After sends once, when d has passed.
	After(d time.Duration) <-chan time.Time
}

type realClock struct{}

func (realClock) Now() time.Time                         { return time.Now() }
func (realClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

const (
	defMaxBytes  = 64 << 10
	topMaxBytes  = 1 << 20
	defQueueSize = 64
)

func (c *Config) fill() error {
	if c.Source == nil {
		c.Source = rand.Reader
	}
	if c.Clock == nil {
		c.Clock = realClock{}
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = defMaxBytes
	}
	if c.QueueSize == 0 {
		c.QueueSize = defQueueSize
	}
	if c.BurstBytes == 0 {
		c.BurstBytes = max(c.BytesPerSecond, 1)
	}
	switch {
	case c.MaxBytes < 1 || c.MaxBytes > topMaxBytes:
		return fmt.Errorf("rng: at most %d bytes a request, expected 1..%d", c.MaxBytes, topMaxBytes)
	case c.BytesPerSecond < 0 || c.BytesPerSecond > 1<<40 || c.BurstBytes < 0 || c.BurstBytes > 1<<40:
		return fmt.Errorf("rng: rate of %d bytes a second with bursts of %d, expected 0..2^40", c.BytesPerSecond, c.BurstBytes)
	case c.QueueSize < 1 || c.QueueSize > virtio.MaxQueueSize || bits.OnesCount(uint(c.QueueSize)) != 1:
		return fmt.Errorf("rng: queue size %d, expected a power of two, 1..%d", c.QueueSize, virtio.MaxQueueSize)
	}
	return nil
}

// bucket is the allowance of a rate limit. It starts full.
type bucket struct {
	perSecond, burst int64 // bytes; perSecond 0: no limit
	have             int64
	at               time.Time
}

// take allows 1..want bytes now, or says after which time to ask again.
func (b *bucket) take(now time.Time, want int64) (int64, time.Duration) {
	if b.perSecond == 0 {
		return want, 0
	}
	if b.at.IsZero() {
		b.have, b.at = b.burst, now
	}
	if d := now.Sub(b.at); d > 0 {
		// Whole bytes only, and the time that made them: no rounding is lost. A pause
		// that fills the bucket is cut so that nothing overflows.
		full := time.Duration(float64(b.burst-b.have+1) / float64(b.perSecond) * float64(time.Second))
		if d > full {
			b.have, b.at = b.burst, now
		} else if n := int64(float64(b.perSecond) * d.Seconds()); n > 0 {
			b.have = min(b.burst, b.have+n)
			b.at = b.at.Add(time.Duration(float64(n) / float64(b.perSecond) * float64(time.Second)))
		}
	}
	if b.have > 0 {
		n := min(want, b.have)
		b.have -= n
		return n, 0
	}
	// Wait for a worthwhile piece: what is wanted, the burst, or 50 ms.
	n := max(1, min(want, b.burst, b.perSecond/20))
	return 0, time.Duration(float64(n)/float64(b.perSecond)*float64(time.Second)) + time.Microsecond
}
