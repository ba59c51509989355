package console

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"unicode/utf8"

	"github.com/peervisor/peervisor/virtio"
)

// Config says which ports a console device has.
type Config struct {
	// Ports are those that are there from the start, 1..31. The first is port 0. One
	// Console port without a name makes a plain console with two queues; anything
	// else is offered with VIRTIO_CONSOLE_F_MULTIPORT.
	Ports []Port
	// MaxPorts leaves room for Plug, up to 31; 0 means len(Ports).
	MaxPorts int
	// Cols and Rows are the first size of console ports; 0 and 0 means that it is
	// unknown until Resize.
	Cols, Rows uint16
	// ResizeRowsFirst sends VIRTIO_CONSOLE_RESIZE as Linux before 6.15 reads it: rows,
	// then columns, the other way round than 5.3.6.2 says. Nothing in the protocol tells which one
	// the driver wants. The configuration space, which single-port drivers read, is not affected.
	ResizeRowsFirst bool
	// QueueSize of each queue in descriptors, a power of two, 2..32768; 0 means 256.
	QueueSize int
	// BufferBytes is what is kept for each direction of a port, 4 KiB..64 MiB; 0 means
	// 256 KiB. It is taken when the first byte passes.
	BufferBytes int
	// Events, if set, is told what happens to ports. It is called from any goroutine,
	// with no lock held, and must not block.
	Events func(Event)
}

// Port is one port: a console, or a named byte stream.
type Port struct {
	// Name is what Linux shows in /sys/class/virtio-ports/*/name: UTF-8 without NUL,
	// at most 255 bytes; "" for none.
	Name string
	// Console makes the guest use it as a terminal (/dev/hvcN).
	Console bool
	// In is what the guest receives; nil for nothing. Read may block. What was read is
	// delivered when the guest has the port open, and is kept over Reset. When Read
	// returns an error, io.EOF or another, and all data was delivered, the port is shown as closed.
	In io.Reader
	// Out takes what the guest sends; nil throws it away. Write may block: then the
	// guest's requests wait, once BufferBytes were accepted. After an error what the guest sends
	// is thrown away; the port stays open, so that no guest hangs on it.
	Out io.Writer
	// KeepOpen does not show the end of In to the guest. Linux lets nobody write to
	// a port that the host has closed, so a port whose output goes on needs this.
	KeepOpen bool
}

// EventKind is what happened to a port.
type EventKind int

const (
	// GuestOpened and GuestClosed: a process of the guest (or its console) opened or
	// closed the port. A reset closes all.
	GuestOpened EventKind = iota + 1
	GuestClosed
	// InputEnded: In is at its end (Err is io.EOF) or failed.
	InputEnded
	// OutputFailed: Out returned Err; what was accepted and not written is lost, and
	// so is what the guest sends from now on.
	OutputFailed
)

// Event is told to Config.Events.
type Event struct {
	Port int
	Name string
	Kind EventKind
	Err  error
}

// Bounds and defaults of Config.
const (
	maxPorts       = 31
	maxNameBytes   = 255
	defQueueSize   = 256
	defBufferBytes = 256 << 10
	minBufferBytes = 4 << 10
	maxBufferBytes = 64 << 20
)

func (c *Config) fill() error {
	if c.MaxPorts == 0 {
		c.MaxPorts = len(c.Ports)
	}
	if c.QueueSize == 0 {
		c.QueueSize = defQueueSize
	}
	if c.BufferBytes == 0 {
		c.BufferBytes = defBufferBytes
	}
	switch {
	case len(c.Ports) < 1 || len(c.Ports) > maxPorts || c.MaxPorts < len(c.Ports) || c.MaxPorts > maxPorts:
		return fmt.Errorf("console: %d ports and room for %d, expected 1..%d", len(c.Ports), c.MaxPorts, maxPorts)
	case c.QueueSize < 2 || c.QueueSize > virtio.MaxQueueSize || bits.OnesCount(uint(c.QueueSize)) != 1:
		return fmt.Errorf("console: queue size %d, expected a power of two, 2..%d", c.QueueSize, virtio.MaxQueueSize)
	case c.BufferBytes < minBufferBytes || c.BufferBytes > maxBufferBytes:
		return fmt.Errorf("console: buffer of %d bytes, expected %d..%d", c.BufferBytes, minBufferBytes, maxBufferBytes)
	}
	for i := range c.Ports {
		if err := c.Ports[i].check(); err != nil {
			return err
		}
	}
	return nil
}

func (p *Port) check() error {
	if len(p.Name) > maxNameBytes || !utf8.ValidString(p.Name) {
		return fmt.Errorf("console: port name %q, expected UTF-8 of at most %d bytes", p.Name, maxNameBytes)
	}
	for _, r := range p.Name {
		if r == 0 || r == '\n' {
			return fmt.Errorf("console: port name %q has a NUL or a line end", p.Name)
		}
	}
	return nil
}

func (c *Config) multiport() bool {
	return c.MaxPorts > 1 || !c.Ports[0].Console || c.Ports[0].Name != ""
}

func (c *Config) info() virtio.Info {
	in := virtio.Info{
		ID:       virtio.VIRTIO_ID_CONSOLE,
		Features: 1<<VIRTIO_CONSOLE_F_SIZE | 1<<VIRTIO_CONSOLE_F_EMERG_WRITE,
	}
	queues := 2
	if c.multiport() {
		in.Features |= 1 << VIRTIO_CONSOLE_F_MULTIPORT
		queues = 2 * (c.MaxPorts + 1)
	}
	for q := range queues {
		qi := virtio.QueueInfo{MaxSize: uint16(c.QueueSize), Replay: virtio.ReplayStream}
		switch {
		case q == controlReceive || q == controlTransmit:
			qi.Replay = virtio.ReplayRetain
		case q%2 == 1:
			qi.Failure.Form = virtio.FailDrop // output goes nowhere
		}
		in.Queues = append(in.Queues, qi)
	}
	return in
}

// space is struct virtio_console_config.
func (c *Config) space(cols, rows uint16) []byte {
	p := make([]byte, configBytes)
	binary.LittleEndian.PutUint16(p[offCols:], cols)
	binary.LittleEndian.PutUint16(p[offRows:], rows)
	if c.multiport() {
		binary.LittleEndian.PutUint32(p[offMaxPorts:], uint32(c.MaxPorts))
	}
	return p
}
