package netconf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"testing"
	"time"
)

var (
	testMAC    = [6]byte{0x52, 0x54, 0, 1, 2, 3}
	serverAddr = Addr{10, 0, 2, 2}
	guestAddr  = Addr{10, 0, 2, 15}
)

// reply makes a server's message.
func reply(kind byte, xid uint32, options ...[]byte) []byte {
	b := make([]byte, headerBytes)
	b[0], b[1], b[2] = bootReply, 1, 6
	binary.BigEndian.PutUint32(b[4:], xid)
	copy(b[16:], guestAddr[:])
	copy(b[28:], testMAC[:])
	binary.BigEndian.PutUint32(b[236:], magicCookie)
	b = append(b, optType, 1, kind, optPad)
	b = append(append(b, optServerID, 4), serverAddr[:]...)
	for _, o := range options {
		b = append(b, o...)
	}
	return append(b, optEnd)
}

func network() [][]byte {
	return [][]byte{
		{optMask, 4, 255, 255, 255, 0},
		{optRouter, 8, 10, 0, 2, 2, 10, 0, 2, 1},
		{optDNS, 4, 10, 0, 2, 3},
		append([]byte{optDomain, 8}, "lab.test"...),
		{optMTU, 2, 1400 >> 8, 1400 & 0xFF},
		{optLeaseTime, 4, 0, 0, 0x0E, 0x10},
	}
}

// server is a Conn with a script: what to answer to each message sent.
type server struct {
	t      *testing.T
	answer func(n int, kind byte, xid uint32) [][]byte
	sent   []byte // kinds
	queue  [][]byte
	raw    [][]byte
}

func (s *server) Send(b []byte) error {
	if len(b) < minimumBytes || b[0] != bootRequest || !bytes.Equal(b[28:34], testMAC[:]) {
		s.t.Errorf("a bad message was sent: %x", b)
	}
	kind := b[headerBytes+2]
	s.sent = append(s.sent, kind)
	s.raw = append(s.raw, b)
	s.queue = append(s.queue, s.answer(len(s.sent), kind, binary.BigEndian.Uint32(b[4:]))...)
	return nil
}

func (s *server) Receive(deadline time.Time) ([]byte, error) {
	if len(s.queue) == 0 {
		<-time.After(time.Until(deadline))
		return nil, ErrNoAnswer
	}
	b := s.queue[0]
	s.queue = s.queue[1:]
	return b, nil
}

func soon() time.Time { return time.Now().Add(30 * time.Second) }

func TestAcquire(t *testing.T) {
	s := &server{t: t, answer: func(n int, kind byte, xid uint32) [][]byte {
		switch kind {
		case dhcpDiscover:
			if n == 1 {
				return nil // lost
			}
			other := reply(dhcpOffer, xid+1)
			foreign := reply(dhcpOffer, xid)
			foreign[28]++
			return [][]byte{{}, other, foreign, reply(dhcpAck, xid), reply(dhcpOffer, xid, network()...)}
		case dhcpRequest:
			return [][]byte{reply(dhcpAck, xid, network()...)}
		}
		return nil
	}}
	l, err := (&Client{Conn: s, MAC: testMAC}).Acquire(soon())
	if err != nil {
		t.Fatal(err)
	}
	want := &Lease{Address: guestAddr, PrefixBits: 24, Router: serverAddr, Server: serverAddr,
		DNS: []Addr{{10, 0, 2, 3}}, Domain: "lab.test", MTU: 1400, For: time.Hour}
	if !reflect.DeepEqual(l, want) {
		t.Errorf("lease %+v, want %+v", l, want)
	}
	if !bytes.Equal(s.sent, []byte{dhcpDiscover, dhcpDiscover, dhcpRequest}) {
		t.Errorf("sent %v", s.sent)
	}
	if !bytes.Contains(s.raw[2], append([]byte{optRequestedIP, 4}, guestAddr[:]...)) {
		t.Error("the request names no address")
	}
	if got := l.Resolver(); got != "search lab.test\nnameserver 10.0.2.3\n" {
		t.Errorf("resolver %q", got)
	}
}

