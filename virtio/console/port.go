package console

import (
	"io"
	"sync"
	"time"

	"github.com/peervisor/peervisor/virtio"
)

const (
	// One call of Complete publishes at most so many receive buffers.
	maxBatch = 64
	// The reader goes on when so much of the ring is free, as a fraction of it, and
	// one Write takes at most that much, so that neither side waits for all of the other.
	roomFraction = 4
)

// port is one port with its two streams.
//
//	In ─► reader goroutine ─► in ring ─► pumpIn ─► receive requests
//	transmit requests ─► accept ─► out ring ─► writer goroutine ─► Out
//
// pumpIn runs on the goroutine that brought data or requests, one at a time:
// who finds it running leaves a note. So receive buffers are completed in the order
// in which they were filled.
type port struct {
	d   *Device
	id  int
	cfg Port

	mu      sync.Mutex
	present bool           // plugged
	removed bool           // unplugged; an id is not used again
	channel virtio.Channel // nil while idle
	room    sync.Cond      // the in ring has room, or closing
	data    sync.Cond      // the out ring has data, or closing
	idle    sync.Cond      // pumping, completing or the out ring changed

	// Input.
	in       ring
	rx       fifo // posted receive buffers
	reading  bool // the reader was started
	ended    bool // In is at its end
	pumping  bool
	again    bool
	batch    []*virtio.Request // pumpIn's
	accepted []*virtio.Request // the writer's

	// Output.
	out        ring
	tx         fifo   // requests for which there is no room
	txSeq      uint64 // request that was accepted in part: its bytes before txOff
	txOff      int    // > 0 only for a request larger than the ring
	writing    bool   // the writer was started
	discard    bool   // no Out, or it failed
	completing int    // goroutines in Channel.Complete for tx

	closing bool

	control portState
}

func newPort(d *Device, id int) *port {
	p := &port{d: d, id: id}
	p.room.L, p.data.L, p.idle.L = &p.mu, &p.mu, &p.mu
	p.in.size, p.out.size = d.cfg.BufferBytes, d.cfg.BufferBytes
	p.discard = true
	return p
}

// plugLocked gives the port its streams.
func (p *port) plugLocked(cfg Port) {
	p.cfg, p.present, p.discard = cfg, true, cfg.Out == nil
	p.control.cols, p.control.rows = p.d.cfg.Cols, p.d.cfg.Rows
}

func (p *port) event(kind EventKind, err error) {
	if p.d.cfg.Events != nil {
		p.d.cfg.Events(Event{Port: p.id, Name: p.cfg.Name, Kind: kind, Err: err})
	}
}

// activate starts the half of the port. The reader lives until In ends.
func (p *port) activate(ch virtio.Channel, multiport bool) {
	p.mu.Lock()
	p.channel = ch
	if !multiport && p.id == 0 {
		p.control.guestOpen = true
	}
	p.startReaderLocked()
	p.startWriterLocked()
	p.mu.Unlock()
	p.pumpIn()
}

func (p *port) startReaderLocked() {
	if p.present && p.cfg.In != nil && !p.reading && !p.closing && !p.removed {
		p.reading = true
		p.d.wg.Add(1)
		go p.read()
	}
}

// read is the reader goroutine.
func (p *port) read() {
	defer p.d.wg.Done()
	for {
		p.mu.Lock()
		for !p.closing && p.in.n > 0 && p.in.free() < p.in.size/roomFraction {
			p.room.Wait()
		}
		if p.closing {
			p.mu.Unlock()
			return
		}
		piece := p.in.reserve()
		p.mu.Unlock()
		n, err := p.cfg.In.Read(piece)
		p.mu.Lock()
		p.in.commit(n)
		p.ended = err != nil
		closing := p.closing
		p.mu.Unlock()
		if n > 0 || err != nil {
			p.pumpIn()
		}
		if err != nil {
			if !closing {
				p.event(InputEnded, err)
			}
			return
		}
	}
}

// pumpIn moves input to receive requests as long as there are both.
func (p *port) pumpIn() {
	p.mu.Lock()
	p.again = true
	if p.pumping {
		p.mu.Unlock()
		return
	}
	p.pumping = true
	for p.again {
		p.again = false
		for p.fillLocked() {
			ch, batch := p.channel, p.batch
			p.mu.Unlock()
			ch.Complete(batch)
			p.mu.Lock()
		}
	}
	p.pumping = false
	p.idle.Broadcast()
	news := p.noteOpenLocked()
	p.mu.Unlock()
	if news {
		p.d.pumpControl()
	}
}

// fillLocked fills the next batch of receive requests.
func (p *port) fillLocked() bool {
	clear(p.batch)
	p.batch = p.batch[:0]
	if p.channel == nil || !p.control.guestOpen || p.removed {
		return false
	}
	for p.in.n > 0 && p.rx.len() > 0 && len(p.batch) < maxBatch {
		r := p.rx.pop()
		at, room := 0, r.WritableLen()
		for at < room && p.in.n > 0 {
			n := r.WriteAt(p.in.peek()[:min(len(p.in.peek()), room-at)], at)
			p.in.drop(n)
			at += n
		}
		r.SetUsed(at)
		p.batch = append(p.batch, r)
	}
	if p.in.free() >= p.in.size/roomFraction {
		p.room.Signal()
	}
	return len(p.batch) > 0
}

