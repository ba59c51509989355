package console

import "github.com/peervisor/peervisor/virtio"

// ring is a bounded byte queue. The producer reserves a piece, fills it with no
// lock held, and commits it; the consumer looks at a piece, uses it with no
// lock held, and drops it. All calls are under the port's lock.
//
//	0 <= r < size, 0 <= n <= size, bytes [r, r+n) modulo size are in it
type ring struct {
	buf  []byte // nil until first used
	size int
	r, n int
}

func (g *ring) free() int { return g.size - g.n }

// reserve borrows the next piece to fill, empty if there is no room. An empty
// ring starts over, so that a stream that is kept up with touches few pages.
func (g *ring) reserve() []byte {
	if g.buf == nil {
		g.buf = make([]byte, g.size)
	}
	if g.n == 0 {
		g.r = 0
	}
	w := g.r + g.n
	if w >= g.size {
		w -= g.size
		return g.buf[w:g.r]
	}
	return g.buf[w:g.size]
}

func (g *ring) commit(n int) { g.n += n }

// peek borrows the next piece to use.
func (g *ring) peek() []byte {
	if g.n == 0 {
		return nil
	}
	return g.buf[g.r:min(g.r+g.n, g.size)]
}

func (g *ring) drop(n int) {
	g.n -= n
	if g.r += n; g.r >= g.size {
		g.r -= g.size
	}
}

// put appends as much of p as there is room for.
func (g *ring) put(p []byte) int {
	done := 0
	for done < len(p) {
		n := copy(g.reserve(), p[done:])
		if n == 0 {
			break
		}
		g.commit(n)
		done += n
	}
	return done
}

// bytes returns a copy of the content.
func (g *ring) bytes() []byte {
	if g.n == 0 {
		return nil
	}
	out := append([]byte(nil), g.peek()...)
	return append(out, g.buf[:g.n-len(out)]...)
}

// fifo is a queue of requests that allocates nothing once it has grown to the
// size of its virtqueue.
type fifo struct {
	q    []*virtio.Request
	head int
}

func (f *fifo) len() int { return len(f.q) - f.head }

func (f *fifo) push(r *virtio.Request) {
	if f.head > 0 && len(f.q) == cap(f.q) {
		n := copy(f.q, f.q[f.head:])
		clear(f.q[n:])
		f.q, f.head = f.q[:n], 0
	}
	f.q = append(f.q, r)
}

func (f *fifo) front() *virtio.Request { return f.q[f.head] }

func (f *fifo) pop() *virtio.Request {
	r := f.q[f.head]
	f.q[f.head] = nil
	if f.head++; f.head == len(f.q) {
		f.q, f.head = f.q[:0], 0
	}
	return r
}

// take empties the queue and returns what was in it.
func (f *fifo) take() []*virtio.Request {
	out := f.q[f.head:]
	*f = fifo{}
	return out
}
