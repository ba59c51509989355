package guest

import (
	"io"
	"sync"
)

// pipe is a bounded byte pipe in memory: unlike io.Pipe it lets the writer run
// ahead, so that two goroutines exchange large pieces and few wake-ups.
type pipe struct {
	mu     sync.Mutex
	cond   sync.Cond // one for both sides: there is one reader and one writer
	buf    []byte    // ring, allocated at the first write
	max    int
	r, n   int // read position, bytes held
	eof    bool
	closed bool
}

func newPipe(max int) *pipe {
	p := &pipe{max: max}
	p.cond.L = &p.mu
	return p
}

// Write waits for room and appends all of b. After CloseWrite or Close the rest
// is dropped with io.ErrClosedPipe.
func (p *pipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.buf == nil {
		p.buf = make([]byte, p.max)
	}
	done := 0
	for done < len(b) {
		for p.n == p.max && !p.eof && !p.closed {
			p.cond.Wait()
		}
		if p.eof || p.closed {
			return done, io.ErrClosedPipe
		}
		w := (p.r + p.n) % p.max
		k := copy(p.buf[w:min(p.max, w+p.max-p.n)], b[done:])
		if p.n == 0 {
			p.cond.Broadcast()
		}
		p.n += k
		done += k
	}
	return done, nil
}

// Read waits for bytes; io.EOF after CloseWrite when all are read, or after Close.
func (p *pipe) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.n == 0 && !p.eof && !p.closed {
		p.cond.Wait()
	}
	if p.closed || p.n == 0 {
		return 0, io.EOF
	}
	done := 0
	for done < len(b) && p.n > 0 {
		k := copy(b[done:], p.buf[p.r:min(p.max, p.r+p.n)])
		if p.n == p.max {
			p.cond.Broadcast()
		}
		p.r = (p.r + k) % p.max
		p.n -= k
		done += k
	}
	return done, nil
}

// CloseWrite ends the stream after what was written.
func (p *pipe) CloseWrite() {
	p.mu.Lock()
	p.eof = true
	p.cond.Broadcast()
	p.mu.Unlock()
}

// Close ends it at once on both sides.
func (p *pipe) Close() error {
	p.mu.Lock()
	p.closed = true
	p.buf, p.n = nil, 0
	p.cond.Broadcast()
	p.mu.Unlock()
	return nil
}
