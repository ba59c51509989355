package virtio

import (
	"sync"
	"time"
)

// Bounds of the log lines that one driver can cause.
const (
	limitBurst    = 10
	limitInterval = 10 * time.Second
)

// limiter is a token bucket: limitBurst at first, one more each limitInterval.
type limiter struct {
	mu    sync.Mutex
	spent int
	since time.Time
}

func (l *limiter) allow(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if back := int(now.Sub(l.since) / limitInterval); back > 0 {
		l.spent = max(0, l.spent-back)
		l.since = now
	}
	if l.spent >= limitBurst {
		return false
	}
	l.spent++
	return true
}
