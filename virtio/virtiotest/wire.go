package virtiotest

import (
	"encoding/gob"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/peervisor/peervisor/virtio"
)

// Wire is a device half whose other side is reached through a byte stream: it
// carries what a network session would, encoded, and nothing else. Requests go over as
// readable bytes and room; completions come back as used lengths and extents.
type Wire struct {
	tb   testing.TB
	info virtio.Info
	conn net.Conn
	wg   sync.WaitGroup

	sending sync.Mutex // guards enc; held while the pipe is full
	enc     *gob.Encoder

	mu      sync.Mutex // guards the rest; nothing that waits is called under it
	epoch   uint64
	channel virtio.Channel
	pending map[uint64]map[uint64]*virtio.Request // by queue, sequence
	acks    chan string

	// ExtentBytes counts what came back as extents' bytes.
	extentBytes int
}

type wireKind byte

const (
	wireActivate wireKind = iota + 1
	wireReset
	wireSubmit
	wireQuiesce
	wireWriteConfig
	wireAck
	wireComplete
	wireReturn
	wireConfig
	wireNeedsReset
)

type wireFrame struct {
	Kind     wireKind
	Epoch    uint64
	Queue    int
	Features uint64
	Sizes    []uint16
	Off      int
	Data     []byte
	Text     string
	Reqs     []wireReq
}

type wireReq struct {
	Seq      uint64
	Readable []byte
	Room     int
	Used     uint32
	Extents  []wireExtent
}

type wireExtent struct {
	Off, Len int
	Zero     bool
	Data     []byte
}

// NewWire connects to the half; both ends end with the test.
func NewWire(tb testing.TB, half virtio.Device) *Wire {
	near, far := net.Pipe()
	w := &Wire{tb: tb, info: half.Info(), conn: near, enc: gob.NewEncoder(near), acks: make(chan string)}
	s := &wireServer{half: half, enc: gob.NewEncoder(far)}
	w.wg.Add(2)
	go func() { defer w.wg.Done(); s.serve(tb, gob.NewDecoder(far)) }()
	go func() { defer w.wg.Done(); w.receive(gob.NewDecoder(near)) }()
	tb.Cleanup(func() { _ = near.Close(); _ = far.Close(); w.wg.Wait() })
	return w
}

// ExtentBytes is how many bytes of device-writable data crossed the wire.
func (w *Wire) ExtentBytes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.extentBytes
}

func (w *Wire) send(f wireFrame) {
	w.mu.Lock()
	f.Epoch = w.epoch
	w.mu.Unlock()
	w.sending.Lock()
	defer w.sending.Unlock()
	if err := w.enc.Encode(f); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		w.tb.Errorf("wire: %v", err)
	}
}

// Info implements virtio.Device.
func (w *Wire) Info() virtio.Info { return w.info }

// Activate implements virtio.Device.
func (w *Wire) Activate(a virtio.Activation) error {
	w.mu.Lock()
	w.epoch++
	w.channel, w.pending = a.Channel, map[uint64]map[uint64]*virtio.Request{}
	w.mu.Unlock()
	w.send(wireFrame{Kind: wireActivate, Features: a.Features, Sizes: a.QueueSizes})
	if text := <-w.acks; text != "" {
		return errors.New(text)
	}
	return nil
}

// WriteConfig implements virtio.Device.
func (w *Wire) WriteConfig(off int, p []byte) {
	w.send(wireFrame{Kind: wireWriteConfig, Off: off, Data: p})
}

// Submit implements virtio.Device.
func (w *Wire) Submit(queue int, reqs []*virtio.Request) {
	f := wireFrame{Kind: wireSubmit, Queue: queue}
	w.mu.Lock()
	m := w.pending[uint64(queue)]
	if m == nil {
		m = map[uint64]*virtio.Request{}
		w.pending[uint64(queue)] = m
	}
	for _, r := range reqs {
		p := make([]byte, r.ReadableLen())
		r.ReadAt(p, 0)
		f.Reqs = append(f.Reqs, wireReq{Seq: r.Seq, Readable: p, Room: r.WritableLen()})
		m[r.Seq] = r
	}
	w.mu.Unlock()
	w.send(f)
}

// Quiesce implements virtio.Device.
func (w *Wire) Quiesce(queue int) { w.send(wireFrame{Kind: wireQuiesce, Queue: queue}) }

// Reset implements virtio.Device: what comes late is of an older epoch.
func (w *Wire) Reset() {
	w.mu.Lock()
	w.epoch++
	w.pending = nil
	w.channel = nil
	w.mu.Unlock()
	w.send(wireFrame{Kind: wireReset})
	<-w.acks
}

