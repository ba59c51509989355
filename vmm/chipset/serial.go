package chipset

import (
	"context"
	"errors"
	"io"
	"sync"
)

// Sizes of a serial port's buffers on the host's side, in bytes.
const (
	DefaultSerialOutBytes = 64 << 10
	DefaultSerialInBytes  = 4 << 10
	MaxSerialBufferBytes  = 16 << 20
)

// ErrClosed is returned to who waits for a device that is closed.
var ErrClosed = errors.New("device is closed")

// SerialConfig configures a Serial.
type SerialConfig struct {
	// Out takes what the guest sends. One goroutine writes to it, and it may
	// block. Nil: output is discarded. After an error of Write, which Err tells,
	// the rest is discarded.
	Out io.Writer
	// IRQ is the interrupt pin. Nil: not connected.
	IRQ Line
	// OutBytes and InBytes bound the buffers to and from the host, at most
	// MaxSerialBufferBytes. 0: the defaults.
	OutBytes, InBytes int
}

// Serial is a 16550A.
//
// Sending never waits: bytes go to a bounded buffer that a goroutine writes to
// Out. While the buffer is full the port says that its transmitter is busy, as
// on a slow line: drivers that use interrupts wait without loss; bytes sent
// regardless are dropped and counted. Interrupts are not gated by OUT2.
//
// Receiving: Input takes what has room; the guest's FIFO is filled from it and
// never overruns, except in loopback mode.
type Serial struct {
	out io.Writer
	irq pin

	mu sync.Mutex
	// Registers.
	ier, lcr, mcr, msr, scratch byte
	divisor                     uint16
	fifo                        bool // FIFOs enabled
	trigger                     int
	rx                          serialFIFO
	overrun, thrPending         bool
	// The host's side.
	in             []byte // received, not yet in the FIFO
	inMax          int
	outBuf         []byte // sent, not yet taken by the writer
	outMax         int
	writing        bool // the writer has bytes in its hands
	outErr         error
	dropped        uint64
	closed         bool
	changed        chan struct{} // closed and renewed when somebody waits and something moved
	waiters        int
	wake           chan struct{} // to the writer; capacity 1
	writerFinished chan struct{}
}

// serialFIFO is the guest's receive FIFO.
type serialFIFO struct {
	buf         [uartFIFOBytes]byte
	head, count int
}

func (f *serialFIFO) reset() { f.head, f.count = 0, 0 }

func (f *serialFIFO) push(v byte) {
	f.buf[(f.head+f.count)%uartFIFOBytes] = v
	f.count++
}

func (f *serialFIFO) pop() byte {
	v := f.buf[f.head]
	f.head = (f.head + 1) % uartFIFOBytes
	f.count--
	return v
}

// NewSerial makes a port and starts its writer, which Close ends.
func NewSerial(cfg SerialConfig) *Serial {
	size := func(n, def int) int {
		if n <= 0 {
			return def
		}
		return min(max(n, 2*uartTransmitRoomBytes), MaxSerialBufferBytes)
	}
	s := &Serial{
		out: cfg.Out, irq: pin{line: cfg.IRQ},
		divisor: uartDefaultDivisor, trigger: 1, msr: uartMSRConnected,
		outMax: size(cfg.OutBytes, DefaultSerialOutBytes), inMax: size(cfg.InBytes, DefaultSerialInBytes),
		changed: make(chan struct{}), wake: make(chan struct{}, 1), writerFinished: make(chan struct{}),
	}
	if s.out == nil {
		close(s.writerFinished)
	} else {
		go s.writeLoop()
	}
	return s
}

// Read implements Handler.
func (s *Serial) Read(off uint64, p []byte) {
	s.mu.Lock()
	for i := range p {
		p[i] = s.readLocked(off + uint64(i))
	}
	s.irq.want(s.interruptLocked() != UART_IIR_NO_INT)
	s.mu.Unlock()
	s.irq.sync()
}

// Write implements Handler.
func (s *Serial) Write(off uint64, p []byte) {
	s.mu.Lock()
	for i, v := range p {
		s.writeLocked(off+uint64(i), v)
	}
	s.irq.want(s.interruptLocked() != UART_IIR_NO_INT)
	s.mu.Unlock()
	s.irq.sync()
}

func (s *Serial) hasRoomLocked() bool {
	return s.outMax-len(s.outBuf) >= uartTransmitRoomBytes
}

// transmitLocked takes a byte that the guest sends.
func (s *Serial) transmitLocked(v byte) {
	s.thrPending = false
	switch {
	case s.mcr&UART_MCR_LOOP != 0:
		s.loopLocked(v)
		s.sentLocked()
	case s.out == nil || s.outErr != nil || s.closed:
		s.sentLocked()
	case len(s.outBuf) >= s.outMax:
		s.dropped++
	default:
		s.outBuf = append(s.outBuf, v)
		if len(s.outBuf) == 1 {
			select {
			case s.wake <- struct{}{}:
			default: // the writer has been told
			}
		}
	}
}

