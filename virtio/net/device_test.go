package net_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/net"
	"github.com/peervisor/peervisor/virtio/net/nettest"
)

const allOffloads = net.TxChecksum | net.TxTSO4 | net.TxTSO6 | net.TxECN | net.RxChecksum | net.RxTSO4 | net.RxTSO6 | net.RxECN

func bit(n int) uint64 { return 1 << n }

// rig is a device half between a backend and a channel in memory.
type rig struct {
	t   testing.TB
	dev *net.Device
	be  *nettest.Backend
	ch  *nettest.Channel
	mem map[*virtio.Request][]byte // what a request's buffer is
}

func newRig(t testing.TB, features uint64, cfg net.Config) *rig {
	t.Helper()
	be := &nettest.Backend{Can: allOffloads}
	cfg.Backend = be
	if cfg.MAC == nil {
		cfg.MAC = []byte{0x52, 0x54, 0, 1, 2, 3}
	}
	dev, err := net.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dev: dev, be: be, ch: nettest.NewChannel(t), mem: map[*virtio.Request][]byte{}}
	t.Cleanup(dev.Reset)
	r.activate(features)
	return r
}

func (r *rig) activate(features uint64) {
	r.t.Helper()
	err := r.dev.Activate(virtio.Activation{Features: features, QueueSizes: []uint16{512, 512, 16}, Channel: r.ch})
	if err != nil {
		r.t.Fatal(err)
	}
}

// post submits receive buffers of the given sizes.
func (r *rig) post(sizes ...int) []*virtio.Request {
	var reqs []*virtio.Request
	for _, n := range sizes {
		b := make([]byte, n)
		q := r.ch.Request(0, nil, [][]byte{b})
		r.mem[q] = b
		reqs = append(reqs, q)
	}
	r.dev.Submit(0, reqs)
	return reqs
}

func (r *rig) send(h net.Header, frame []byte) {
	r.dev.Submit(1, []*virtio.Request{r.ch.Request(1, [][]byte{h, frame}, nil)})
	r.ch.WaitCompleted(1, 1)
}

func header() net.Header { return make(net.Header, net.HeaderBytes) }

func frameOf(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return b
}

// joined is what the driver sees of a frame, and its header.
func (r *rig) joined(reqs []*virtio.Request) (net.Header, []byte) {
	var b []byte
	for _, q := range reqs {
		b = append(b, r.mem[q][:q.Used()]...)
	}
	if len(b) < net.HeaderBytes {
		r.t.Fatalf("received %d bytes, less than a header", len(b))
	}
	return net.Header(b[:net.HeaderBytes]), b[net.HeaderBytes:]
}

