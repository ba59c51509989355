package console

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// State of a console: what the driver was told and said about each port, and
// the bytes in the buffers. In and Out are the owner's.
//
//	offset  bytes
//	0       1      1: DEVICE_READY came
//	1       1      number of ports, plugged or not
//	2       2+2    columns and rows in the configuration space
//	then for each port
//	0       1      flags, below
//	1       1      control messages to be sent, bit 0 PORT_ADD, CONSOLE_PORT, PORT_NAME, RESIZE, PORT_OPEN, PORT_REMOVE
//	2       2+2    columns and rows
//	6       8+4    transmit request that was accepted in part: sequence number, bytes
//	18      4+n    input that was not delivered
//	22+n    4+m    output that was accepted and not written
//
// All numbers are little-endian.
const (
	// StateVersion is the version of what SaveState returns.
	StateVersion = 1

	stateHeader = 6
	statePort   = 18

	statePresent   = 1
	stateRemoved   = 2
	stateAdded     = 4
	stateReady     = 8
	stateGuestOpen = 16
	stateShown     = 32
	stateFlags     = 63
)

var errState = errors.New("saved state of a console is damaged")

// SaveState returns the state of a half whose queues are drained. The bytes in the
// buffers are in it and stay in this half as well: whoever goes on with both has
// them twice.
func (d *Device) SaveState() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := []byte{0, byte(len(d.ports))}
	if d.driverReady {
		out[0] = 1
	}
	out = binary.LittleEndian.AppendUint16(out, d.cols)
	out = binary.LittleEndian.AppendUint16(out, d.rows)
	for _, p := range d.ports {
		out = p.save(out)
	}
	return out, nil
}

func (p *port) save(out []byte) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &p.control
	flags := byte(0)
	for _, f := range []struct {
		set bool
		bit byte
	}{
		{p.present, statePresent}, {p.removed, stateRemoved}, {c.added, stateAdded},
		{c.ready, stateReady}, {c.guestOpen, stateGuestOpen}, {c.shown, stateShown},
	} {
		if f.set {
			flags |= f.bit
		}
	}
	le := binary.LittleEndian
	out = append(out, flags, byte(c.want))
	out = le.AppendUint16(out, c.cols)
	out = le.AppendUint16(out, c.rows)
	out = le.AppendUint64(out, p.txSeq)
	out = le.AppendUint32(out, uint32(p.txOff))
	for _, g := range []*ring{&p.in, &p.out} {
		out = le.AppendUint32(out, uint32(g.n))
		out = append(out, g.bytes()...)
	}
	return out
}

// savedPort is one port of a state that was checked.
type savedPort struct {
	flags      byte
	want       want
	cols, rows uint16
	txSeq      uint64
	txOff      uint32
	in, out    []byte
}

// RestoreState takes over a saved state, of a half with the same ports and at least the
// same buffers. It is called on a fresh half, before Activate; nothing is changed when it fails.
func (d *Device) RestoreState(version int, state []byte) error {
	if version != StateVersion {
		return fmt.Errorf("restore console: version %d, expected %d", version, StateVersion)
	}
	if len(state) < stateHeader || state[0] > 1 {
		return fmt.Errorf("restore console: %d bytes: %w", len(state), errState)
	}
	if int(state[1]) != len(d.ports) {
		return fmt.Errorf("restore console: state has %d ports, this console %d", state[1], len(d.ports))
	}
	saved := make([]savedPort, len(d.ports))
	rest := state[stateHeader:]
	for i, p := range d.ports {
		var err error
		if rest, err = saved[i].parse(rest, p.in.size); err != nil {
			return fmt.Errorf("restore console port %d: %w", i, err)
		}
		if p.present != (saved[i].flags&statePresent != 0) {
			return fmt.Errorf("restore console port %d: plugged on one side only", i)
		}
		if p.in.n > 0 || p.out.n > 0 {
			return fmt.Errorf("restore console port %d: it was used before", i)
		}
	}
	if len(rest) > 0 {
		return fmt.Errorf("restore console: %d bytes too many: %w", len(rest), errState)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.driverReady = state[0] == 1
	d.cols, d.rows = binary.LittleEndian.Uint16(state[2:]), binary.LittleEndian.Uint16(state[4:])
	for i, p := range d.ports {
		p.restore(&saved[i])
	}
	return nil
}

func (s *savedPort) parse(b []byte, size int) ([]byte, error) {
	if len(b) < statePort {
		return nil, errState
	}
	le := binary.LittleEndian
	s.flags, s.want = b[0], want(b[1])
	s.cols, s.rows = le.Uint16(b[2:]), le.Uint16(b[4:])
	s.txSeq, s.txOff = le.Uint64(b[6:]), le.Uint32(b[14:])
	if s.flags&^stateFlags != 0 || s.want&^wantAll != 0 || s.txOff > 1<<31-1 {
		return nil, errState
	}
	b = b[statePort:]
	for _, dst := range []*[]byte{&s.in, &s.out} {
		if len(b) < 4 {
			return nil, errState
		}
		n := le.Uint32(b)
		b = b[4:]
		if uint64(n) > uint64(len(b)) {
			return nil, errState
		}
		if n > uint32(size) {
			return nil, fmt.Errorf("%d bytes in a buffer of %d", n, size)
		}
		*dst, b = b[:n], b[n:]
	}
	return b, nil
}

func (p *port) restore(s *savedPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	has := func(bit byte) bool { return s.flags&bit != 0 }
	p.removed = has(stateRemoved)
	p.discard = p.discard || p.removed
	p.control = portState{
		added: has(stateAdded), ready: has(stateReady), guestOpen: has(stateGuestOpen), shown: has(stateShown),
		want: s.want, cols: s.cols, rows: s.rows,
	}
	p.txSeq, p.txOff = s.txSeq, int(s.txOff)
	p.in.put(s.in)
	if p.cfg.Out != nil {
		p.out.put(s.out)
	}
}