// sentLocked: the transmitter was busy for no time at all. The pin must still
// show that it was.
func (s *Serial) sentLocked() {
	s.thrPending = s.hasRoomLocked()
	s.irq.pulse()
}

func (s *Serial) loopLocked(v byte) {
	if s.rx.count >= s.fifoSizeLocked() {
		s.overrun = true // with FIFOs the new byte is lost, without them the old one
		if !s.fifo {
			s.rx.reset()
			s.rx.push(v)
		}
		return
	}
	s.rx.push(v)
}

func (s *Serial) fifoSizeLocked() int {
	if s.fifo {
		return uartFIFOBytes
	}
	return 1
}

// receiveLocked gives the guest its next byte. When that was the last of the
// FIFO and more have come in, the FIFO is filled again behind a falling edge:
// a driver that leaves its interrupt handler now must be called again.
func (s *Serial) receiveLocked() byte {
	if s.rx.count == 0 {
		return 0
	}
	v := s.rx.pop()
	if s.rx.count == 0 && len(s.in) > 0 {
		s.irq.pulse()
		s.refillLocked()
	}
	return v
}

// refillLocked moves received bytes into the FIFO. In loopback mode the line is
// disconnected.
func (s *Serial) refillLocked() {
	if s.mcr&UART_MCR_LOOP != 0 {
		return
	}
	n := 0
	for n < len(s.in) && s.rx.count < s.fifoSizeLocked() {
		s.rx.push(s.in[n])
		n++
	}
	if n > 0 {
		s.in = s.in[:copy(s.in, s.in[n:])]
		s.notifyLocked()
	}
}

// Input sends p to the guest as far as there is room and returns how many bytes
// were taken. It does not wait; InputRoom does.
func (s *Serial) Input(p []byte) int {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return 0
	}
	n := min(len(p), s.inMax-len(s.in))
	s.in = append(s.in, p[:n]...)
	s.refillLocked()
	s.irq.want(s.interruptLocked() != UART_IIR_NO_INT)
	s.mu.Unlock()
	s.irq.sync()
	return n
}

// InputRoom waits until Input would take at least one byte.
func (s *Serial) InputRoom(ctx context.Context) error {
	return s.wait(ctx, func() (bool, error) {
		if s.closed {
			return true, ErrClosed
		}
		return len(s.in) < s.inMax, nil
	})
}

// Drain waits until all that the guest sent was written to Out, or discarded
// because Out failed.
func (s *Serial) Drain(ctx context.Context) error {
	return s.wait(ctx, func() (bool, error) {
		if s.closed {
			return true, ErrClosed
		}
		return len(s.outBuf) == 0 && !s.writing, nil
	})
}

// wait waits until done, which is called with the lock held, says so.
func (s *Serial) wait(ctx context.Context, done func() (bool, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiters++
	defer func() { s.waiters-- }()
	for {
		if ok, err := done(); ok {
			return err
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			s.mu.Lock()
			return ctx.Err()
		}
		s.mu.Lock()
	}
}

func (s *Serial) notifyLocked() {
	if s.waiters > 0 {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// writeLoop writes what the guest sends to Out. Two buffers change places, so
// that the port has room again as soon as the writer took the full one: this is
// also the moment when the transmitter reports itself empty.
func (s *Serial) writeLoop() {
	defer close(s.writerFinished)
	var chunk []byte
	for {
		s.mu.Lock()
		chunk, s.outBuf = s.outBuf, chunk[:0]
		s.writing = len(chunk) > 0
		if s.writing {
			s.thrPending = true
			s.irq.want(s.interruptLocked() != UART_IIR_NO_INT)
		} else {
			s.notifyLocked()
		}
		closed := s.closed
		s.mu.Unlock()
		if closed {
			return
		}
		if len(chunk) == 0 {
			<-s.wake
			continue
		}
		s.irq.sync()
		if _, err := s.out.Write(chunk); err != nil {
			s.fail(err)
		}
	}
}

func (s *Serial) fail(err error) {
	s.mu.Lock()
	if s.outErr == nil {
		s.outErr = err
	}
	s.outBuf = s.outBuf[:0]
	s.thrPending = true
	s.irq.want(s.interruptLocked() != UART_IIR_NO_INT)
	s.mu.Unlock()
	s.irq.sync()
}

// Dropped counts bytes that the guest sent although the port said that it was busy.
func (s *Serial) Dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

// Err is the first error of Out, or else of the interrupt line.
func (s *Serial) Err() error {
	s.mu.Lock()
	err := s.outErr
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.irq.firstErr()
}

// Close discards what was not yet written (see Drain), fails those who wait, and
// joins the writer. If Out is in a Write that blocks, its owner must end that,
// by closing Out, or Close waits. A second Close does nothing.
func (s *Serial) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		s.notifyLocked()
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	s.mu.Unlock()
	<-s.writerFinished
	return nil
}