// post takes receive buffers of the driver.
func (p *port) post(reqs []*virtio.Request) {
	p.mu.Lock()
	for _, r := range reqs {
		p.rx.push(r)
	}
	p.mu.Unlock()
	p.pumpIn()
}

// send takes output of the driver.
func (p *port) send(reqs []*virtio.Request) {
	p.mu.Lock()
	waiting := p.tx.len() > 0
	done := 0
	if !waiting {
		for done < len(reqs) && p.acceptLocked(reqs[done]) {
			done++
		}
	}
	for _, r := range reqs[done:] {
		p.tx.push(r)
	}
	ch := p.channel
	p.startWriterLocked()
	p.mu.Unlock()
	if done > 0 {
		ch.Complete(reqs[:done])
	}
}

// acceptLocked copies a request to the out ring, if all of it has room. Only a
// request that is larger than the ring goes in piece by piece, and how far it
// came is kept by its sequence number, so that it goes on there when it was returned
// and handed in again.
func (p *port) acceptLocked(r *virtio.Request) bool {
	off, size := 0, r.ReadableLen()
	if p.txOff > 0 && p.txSeq == r.Seq {
		off = p.txOff
	}
	r.SetUsed(0)
	if p.discard {
		p.txOff = 0
		return true
	}
	if size <= p.out.size && size-off > p.out.free() {
		return false
	}
	for off < size {
		n := r.ReadAt(p.out.reserve(), off)
		if n == 0 {
			p.txSeq, p.txOff = r.Seq, off
			return false
		}
		p.out.commit(n)
		off += n
	}
	p.txOff = 0
	return true
}

// startWriterLocked wakes the writer goroutine, and makes it first if need be.
func (p *port) startWriterLocked() {
	if p.out.n == 0 || p.closing {
		return
	}
	if p.writing {
		p.data.Signal()
		return
	}
	p.writing = true
	p.d.wg.Add(1)
	go p.write()
}

// write is the writer goroutine.
func (p *port) write() {
	defer p.d.wg.Done()
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for p.out.n == 0 && !p.closing {
			p.data.Wait()
		}
		if p.closing {
			return
		}
		piece := p.out.peek()
		piece = piece[:min(len(piece), p.out.size/roomFraction)]
		p.mu.Unlock()
		n, err := p.cfg.Out.Write(piece)
		if err == nil && n < len(piece) {
			err = io.ErrShortWrite
		}
		p.mu.Lock()
		if err != nil {
			p.discard = true
			if !p.closing { // else Close counts what is left
				n = p.out.n
			}
		}
		p.out.drop(n)
		p.idle.Broadcast()
		if err != nil && !p.closing {
			p.mu.Unlock()
			p.event(OutputFailed, err)
			p.mu.Lock()
		}
		p.acceptWaitingLocked()
	}
}

// acceptWaitingLocked takes requests that waited for room. It gives up the lock
// to complete them.
func (p *port) acceptWaitingLocked() {
	if p.channel == nil {
		return
	}
	done := p.accepted[:0]
	for p.tx.len() > 0 && p.acceptLocked(p.tx.front()) {
		done = append(done, p.tx.pop())
	}
	if p.accepted = done; len(done) == 0 {
		return
	}
	ch := p.channel
	p.completing++
	p.mu.Unlock()
	ch.Complete(done)
	p.mu.Lock()
	p.completing--
	clear(done)
	p.idle.Broadcast()
}

// quiesce returns what waits in one direction.
func (p *port) quiesce(transmit bool) {
	p.mu.Lock()
	var reqs []*virtio.Request
	if transmit {
		reqs = p.tx.take()
	} else {
		reqs = p.rx.take()
	}
	ch := p.channel
	p.mu.Unlock()
	if len(reqs) > 0 {
		ch.Return(reqs)
	}
}

// reset forgets the driver. The rings stay: what was read and not delivered
// goes to the next driver, what was accepted is still written. It waits for calls into the
// channel, never for In or Out.
func (p *port) reset() {
	p.mu.Lock()
	p.rx.take()
	p.tx.take()
	p.txOff = 0
	opened := p.control.guestOpen
	p.control = portState{cols: p.control.cols, rows: p.control.rows}
	for p.pumping || p.completing > 0 {
		p.idle.Wait()
	}
	p.channel = nil
	p.mu.Unlock()
	if opened {
		p.event(GuestClosed, nil)
	}
}

// close makes the goroutines end as soon as In and Out let them.
func (p *port) close() {
	p.mu.Lock()
	p.closing = true
	p.room.Broadcast()
	p.data.Broadcast()
	p.idle.Broadcast()
	in, out := p.cfg.In, p.cfg.Out
	reading, writing := p.reading && !p.ended, p.writing
	p.mu.Unlock()
	// Pipes, sockets and the like can be told; a failure only means that they cannot.
	if f, ok := in.(interface{ SetReadDeadline(time.Time) error }); ok && reading {
		_ = f.SetReadDeadline(time.Unix(1, 0))
	}
	if f, ok := out.(interface{ SetWriteDeadline(time.Time) error }); ok && writing {
		_ = f.SetWriteDeadline(time.Unix(1, 0))
	}
}

// unwritten is how many accepted bytes are left when the goroutines have ended.
func (p *port) unwritten() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.n
}