func TestNakStartsAnew(t *testing.T) {
	s := &server{t: t, answer: func(n int, kind byte, xid uint32) [][]byte {
		switch {
		case kind == dhcpDiscover:
			return [][]byte{reply(dhcpOffer, xid)}
		case n == 2:
			return [][]byte{reply(dhcpNak, xid)}
		}
		return [][]byte{reply(dhcpAck, xid)}
	}}
	if _, err := (&Client{Conn: s, MAC: testMAC}).Acquire(soon()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.sent, []byte{dhcpDiscover, dhcpRequest, dhcpDiscover, dhcpRequest}) {
		t.Errorf("sent %v", s.sent)
	}
}

func TestSilence(t *testing.T) {
	s := &server{t: t, answer: func(int, byte, uint32) [][]byte { return nil }}
	if _, err := (&Client{Conn: s, MAC: testMAC}).Acquire(time.Now().Add(400 * time.Millisecond)); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("error %v", err)
	}
	if len(s.sent) != 2 { // at 0 and 250 ms
		t.Errorf("sent %v", s.sent)
	}
}

func TestRenew(t *testing.T) {
	s := &server{t: t, answer: func(_ int, _ byte, xid uint32) [][]byte { return [][]byte{reply(dhcpAck, xid, network()...)} }}
	l := &Lease{Address: guestAddr, PrefixBits: 24}
	next, err := (&Client{Conn: s, MAC: testMAC}).Renew(l, soon())
	if err != nil || next.For != time.Hour {
		t.Fatalf("%+v, %v", next, err)
	}
	if !bytes.Equal(s.raw[0][12:16], guestAddr[:]) {
		t.Error("the client's address is not in ciaddr")
	}
}

func TestBadLeases(t *testing.T) {
	for name, m := range map[string]message{
		"no address":      {},
		"loopback":        {your: Addr{127, 0, 0, 1}},
		"multicast":       {your: Addr{224, 0, 0, 1}},
		"mask with holes": {your: guestAddr, mask: Addr{255, 0, 255, 0}},
	} {
		if l, err := m.toLease(); err == nil {
			t.Errorf("%s: %+v", name, l)
		}
	}
	if l, err := (&message{your: guestAddr, hasLease: true}).toLease(); err != nil || l.For != minLease || l.PrefixBits != 24 {
		t.Errorf("a lease for no time: %+v, %v", l, err)
	}
	if got := domainName([]byte("a.b\nnameserver 6.6.6.6")); got != "" {
		t.Errorf("a domain of two lines: %q", got)
	}
}

func TestWrapUnwrap(t *testing.T) {
	out := wrap([]byte("message"))
	if checksum(out[:ipHeaderBytes]) != 0 {
		t.Error("the header's checksum is wrong")
	}
	in := bytes.Clone(out)
	copy(in[ipHeaderBytes:], []byte{0, serverPort, 0, clientPort})
	if got := unwrap(append(in, "padding of the link"...)); string(got) != "message" {
		t.Errorf("got %q", got)
	}
	if unwrap(out) != nil {
		t.Error("took a message to a server")
	}
	for n := range in {
		unwrap(in[:n])
	}
}

func FuzzReply(f *testing.F) {
	f.Add(wrap(reply(dhcpAck, 1, network()...)))
	f.Add(reply(dhcpOffer, 1, []byte{optDNS, 200}))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, b := range [][]byte{data, unwrap(data)} {
			if m, ok := parseReply(b); ok {
				if l, err := m.toLease(); err == nil && (!l.Address.Is() || l.PrefixBits > 32 || l.For < minLease || len(l.DNS) > maxDNS) {
					t.Fatalf("lease %+v", l)
				}
			}
		}
	})
}