func (w *Wire) receive(dec *gob.Decoder) {
	for {
		var f wireFrame
		if dec.Decode(&f) != nil {
			return
		}
		if f.Kind == wireAck {
			w.acks <- f.Text
			continue
		}
		w.mu.Lock()
		ch := w.channel
		if f.Epoch != w.epoch || ch == nil {
			w.mu.Unlock()
			continue
		}
		rs := make([]*virtio.Request, 0, len(f.Reqs))
		for _, x := range f.Reqs {
			r := w.pending[uint64(f.Queue)][x.Seq]
			delete(w.pending[uint64(f.Queue)], x.Seq)
			for _, e := range x.Extents {
				if e.Zero {
					r.Zero(e.Off, e.Len)
				} else {
					w.extentBytes += r.WriteAt(e.Data, e.Off)
				}
			}
			r.SetUsed(int(x.Used))
			rs = append(rs, r)
		}
		w.mu.Unlock()
		switch f.Kind {
		case wireComplete:
			ch.Complete(rs)
		case wireReturn:
			ch.Return(rs)
		case wireConfig:
			ch.ConfigChanged(f.Data)
		case wireNeedsReset:
			ch.NeedsReset(errors.New(f.Text))
		}
	}
}

// wireServer is the far side: the half sees it as its channel.
type wireServer struct {
	half virtio.Device

	mu   sync.Mutex
	enc  *gob.Encoder
	room map[*virtio.Request][]byte
}

// wireChannel is the channel of one activation.
type wireChannel struct {
	s     *wireServer
	epoch uint64
}

func (s *wireServer) send(f wireFrame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.enc.Encode(f) // a closed pipe ends the test's other side, too
}

func (s *wireServer) serve(tb testing.TB, dec *gob.Decoder) {
	for {
		var f wireFrame
		if dec.Decode(&f) != nil {
			return
		}
		ch := &wireChannel{s, f.Epoch}
		switch f.Kind {
		case wireActivate:
			s.room = map[*virtio.Request][]byte{}
			text := ""
			if err := s.half.Activate(virtio.Activation{Features: f.Features, QueueSizes: f.Sizes, Channel: ch}); err != nil {
				text = err.Error()
			}
			s.send(wireFrame{Kind: wireAck, Epoch: f.Epoch, Text: text})
		case wireReset:
			s.half.Reset()
			s.send(wireFrame{Kind: wireAck, Epoch: f.Epoch})
		case wireSubmit:
			s.half.Submit(f.Queue, s.requests(ch, f))
		case wireQuiesce:
			s.half.Quiesce(f.Queue)
		case wireWriteConfig:
			s.half.WriteConfig(f.Off, f.Data)
		default:
			tb.Errorf("wire: frame %d", f.Kind)
		}
	}
}

func (s *wireServer) requests(ch *wireChannel, f wireFrame) []*virtio.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	rs := make([]*virtio.Request, 0, len(f.Reqs))
	for _, x := range f.Reqs {
		r, room := &virtio.Request{}, make([]byte, x.Room)
		r.Init(ch, f.Queue, x.Seq, 0, [][]byte{x.Readable}, [][]byte{room})
		s.room[r] = room
		rs = append(rs, r)
	}
	return rs
}

func (c *wireChannel) end(kind wireKind, reqs []*virtio.Request) {
	if len(reqs) == 0 {
		return
	}
	f := wireFrame{Kind: kind, Epoch: c.epoch, Queue: reqs[0].Queue}
	c.s.mu.Lock()
	for _, r := range reqs {
		x := wireReq{Seq: r.Seq, Used: r.Used()}
		for _, e := range r.Extents() {
			we := wireExtent{Off: e.Off, Len: e.Len, Zero: e.Zero}
			if !e.Zero {
				we.Data = c.s.room[r][e.Off : e.Off+e.Len]
			}
			x.Extents = append(x.Extents, we)
		}
		delete(c.s.room, r)
		f.Reqs = append(f.Reqs, x)
	}
	c.s.mu.Unlock()
	c.s.send(f)
}

// Complete implements virtio.Channel, like the three below.
func (c *wireChannel) Complete(reqs []*virtio.Request) { c.end(wireComplete, reqs) }
func (c *wireChannel) Return(reqs []*virtio.Request)   { c.end(wireReturn, reqs) }
func (c *wireChannel) ConfigChanged(config []byte) {
	c.s.send(wireFrame{Kind: wireConfig, Epoch: c.epoch, Data: config})
}
func (c *wireChannel) NeedsReset(reason error) {
	c.s.send(wireFrame{Kind: wireNeedsReset, Epoch: c.epoch, Text: reason.Error()})
}
