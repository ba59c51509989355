package guest

import (
	"encoding/json"
	"errors"
	"io"
	"sync"
	"time"
)

const (
	hubBacklogBytes = 64 << 10 // what a late client is shown first
	hubInputBytes   = 256 << 10
	hubQueueFrames  = 256              // behind by more than this, a guest's spectator is put out
	ownerWait       = 30 * time.Second // for the owner of a foreground guest to attach
)

// hub joins the guest's session (its command, or its console) with the clients
// that are attached to it. At most one of them is the owner: a foreground
// `run`, whose input ends the session's input, whose slowness slows the guest,
// and whose death ends the guest. Others see the same output and may type.
//
//	session ──Output──► backlog, log, clients        clients ──frames──► input ──► session
type hub struct {
	onResize    func(Winsize)
	onSignal    func(int)
	onOwnerLost func()
	input       *pipe

	mu        sync.Mutex
	clients   map[*hubClient]struct{}
	backlog   []byte
	owned     bool          // an owner is expected or there
	ownerHere chan struct{} // closed when the owner attached or is no longer awaited
	exit      *Exit
}

type hubClient struct {
	owner bool
	out   chan hubFrame
	gone  chan struct{} // closed when the client's connection ended
	once  sync.Once
}

type hubFrame struct {
	t frameType
	p []byte
}

func (c *hubClient) leave() { c.once.Do(func() { close(c.gone) }) }

func newHub(owned bool) *hub {
	h := &hub{clients: map[*hubClient]struct{}{}, owned: owned, ownerHere: make(chan struct{}), input: newPipe(hubInputBytes)}
	if !owned {
		close(h.ownerHere)
	}
	return h
}

// stream returns a writer for one of the session's outputs.
func (h *hub) stream(t frameType) io.Writer { return hubStream{h, t} }

type hubStream struct {
	h *hub
	t frameType
}

func (s hubStream) Write(p []byte) (int, error) {
	h := s.h
	<-h.ownerHere
	for rest := p; len(rest) > 0; {
		n := min(len(rest), maxFrameBytes)
		h.send(hubFrame{s.t, append([]byte(nil), rest[:n]...)})
		rest = rest[n:]
	}
	return len(p), nil
}

// send hands f to every client: waiting for the owner, dropping others that lag.
func (h *hub) send(f hubFrame) {
	h.mu.Lock()
	h.backlog = append(h.backlog, f.p...)
	if over := len(h.backlog) - hubBacklogBytes; over > 0 {
		h.backlog = append(h.backlog[:0], h.backlog[over:]...)
	}
	var owner *hubClient
	for c := range h.clients {
		if c.owner {
			owner = c
			continue
		}
		select {
		case c.out <- f:
		default:
			delete(h.clients, c)
			c.leave()
		}
	}
	h.mu.Unlock()
	if owner != nil {
		select {
		case owner.out <- f:
		case <-owner.gone:
		}
	}
}

// awaitOwner gives the owner a bounded time to attach.
func (h *hub) awaitOwner() {
	t := time.NewTimer(ownerWait)
	defer t.Stop()
	select {
	case <-h.ownerHere:
	case <-t.C:
		h.onOwnerLost()
		h.freeOutput()
	}
}

func (h *hub) freeOutput() {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.ownerHere:
	default:
		close(h.ownerHere)
	}
}

var errHasOwner = errors.New("guest already has a foreground terminal")

// attach adds a client; the backlog is the first that it gets.
func (h *hub) attach(owner bool) (*hubClient, error) {
	h.mu.Lock()
	c := &hubClient{owner: owner, out: make(chan hubFrame, hubQueueFrames), gone: make(chan struct{})}
	if owner {
		if !h.owned {
			h.mu.Unlock()
			return nil, errHasOwner
		}
		for o := range h.clients {
			if o.owner {
				h.mu.Unlock()
				return nil, errHasOwner
			}
		}
	}
	if len(h.backlog) > 0 {
		c.out <- hubFrame{frameStdout, append([]byte(nil), h.backlog...)}
	}
	if h.exit != nil {
		close(c.out)
		h.mu.Unlock()
		return c, nil
	}
	h.clients[c] = struct{}{}
	h.mu.Unlock()
	if owner {
		h.freeOutput()
	}
	return c, nil
}

// serve runs one client's connection until either side ends it.
func (h *hub) serve(conn io.ReadWriteCloser, owner bool) error {
	c, err := h.attach(owner)
	if err != nil {
		return err
	}
	fw := &frameWriter{w: conn}
	writerDone := make(chan struct{})
	go func() { // joined below
		defer close(writerDone)
		defer conn.Close()
		for {
			select {
			case f, ok := <-c.out:
				if !ok {
					_ = fw.writeJSON(frameExit, h.exitNow())
					return
				}
				if fw.write(f.t, f.p) != nil {
					return
				}
			case <-c.gone:
				_ = fw.write(frameDetach, nil)
				return
			}
		}
	}()
	detached := h.readClient(&frameReader{r: conn}, c)
	h.mu.Lock()
	_, still := h.clients[c]
	delete(h.clients, c)
	ended := h.exit != nil
	if owner && detached {
		h.owned = false
	}
	h.mu.Unlock()
	if !ended {
		c.leave()
	}
	<-writerDone
	c.leave()
	if owner && !detached && !ended && still {
		h.onOwnerLost()
	}
	return nil
}

// readClient handles a client's frames until its connection ends; true if it
// said that it leaves.
func (h *hub) readClient(fr *frameReader, c *hubClient) bool {
	for {
		t, p, err := fr.read()
		if err != nil {
			return false
		}
		switch t {
		case frameStdin:
			_, _ = h.input.Write(p) // after its end, input is dropped
		case frameEOF:
			if c.owner {
				h.input.CloseWrite()
			}
		case frameResize:
			var ws Winsize
			if json.Unmarshal(p, &ws) == nil && ws.Rows > 0 && ws.Cols > 0 && ws.Rows < 1<<15 && ws.Cols < 1<<15 {
				h.onResize(ws)
			}
		case frameSignal:
			var s signalMsg
			if json.Unmarshal(p, &s) == nil && s.Signal > 0 && s.Signal < 65 {
				h.onSignal(s.Signal)
			}
		case frameDetach:
			return true
		}
	}
}

func (h *hub) exitNow() *Exit {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.exit
}

// end tells all clients how the guest ended, after all output.
func (h *hub) end(e *Exit) {
	h.mu.Lock()
	if h.exit != nil {
		h.mu.Unlock()
		return
	}
	h.exit = e
	clients := h.clients
	h.clients = map[*hubClient]struct{}{}
	h.mu.Unlock()
	for c := range clients {
		close(c.out)
	}
	h.freeOutput()
	_ = h.input.Close()
}
