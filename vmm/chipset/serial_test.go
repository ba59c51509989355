package chipset

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"
)

// sink is an Out that can be held up.
type sink struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	err     error
	gate    chan struct{} // nil: open; each Write takes one token
	waiting chan struct{} // told when a Write begins, if there is room
}

func (s *sink) Write(p []byte) (int, error) {
	if s.waiting != nil {
		select {
		case s.waiting <- struct{}{}:
		default:
		}
	}
	if s.gate != nil {
		<-s.gate
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	return s.buf.Write(p)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

func newTestSerial(t testing.TB, out io.Writer) (*Serial, *fakeLine) {
	t.Helper()
	line := newFakeLine()
	s := NewSerial(SerialConfig{Out: out, IRQ: line})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, line
}

func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func drain(t testing.TB, s *Serial) {
	t.Helper()
	if err := s.Drain(deadline(t)); err != nil {
		t.Fatal(err)
	}
}

// PC16550D, table I: the state after a reset.
func TestSerialPowerOn(t *testing.T) {
	s, line := newTestSerial(t, nil)
	for off, want := range map[uint64]byte{1: 0, 2: 0x01, 3: 0, 4: 0, 5: 0x60, 6: 0xB0, 7: 0} {
		if got := in8(s, off); got != want {
			t.Errorf("register %d is %#x, want %#x", off, got, want)
		}
	}
	line.want(t, false)
}

// Linux autoconfig: IER and scratch, loopback, the kinds of FIFO, EFR, 16750.
func TestSerialDetectedAs16550A(t *testing.T) {
	s, _ := newTestSerial(t, nil)
	out8(s, 1, 0)
	if in8(s, 1) != 0 {
		t.Error("IER does not clear")
	}
	out8(s, 1, 0xFF)
	if in8(s, 1) != 0x0F {
		t.Errorf("IER %#x: its upper bits must be 0, or Linux sees an XScale", in8(s, 1))
	}
	out8(s, 1, 0)
	out8(s, 4, 0x1A) // LOOP, OUT2, RTS
	if in8(s, 6)&0xF0 != 0x90 {
		t.Errorf("MSR in loopback %#x, want DCD and CTS", in8(s, 6))
	}
	out8(s, 4, 0)
	out8(s, 3, 0xBF)
	out8(s, 2, 0)
	out8(s, 3, 0)
	out8(s, 2, 1)
	if in8(s, 2)>>6 != 3 {
		t.Errorf("IIR %#x: FIFOs do not work", in8(s, 2))
	}
	out8(s, 3, 0x80)
	out8(s, 2, 0x21) // 64-byte mode of a TI16750
	if in8(s, 2) != 0xC1 {
		t.Errorf("IIR %#x: this is no 16750", in8(s, 2))
	}
	out8(s, 3, 0)
	out8(s, 7, 0xA5)
	if in8(s, 7) != 0xA5 {
		t.Error("no scratch register")
	}
	out8(s, 2, 0)
	if in8(s, 2) != 0x01 {
		t.Errorf("IIR %#x without FIFOs", in8(s, 2))
	}
}

func TestSerialDivisor(t *testing.T) {
	s, _ := newTestSerial(t, nil)
	out8(s, 3, 0x83)
	if in8(s, 0) != 12 || in8(s, 1) != 0 {
		t.Error("not 9600 baud at power-on")
	}
	out8(s, 0, 0x34)
	out8(s, 1, 0x12)
	if in8(s, 0) != 0x34 || in8(s, 1) != 0x12 || in8(s, 3) != 0x83 {
		t.Error("the divisor does not read back")
	}
	out8(s, 3, 0x03)
	if in8(s, 1) != 0 {
		t.Error("the divisor leaked into IER")
	}
	if in8(s, 5)&UART_LSR_DR != 0 {
		t.Error("something was received")
	}
}

func TestSerialOutput(t *testing.T) {
	out := &sink{}
	s, _ := newTestSerial(t, out)
	for _, c := range []byte("hello\r\n\x00\xff") {
		if in8(s, 5)&0x60 != 0x60 {
			t.Fatal("not empty")
		}
		out8(s, 0, c)
	}
	drain(t, s)
	if got := out.String(); got != "hello\r\n\x00\xff" {
		t.Errorf("got %q", got)
	}
}

// Linux serial8250_do_startup: with the transmitter empty, enabling THRI raises
// the interrupt, reading IIR clears it, and enabling it anew raises it again.
func TestSerialTHREOnEnable(t *testing.T) {
	s, line := newTestSerial(t, &sink{})
	for range 2 {
		out8(s, 1, UART_IER_THRI)
		line.want(t, true)
		if iir := in8(s, 2); iir != UART_IIR_THRI {
			t.Errorf("IIR %#x", iir)
		}
		line.want(t, false)
		if iir := in8(s, 2); iir != UART_IIR_NO_INT {
			t.Errorf("IIR %#x when read again", iir)
		}
		out8(s, 1, 0)
	}
	out8(s, 1, UART_IER_THRI)
	out8(s, 1, UART_IER_THRI) // no change: nothing new
	in8(s, 2)
	out8(s, 1, UART_IER_THRI|UART_IER_RDI)
	line.want(t, false)
}

// After each byte the interrupt goes away, and comes back when it was sent.
func TestSerialTHREAfterSend(t *testing.T) {
	out := &sink{gate: make(chan struct{}), waiting: make(chan struct{}, 1)}
	s, line := newTestSerial(t, out)
	out8(s, 1, UART_IER_THRI)
	in8(s, 2)
	_, before := line.state()
	out8(s, 0, 'a')
	<-out.waiting // the writer took it
	line.want(t, true)
	if _, after := line.state(); after != before+1 {
		t.Errorf("%d rising edges", after-before)
	}
	out8(s, 0, 'b') // the writer is busy with the first
	line.want(t, false)
	out.gate <- struct{}{}
	<-out.waiting
	line.want(t, true)
	out.gate <- struct{}{}
	drain(t, s)
	if out.String() != "ab" {
		t.Errorf("got %q", out.String())
	}
}

// A receiver that takes nothing makes the port busy; no byte is lost for a
// driver that waits, and what is sent regardless is counted.
func TestSerialBackPressure(t *testing.T) {
	out := &sink{gate: make(chan struct{}), waiting: make(chan struct{}, 1)}
	line := newFakeLine()
	s := NewSerial(SerialConfig{Out: out, IRQ: line, OutBytes: 256})
	defer func() { _ = s.Close() }()
	out8(s, 0, '0')
	<-out.waiting
	sent := 1
	for in8(s, 5)&UART_LSR_THRE != 0 {
		out8(s, 0, byte('0'+sent%10))
		if sent++; sent > 300 {
			t.Fatal("never busy")
		}
	}
	if left := 256 - (sent - 1); left < uartFIFOBytes || left > uartTransmitRoomBytes {
		t.Errorf("busy with room for %d bytes", left)
	}
	out8(s, 1, UART_IER_THRI)
	line.want(t, false)
	for range 63 {
		out8(s, 0, 'x') // a driver that does not look
		sent++
	}
	for range 5 {
		out8(s, 0, 'y')
	}
	if s.Dropped() != 5 {
		t.Errorf("dropped %d bytes, want 5", s.Dropped())
	}
	close(out.gate)
	drain(t, s)
	line.want(t, true)
	if in8(s, 5)&UART_LSR_THRE == 0 {
		t.Error("still busy")
	}
	if n := len(out.String()); n != sent {
		t.Errorf("%d of %d bytes came through", n, sent)
	}
}

// When Out fails the guest goes on and the reason is kept.
func TestSerialOutFails(t *testing.T) {
	out := &sink{err: errors.New("the terminal is gone")}
	s, line := newTestSerial(t, out)
	out8(s, 1, UART_IER_THRI)
	out8(s, 0, 'x')
	drain(t, s)
	if !errors.Is(s.Err(), out.err) {
		t.Errorf("got %v", s.Err())
	}
	in8(s, 2)
	for range 200_000 {
		out8(s, 0, 'x')
	}
	if in8(s, 5)&UART_LSR_THRE == 0 || s.Dropped() != 0 {
		t.Errorf("the port is busy, dropped %d", s.Dropped())
	}
	line.want(t, true)
}

// PC16550D, 8.7 and 8.10: RDA at the trigger level, the time-out below it.
func TestSerialTriggerLevels(t *testing.T) {
	for fcr, level := range map[byte]int{0x01: 1, 0x41: 4, 0x81: 8, 0xC1: 14} {
		s, line := newTestSerial(t, nil)
		out8(s, 2, fcr)
		out8(s, 1, UART_IER_RDI)
		for n := 1; n <= uartFIFOBytes; n++ {
			if s.Input([]byte{byte(n)}) != 1 {
				t.Fatal("no room")
			}
			line.want(t, true)
			want := byte(UART_IIR_RX_TIMEOUT)
			if n >= level {
				want = UART_IIR_RDI
			}
			if iir := in8(s, 2); iir != want|0xC0 {
				t.Errorf("level %d, %d bytes: IIR %#x, want %#x", level, n, iir, want|0xC0)
			}
		}
		for n := 1; n <= uartFIFOBytes; n++ {
			if in8(s, 5)&UART_LSR_DR == 0 {
				t.Fatal("no data")
			}
			if got := in8(s, 0); got != byte(n) {
				t.Errorf("byte %d is %d", n, got)
			}
		}
		line.want(t, false)
		if in8(s, 5)&UART_LSR_DR != 0 || in8(s, 2) != 0xC1 || in8(s, 0) != 0 {
			t.Error("not empty")
		}
	}
}

// Input is bounded, what does not fit stays with the caller, and nothing is
// lost on the way through the FIFO. Each filling of the FIFO gives an edge.
func TestSerialInputIsBounded(t *testing.T) {
	line := newFakeLine()
	s := NewSerial(SerialConfig{IRQ: line, InBytes: 256})
	defer func() { _ = s.Close() }()
	out8(s, 2, 0xC1)
	out8(s, 1, UART_IER_RDI)
	data := make([]byte, 1000)
	for i := range data {
		data[i] = byte(i * 7)
	}
	taken := s.Input(data)
	if taken != 256 {
		t.Errorf("took %d bytes", taken)
	}
	if n := s.Input(data[taken:]); n != 16 { // the FIFO took as much
		t.Errorf("then took %d bytes", n)
	} else {
		taken += n
	}
	if s.Input(data) != 0 {
		t.Error("took more than there is room for")
	}
	var got []byte
	for in8(s, 5)&UART_LSR_DR != 0 {
		got = append(got, in8(s, 0))
	}
	if !bytes.Equal(got, data[:taken]) {
		t.Errorf("got %d bytes, want %d", len(got), taken)
	}
	if _, edges := line.state(); edges != taken/16 {
		t.Errorf("%d edges for %d fillings", edges, taken/16)
	}
}

func TestSerialInputRoom(t *testing.T) {
	s := NewSerial(SerialConfig{InBytes: 128})
	defer func() { _ = s.Close() }()
	ctx := deadline(t)
	if err := s.InputRoom(ctx); err != nil {
		t.Fatal(err)
	}
	for s.Input(make([]byte, 50)) != 0 {
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.InputRoom(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	room := make(chan error)
	go func() { room <- s.InputRoom(ctx) }()
	for waiting := false; !waiting; {
		s.mu.Lock()
		waiting = s.waiters > 0
		s.mu.Unlock()
	}
	in8(s, 0)
	if err := <-room; err != nil {
		t.Error(err)
	}
	if s.Input([]byte("x")) != 1 {
		t.Error("no room")
	}
	go func() { room <- s.InputRoom(ctx) }()
	for waiting := false; !waiting; {
		s.mu.Lock()
		waiting = s.waiters > 0
		s.mu.Unlock()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-room; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if s.Input([]byte("x")) != 0 {
		t.Error("a closed port takes input")
	}
}

// PC16550D, 8.6.4: loopback connects sender and receiver, and MCR with MSR; the
// line is cut.
func TestSerialLoopback(t *testing.T) {
	out := &sink{}
	s, line := newTestSerial(t, out)
	out8(s, 2, 0x01)
	in8(s, 6)
	out8(s, 4, UART_MCR_LOOP)
	if msr := in8(s, 6); msr != UART_MSR_DCTS|UART_MSR_DDSR|UART_MSR_DDCD {
		t.Errorf("MSR %#x", msr)
	}
	for mcr, msr := range map[byte]byte{UART_MCR_DTR: UART_MSR_DSR, UART_MCR_RTS: UART_MSR_CTS, UART_MCR_OUT1: UART_MSR_RI, UART_MCR_OUT2: UART_MSR_DCD} {
		out8(s, 4, UART_MCR_LOOP|mcr)
		if got := in8(s, 6); got&0xF0 != msr {
			t.Errorf("MCR %#x gives MSR %#x", mcr, got)
		}
		out8(s, 4, UART_MCR_LOOP)
		delta := in8(s, 6)
		if want := msr >> 4; delta != want { // also TERI: RI ended
			t.Errorf("MCR %#x off: delta %#x, want %#x", mcr, delta, want)
		}
	}
	s.Input([]byte("from outside"))
	if in8(s, 5)&UART_LSR_DR != 0 {
		t.Error("the line is not cut")
	}
	out8(s, 1, UART_IER_RLSI)
	for i := range uartFIFOBytes + 1 {
		out8(s, 0, byte(i))
	}
	line.want(t, true)
	if in8(s, 2) != 0xC0|UART_IIR_RLSI || in8(s, 5)&UART_LSR_OE == 0 || in8(s, 5)&UART_LSR_OE != 0 {
		t.Error("no overrun, or it is not cleared by reading LSR")
	}
	line.want(t, false)
	for i := range uartFIFOBytes {
		if got := in8(s, 0); got != byte(i) {
			t.Errorf("byte %d is %d", i, got)
		}
	}
	out8(s, 4, 0)
	if in8(s, 5)&UART_LSR_DR == 0 || in8(s, 0) != 'f' {
		t.Error("what came in meanwhile is lost")
	}
	if out.String() != "" {
		t.Errorf("loopback sent %q", out.String())
	}
}

// PC16550D, 8.7: RI counts at its end only.
func TestSerialRingIndicator(t *testing.T) {
	s, _ := newTestSerial(t, nil)
	out8(s, 4, UART_MCR_LOOP)
	in8(s, 6)
	out8(s, 4, UART_MCR_LOOP|UART_MCR_OUT1)
	if in8(s, 6)&0x0F != 0 {
		t.Error("the leading edge counts")
	}
	out8(s, 4, UART_MCR_LOOP)
	if in8(s, 6)&0x0F != UART_MSR_TERI {
		t.Error("the trailing edge does not count")
	}
}

// PC16550D, table IV: line status, data, transmitter, modem.
func TestSerialPriorities(t *testing.T) {
	s, line := newTestSerial(t, nil)
	out8(s, 2, 0x01)
	out8(s, 4, UART_MCR_LOOP) // changes MSR
	for i := range uartFIFOBytes + 1 {
		out8(s, 0, byte(i))
	}
	out8(s, 1, 0x0F)
	for _, step := range []struct {
		id    byte
		serve func()
	}{
		{UART_IIR_RLSI, func() { in8(s, 5) }},
		{UART_IIR_RDI, func() {
			for in8(s, 5)&UART_LSR_DR != 0 {
				in8(s, 0)
			}
		}},
		{UART_IIR_THRI, func() {}}, // reading IIR was enough
		{UART_IIR_MSI, func() { in8(s, 6) }},
		{UART_IIR_NO_INT, func() {}},
	} {
		line.want(t, step.id != UART_IIR_NO_INT)
		if iir := in8(s, 2); iir != 0xC0|step.id {
			t.Errorf("IIR %#x, want %#x", iir, 0xC0|step.id)
		}
		step.serve()
	}
	line.want(t, false)
}

// Without FIFOs there is one byte of room; FCR clears what was received.
func TestSerialFIFOControl(t *testing.T) {
	s, _ := newTestSerial(t, nil)
	out8(s, 4, UART_MCR_LOOP)
	out8(s, 0, 1)
	out8(s, 0, 2)
	if in8(s, 5)&UART_LSR_OE == 0 || in8(s, 0) != 2 {
		t.Error("without FIFOs the newer byte stays, as an overrun")
	}
	out8(s, 0, 3)
	out8(s, 2, UART_FCR_ENABLE_FIFO) // a change clears
	if in8(s, 5)&UART_LSR_DR != 0 {
		t.Error("enabling FIFOs does not clear")
	}
	out8(s, 0, 4)
	out8(s, 2, UART_FCR_ENABLE_FIFO|UART_FCR_CLEAR_RCVR)
	if in8(s, 5)&UART_LSR_DR != 0 {
		t.Error("CLEAR_RCVR does not clear")
	}
	out8(s, 0, 5)
	out8(s, 2, UART_FCR_ENABLE_FIFO|UART_FCR_CLEAR_XMIT)
	if in8(s, 0) != 5 {
		t.Error("CLEAR_XMIT cleared what was received")
	}
}

// Close joins the writer and loses only what Drain would have waited for; a
// second Close does nothing.
func TestSerialClose(t *testing.T) {
	out := &sink{gate: make(chan struct{}), waiting: make(chan struct{}, 1)}
	s := NewSerial(SerialConfig{Out: out})
	out8(s, 0, 'x')
	<-out.waiting
	out8(s, 0, 'y')
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	close(out.gate)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	out8(s, 0, 'z')
	if err := s.Drain(deadline(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestSerialLineError(t *testing.T) {
	s, line := newTestSerial(t, nil)
	line.err = errors.New("no such pin")
	out8(s, 1, UART_IER_THRI)
	if !errors.Is(s.Err(), line.err) {
		t.Errorf("got %v", s.Err())
	}
}

// Several vCPUs, input and output at once, under the race detector.
func TestSerialConcurrent(t *testing.T) {
	out := &sink{}
	s, _ := newTestSerial(t, out)
	out8(s, 2, 0x01)
	out8(s, 1, 0x0F)
	const each = 2000
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range each {
				for in8(s, 5)&UART_LSR_THRE == 0 {
				}
				out8(s, 0, 'x')
				in8(s, 2)
				in8(s, 0)
			}
		})
	}
	wg.Go(func() {
		for range each {
			s.Input([]byte("input"))
		}
	})
	wg.Wait()
	drain(t, s)
	if n := len(out.String()); n != 2*each || s.Dropped() != 0 {
		t.Errorf("%d bytes came through, %d dropped", n, s.Dropped())
	}
}