func TestConfigIsChecked(t *testing.T) {
	be := &nettest.Backend{}
	mac := []byte{2, 0, 0, 0, 0, 1}
	for name, c := range map[string]net.Config{
		"short MAC": {MAC: mac[:5], Backend: be}, "group MAC": {MAC: []byte{1, 0, 0, 0, 0, 1}, Backend: be},
		"small MTU": {MAC: mac, MTU: 67, Backend: be}, "big MTU": {MAC: mac, MTU: 65536, Backend: be},
		"no backend": {MAC: mac},
	} {
		if _, err := net.New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// 5.1.4: layout of the configuration space.
func TestConfigSpace(t *testing.T) {
	dev, err := net.New(net.Config{MAC: []byte{2, 3, 4, 5, 6, 7}, MTU: 9000, Backend: &nettest.Backend{}})
	if err != nil {
		t.Fatal(err)
	}
	want := []byte{2, 3, 4, 5, 6, 7, 1, 0, 1, 0, 0x28, 0x23}
	if got := dev.Info().Config; !bytes.Equal(got, want) {
		t.Errorf("configuration %x, want %x", got, want)
	}
}

// 5.1.3.1: offloads without what they require are neither offered nor accepted.
func TestFeatureDependencies(t *testing.T) {
	dev, err := net.New(net.Config{MAC: []byte{2, 0, 0, 0, 0, 1}, Backend: &nettest.Backend{Can: net.TxTSO4 | net.RxTSO4 | net.RxECN}})
	if err != nil {
		t.Fatal(err)
	}
	if f := dev.Info().Features; f&(bit(net.VIRTIO_NET_F_HOST_TSO4)|bit(net.VIRTIO_NET_F_GUEST_TSO4)|bit(net.VIRTIO_NET_F_GUEST_ECN)) != 0 {
		t.Errorf("features %#x offered without checksum offload", f)
	}
	r := newRig(t, 0, net.Config{})
	r.dev.Reset()
	err = r.dev.Activate(virtio.Activation{Features: bit(net.VIRTIO_NET_F_GUEST_TSO4), QueueSizes: []uint16{1, 1, 0}, Channel: r.ch})
	if err == nil {
		t.Error("GUEST_TSO4 accepted without GUEST_CSUM")
	}
	if r.be.Attached() {
		t.Error("backend attached by a failed activation")
	}
}

func TestNegotiatedOffloadsReachTheBackend(t *testing.T) {
	r := newRig(t, bit(net.VIRTIO_NET_F_CSUM)|bit(net.VIRTIO_NET_F_HOST_TSO4)|bit(net.VIRTIO_NET_F_GUEST_CSUM), net.Config{})
	if got, want := r.be.Negotiated(), net.TxChecksum|net.TxTSO4|net.RxChecksum; got != want {
		t.Errorf("backend was told %#x, want %#x", got, want)
	}
}

func TestTransmit(t *testing.T) {
	r := newRig(t, bit(net.VIRTIO_NET_F_CSUM)|bit(net.VIRTIO_NET_F_HOST_TSO4), net.Config{})
	h, f := header(), frameOf(60000)
	h.SetPartialChecksum(34, 16)
	h.SetGSO(net.VIRTIO_NET_HDR_GSO_TCPV4, 54, 1448)
	// Header and frame torn at odd places.
	all := append(append([]byte(nil), h...), f...)
	segs := [][]byte{all[:5], all[5:13], all[13:40], all[40:]}
	r.dev.Submit(1, []*virtio.Request{r.ch.Request(1, segs, nil)})
	r.ch.WaitCompleted(1, 1)
	sent := r.be.TakeSent()
	if len(sent) != 1 || !bytes.Equal(sent[0].Bytes, f) || !bytes.Equal(sent[0].Header, h) {
		t.Fatalf("sent %d frames, or not the same", len(sent))
	}
	if s := r.dev.Stats(); s.TxFrames != 1 || s.TxBytes != 60000 {
		t.Errorf("stats %+v", s)
	}
}

// 5.1.6.2: what a driver must not send is dropped, counted and completed.
func TestTransmitRefuses(t *testing.T) {
	all := bit(net.VIRTIO_NET_F_CSUM) | bit(net.VIRTIO_NET_F_HOST_TSO4)
	mk := func(f func(h net.Header)) net.Header { h := header(); f(h); return h }
	cases := map[string]struct {
		h net.Header
		n int
	}{
		"shorter than a header":        {header()[:11], 0},
		"header alone":                 {header(), 0},
		"runt":                         {header(), 13},
		"too long":                     {header(), net.MaxFrameBytes + 1},
		"checksum start outside":       {mk(func(h net.Header) { h.SetPartialChecksum(60, 0) }), 60},
		"checksum end outside":         {mk(func(h net.Header) { h.SetPartialChecksum(34, 25) }), 60},
		"checksum wraps":               {mk(func(h net.Header) { h.SetPartialChecksum(65535, 65535) }), 60},
		"checksum over Ethernet":       {mk(func(h net.Header) { h.SetPartialChecksum(0, 4) }), 60},
		"segments not negotiated":      {mk(func(h net.Header) { h.SetPartialChecksum(34, 16); h.SetGSO(4, 54, 1448) }), 3000},
		"segments of UDP":              {mk(func(h net.Header) { h.SetPartialChecksum(34, 6); h.SetGSO(3, 42, 1448) }), 3000},
		"segments of no kind but ECN":  {mk(func(h net.Header) { h.SetPartialChecksum(34, 16); h.SetGSO(0x80, 54, 1448) }), 3000},
		"segments with ECN":            {mk(func(h net.Header) { h.SetPartialChecksum(34, 16); h.SetGSO(0x81, 54, 1448) }), 3000},
		"segments of zero bytes":       {mk(func(h net.Header) { h.SetPartialChecksum(34, 16); h.SetGSO(1, 54, 0) }), 3000},
		"segments without checksums":   {mk(func(h net.Header) { h.SetGSO(1, 54, 1448) }), 3000},
		"unknown kind of segmentation": {mk(func(h net.Header) { h.SetPartialChecksum(34, 16); h.SetGSO(77, 54, 1448) }), 3000},
	}
	for name, c := range cases {
		r := newRig(t, all, net.Config{})
		r.send(c.h, frameOf(c.n))
		if sent := r.be.TakeSent(); len(sent) != 0 {
			t.Errorf("%s: sent", name)
		}
		if s := r.dev.Stats(); s.TxInvalid != 1 || s.TxFrames != 0 {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// 5.1.6.2.2: the device ignores flags that it does not know, and csum fields
// without NEEDS_CSUM.
func TestTransmitIgnores(t *testing.T) {
	r := newRig(t, bit(net.VIRTIO_NET_F_CSUM), net.Config{})
	h := header()
	h.SetPartialChecksum(60000, 60000)
	h[0] = 0xFE
	h.SetNumBuffers(9)
	r.send(h, frameOf(60))
	sent := r.be.TakeSent()
	if len(sent) != 1 || !bytes.Equal(sent[0].Header, header()) {
		t.Fatalf("sent %v, want one frame with an empty header", sent)
	}
}

func TestTransmitBackendDrops(t *testing.T) {
	r := newRig(t, 0, net.Config{})
	r.be.SendErr = errors.New("full")
	r.send(header(), frameOf(60))
	if s := r.dev.Stats(); s.TxDropped != 1 {
		t.Errorf("%+v", s)
	}
}

// 5.1.6.4: a frame over several buffers is one completion, fills all but
// the last, and says how many there are.
func TestReceiveMerged(t *testing.T) {
	r := newRig(t, bit(net.VIRTIO_NET_F_MRG_RXBUF)|bit(net.VIRTIO_NET_F_GUEST_CSUM)|bit(net.VIRTIO_NET_F_GUEST_TSO4), net.Config{})
	r.post(1500, 1500, 1500, 1500, 1500)
	h, f := header(), frameOf(4000)
	h.SetPartialChecksum(34, 16)
	h.SetGSO(1, 54, 1448)
	r.be.Push(nettest.Frame{Header: h, Bytes: f})
	calls := r.ch.WaitCompleted(0, 3)
	if len(calls) != 1 || len(calls[0]) != 3 {
		t.Fatalf("completed by %d calls", len(calls))
	}
	gotH, got := r.joined(calls[0])
	if gotH.NumBuffers() != 3 || !bytes.Equal(got, f) || gotH.GSOSize() != 1448 {
		t.Errorf("header %x, equal %v", gotH, bytes.Equal(got, f))
	}
	for i, q := range calls[0] {
		if e := q.Extents(); len(e) != 1 || e[0].Off != 0 || e[0].Len != int(q.Used()) {
			t.Errorf("buffer %d: extents %v, used %d", i, e, q.Used())
		}
	}
}

// Frames that wait are completed together, in order.
func TestReceiveBatch(t *testing.T) {
	r := newRig(t, bit(net.VIRTIO_NET_F_MRG_RXBUF), net.Config{})
	for i := range 20 {
		r.be.Push(nettest.Frame{Header: header(), Bytes: frameOf(100 + i)})
	}
	sizes := make([]int, 30)
	for i := range sizes {
		sizes[i] = 1500
	}
	r.post(sizes...)
	i := 0
	for _, call := range r.ch.WaitCompleted(0, 20) {
		for _, q := range call {
			if q.Seq != uint64(i) || int(q.Used()) != 112+i {
				t.Fatalf("frame %d: seq %d, used %d", i, q.Seq, q.Used())
			}
			i++
		}
	}
}

// 5.1.6.3.2: one buffer a frame without MRG_RXBUF; what does not fit is dropped.
func TestReceiveUnmerged(t *testing.T) {
	r := newRig(t, 0, net.Config{})
	r.be.Push(nettest.Frame{Header: header(), Bytes: frameOf(2000)})
	r.be.Push(nettest.Frame{Header: header(), Bytes: frameOf(1400)})
	r.post(1526, 1526, 1526)
	calls := r.ch.WaitCompleted(0, 1)
	h, f := r.joined(calls[0])
	if !bytes.Equal(f, frameOf(1400)) || h.NumBuffers() != 1 {
		t.Errorf("frame of %d bytes, %d buffers", len(f), h.NumBuffers())
	}
	if s := r.dev.Stats(); s.RxDropped != 1 || s.RxFrames != 1 {
		t.Errorf("%+v", s)
	}
}

// Without buffers the backend is not asked, so it holds its sources back; the
// frame comes once there are buffers, also when they come one by one.
func TestReceiveBackPressure(t *testing.T) {
	r := newRig(t, bit(net.VIRTIO_NET_F_MRG_RXBUF), net.Config{})
	for range 4 {
		r.be.Push(nettest.Frame{Header: header(), Bytes: frameOf(5000)})
	}
	for range 20 {
		r.post(1024)
	}
	var all []*virtio.Request
	for len(all) < 20 {
		for _, c := range r.ch.WaitCompleted(0, 1) {
			all = append(all, c...)
		}
	}
	for len(all) > 0 {
		k := int(net.Header(r.mem[all[0]]).NumBuffers())
		if _, f := r.joined(all[:k]); !bytes.Equal(f, frameOf(5000)) {
			t.Fatal("frame differs")
		}
		all = all[k:]
	}
	if s := r.dev.Stats(); s.RxFrames != 4 || s.RxDropped != 0 {
		t.Errorf("%+v", s)
	}
}

func TestReceiveHeaderTorn(t *testing.T) {
	r := newRig(t, bit(net.VIRTIO_NET_F_MRG_RXBUF), net.Config{})
	a, b, c := make([]byte, 3), make([]byte, 8), make([]byte, 200)
	q := r.ch.Request(0, nil, [][]byte{a, b, c})
	r.dev.Submit(0, []*virtio.Request{q})
	r.be.Push(nettest.Frame{Header: header(), Bytes: frameOf(150)})
	r.ch.WaitCompleted(0, 1)
	all := append(append(append([]byte(nil), a...), b...), c...)
	if n := binary.LittleEndian.Uint16(all[10:]); n != 1 || !bytes.Equal(all[12:162], frameOf(150)) {
		t.Errorf("num_buffers %d or frame differs", n)
	}
}

// A buffer in very many pieces is filled by copying.
func TestReceiveManyPieces(t *testing.T) {
	r := newRig(t, bit(net.VIRTIO_NET_F_MRG_RXBUF), net.Config{})
	b := make([]byte, 3000)
	var segs [][]byte
	for i := range b {
		segs = append(segs, b[i:i+1])
	}
	r.dev.Submit(0, []*virtio.Request{r.ch.Request(0, nil, segs)})
	r.be.Push(nettest.Frame{Header: header(), Bytes: frameOf(1500)})
	r.ch.WaitCompleted(0, 1)
	if !bytes.Equal(b[12:1512], frameOf(1500)) {
		t.Error("frame differs")
	}
}

// A buffer without room for a header goes back with used length 0.
func TestReceiveRuntBuffer(t *testing.T) {
	r := newRig(t, bit(net.VIRTIO_NET_F_MRG_RXBUF), net.Config{})
	r.post(0, 11, 1500)
	r.be.Push(nettest.Frame{Header: header(), Bytes: frameOf(60)})
	var got []uint32
	for _, c := range r.ch.WaitCompleted(0, 3) {
		for _, q := range c {
			got = append(got, q.Used())
		}
	}
	if len(got) != 3 || got[0] != 0 || got[1] != 0 || got[2] != 72 {
		t.Errorf("used %v", got)
	}
	if s := r.dev.Stats(); s.RxRunts != 2 {
		t.Errorf("%+v", s)
	}
}

// 5.1.6.4.1: without GUEST_CSUM flags are zero; after MTU was negotiated no
// longer frame passes.
func TestReceiveKeepsToWhatWasNegotiated(t *testing.T) {
	r := newRig(t, bit(net.VIRTIO_NET_F_MRG_RXBUF)|bit(net.VIRTIO_NET_F_MTU), net.Config{MTU: 1500})
	r.post(4096, 4096)
	h := header()
	h[0] = net.VIRTIO_NET_HDR_F_DATA_VALID
	r.be.Push(nettest.Frame{Header: h, Bytes: frameOf(1519)})
	r.be.Push(nettest.Frame{Header: h, Bytes: frameOf(1518)})
	calls := r.ch.WaitCompleted(0, 1)
	got, f := r.joined(calls[0][:1])
	if got.Flags() != 0 || len(f) != 1518 {
		t.Errorf("flags %#x, %d bytes", got.Flags(), len(f))
	}
}

func TestQuiesceReturnsBuffersInOrder(t *testing.T) {
	r := newRig(t, bit(net.VIRTIO_NET_F_MRG_RXBUF), net.Config{})
	want := r.post(1500, 1500, 1500)
	r.dev.Quiesce(1)
	r.dev.Quiesce(0)
	got := r.ch.TakeReturned(0)
	if len(got) != 3 || got[0] != want[0] || got[2] != want[2] {
		t.Fatalf("returned %v", got)
	}
	// Nothing is lost meanwhile, and the buffers work again.
	r.be.Push(nettest.Frame{Header: header(), Bytes: frameOf(64)})
	r.dev.Submit(0, got)
	calls := r.ch.WaitCompleted(0, 1)
	if _, f := r.joined(calls[0][:1]); !bytes.Equal(f, frameOf(64)) {
		t.Error("frame differs")
	}
}

func TestResetAndAgain(t *testing.T) {
	r := newRig(t, bit(net.VIRTIO_NET_F_MRG_RXBUF), net.Config{})
	for range 50 {
		r.post(1500, 1500)
		r.dev.Reset()
		r.dev.Reset()
		if r.be.Attached() {
			t.Fatal("still attached after Reset")
		}
		r.activate(bit(net.VIRTIO_NET_F_MRG_RXBUF))
	}
	r.post(1500)
	r.be.Push(nettest.Frame{Header: header(), Bytes: frameOf(64)})
	r.ch.WaitCompleted(0, 1)
}

func TestBrokenBackend(t *testing.T) {
	r := newRig(t, 0, net.Config{})
	r.post(1526)
	want := errors.New("device is gone")
	r.be.Break(want)
	if err := r.ch.WaitBroken(); !errors.Is(err, want) {
		t.Errorf("NeedsReset(%v)", err)
	}
	r.dev.Reset()
}

func TestLink(t *testing.T) {
	r := newRig(t, bit(net.VIRTIO_NET_F_STATUS)|bit(net.VIRTIO_NET_F_MRG_RXBUF), net.Config{})
	r.dev.SetLink(false)
	if c := r.ch.WaitConfig(); c[6] != 0 {
		t.Errorf("status %d with the link down", c[6])
	}
	r.send(header(), frameOf(60))
	if len(r.be.TakeSent()) != 0 || r.dev.LinkUp() {
		t.Error("sent through a link that is down")
	}
	r.dev.SetLink(true)
	r.dev.SetLink(true)
	if c := r.ch.WaitConfig(); c[6] != net.VIRTIO_NET_S_LINK_UP {
		t.Errorf("status %d with the link up", c[6])
	}
	r.send(header(), frameOf(60))
	if len(r.be.TakeSent()) != 1 {
		t.Error("not sent")
	}
}

// 5.1.6.5.4: the driver announces itself when asked, and acknowledges.
func TestAnnounce(t *testing.T) {
	r := newRig(t, 0, net.Config{})
	if r.dev.Announce() {
		t.Error("asked a driver that cannot")
	}
	r.dev.Reset()
	r.activate(bit(net.VIRTIO_NET_F_CTRL_VQ) | bit(net.VIRTIO_NET_F_GUEST_ANNOUNCE))
	if !r.dev.Announce() {
		t.Fatal("not asked")
	}
	if c := r.ch.WaitConfig(); c[6] != net.VIRTIO_NET_S_LINK_UP|net.VIRTIO_NET_S_ANNOUNCE {
		t.Errorf("status %d", c[6])
	}
	for _, c := range []struct {
		cmd    []byte
		status byte
	}{
		{nil, net.VIRTIO_NET_ERR}, {[]byte{3}, net.VIRTIO_NET_ERR}, {[]byte{0, 0, 1}, net.VIRTIO_NET_ERR},
		{[]byte{3, 1}, net.VIRTIO_NET_ERR}, {[]byte{3, 0}, net.VIRTIO_NET_OK},
	} {
		status := []byte{0xAA}
		r.dev.Submit(2, []*virtio.Request{r.ch.Request(2, [][]byte{c.cmd}, [][]byte{status})})
		done := r.ch.WaitCompleted(2, 1)
		if status[0] != c.status || done[0][0].Used() != 1 {
			t.Errorf("command %v: status %d", c.cmd, status[0])
		}
	}
	if c := r.ch.WaitConfig(); c[6] != net.VIRTIO_NET_S_LINK_UP {
		t.Errorf("status %d after the acknowledgement", c[6])
	}
	// No room for a status: the command still ends.
	r.dev.Submit(2, []*virtio.Request{r.ch.Request(2, [][]byte{{3, 0}}, nil)})
	r.ch.WaitCompleted(2, 1)
}
