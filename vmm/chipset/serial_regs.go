package chipset

// Registers of the 16550A by their offset from SerialPort (PC16550D, table II),
// in the spelling of Linux's include/uapi/linux/serial_reg.h.
const (
	UART_RX  = 0 // read, DLAB=0
	UART_TX  = 0 // write, DLAB=0
	UART_DLL = 0 // DLAB=1
	UART_IER = 1 // DLAB=0
	UART_DLM = 1 // DLAB=1
	UART_IIR = 2 // read
	UART_FCR = 2 // write
	UART_LCR = 3
	UART_MCR = 4
	UART_LSR = 5
	UART_MSR = 6
	UART_SCR = 7

	UART_IER_RDI  = 0x01
	UART_IER_THRI = 0x02
	UART_IER_RLSI = 0x04
	UART_IER_MSI  = 0x08

	UART_IIR_NO_INT     = 0x01
	UART_IIR_MSI        = 0x00
	UART_IIR_THRI       = 0x02
	UART_IIR_RDI        = 0x04
	UART_IIR_RLSI       = 0x06
	UART_IIR_RX_TIMEOUT = 0x0C
	uartIIRFIFO         = 0xC0 // the FIFOs are enabled and work

	UART_FCR_ENABLE_FIFO  = 0x01
	UART_FCR_CLEAR_RCVR   = 0x02
	UART_FCR_CLEAR_XMIT   = 0x04
	uartFCRTriggerShift   = 6
	UART_LCR_DLAB         = 0x80
	UART_MCR_DTR          = 0x01
	UART_MCR_RTS          = 0x02
	UART_MCR_OUT1         = 0x04
	UART_MCR_OUT2         = 0x08
	UART_MCR_LOOP         = 0x10
	uartMCRMask           = 0x1F
	UART_LSR_DR           = 0x01
	UART_LSR_OE           = 0x02
	UART_LSR_THRE         = 0x20
	UART_LSR_TEMT         = 0x40
	UART_MSR_DCTS         = 0x01
	UART_MSR_DDSR         = 0x02
	UART_MSR_TERI         = 0x04
	UART_MSR_DDCD         = 0x08
	UART_MSR_CTS          = 0x10
	UART_MSR_DSR          = 0x20
	UART_MSR_RI           = 0x40
	UART_MSR_DCD          = 0x80
	uartMSRDelta          = 0x0F
	uartMSRConnected      = UART_MSR_CTS | UART_MSR_DSR | UART_MSR_DCD
	uartFIFOBytes         = 16
	uartDefaultDivisor    = 12 // 9600 baud from 1.8432 MHz
	uartTransmitRoomBytes = 64 // THRE promises this much room: more than a FIFO of 16
)

// uartTrigger is the receive level that interrupts, by FCR bits 7..6.
var uartTrigger = [4]int{1, 4, 8, 14}

// readLocked gives the register at off.
func (s *Serial) readLocked(off uint64) byte {
	switch off {
	case UART_RX:
		if s.lcr&UART_LCR_DLAB != 0 {
			return byte(s.divisor)
		}
		return s.receiveLocked()
	case UART_IER:
		if s.lcr&UART_LCR_DLAB != 0 {
			return byte(s.divisor >> 8)
		}
		return s.ier
	case UART_IIR:
		id := s.interruptLocked()
		if id == UART_IIR_THRI {
			s.thrPending = false
		}
		if s.fifo {
			id |= uartIIRFIFO
		}
		return id
	case UART_LCR:
		return s.lcr
	case UART_MCR:
		return s.mcr
	case UART_LSR:
		v := s.lsrLocked()
		s.overrun = false
		return v
	case UART_MSR:
		v := s.msr
		s.msr &^= uartMSRDelta
		return v
	case UART_SCR:
		return s.scratch
	}
	return 0xFF
}

// writeLocked sets the register at off.
func (s *Serial) writeLocked(off uint64, v byte) {
	switch off {
	case UART_TX:
		if s.lcr&UART_LCR_DLAB != 0 {
			s.divisor = s.divisor&0xFF00 | uint16(v)
			return
		}
		s.transmitLocked(v)
	case UART_IER:
		if s.lcr&UART_LCR_DLAB != 0 {
			s.divisor = s.divisor&0x00FF | uint16(v)<<8
			return
		}
		v &= UART_IER_RDI | UART_IER_THRI | UART_IER_RLSI | UART_IER_MSI
		// Enabling the interrupt while the register is empty raises it: this is how
		// drivers start to transmit, and what Linux tests at start-up.
		if v&UART_IER_THRI != 0 && s.ier&UART_IER_THRI == 0 && s.hasRoomLocked() {
			s.thrPending = true
		}
		s.ier = v
	case UART_FCR:
		s.setFIFOLocked(v)
	case UART_LCR:
		s.lcr = v
	case UART_MCR:
		s.mcr = v & uartMCRMask
		s.setModemLocked()
		s.refillLocked()
	case UART_SCR:
		s.scratch = v
	}
}

func (s *Serial) setFIFOLocked(v byte) {
	on := v&UART_FCR_ENABLE_FIFO != 0
	if on != s.fifo || on && v&UART_FCR_CLEAR_RCVR != 0 {
		s.rx.reset()
		s.overrun = false
	}
	s.fifo = on
	s.trigger = 1
	if on {
		s.trigger = uartTrigger[v>>uartFCRTriggerShift]
	}
	// CLEAR_XMIT: bytes that were taken count as sent.
	s.refillLocked()
}

// setModemLocked works out MSR from the lines, or from MCR in loopback mode,
// with the delta bits of what changed (PC16550D, 8.6.4 and 8.7).
func (s *Serial) setModemLocked() {
	lines := byte(uartMSRConnected)
	if s.mcr&UART_MCR_LOOP != 0 {
		lines = 0
		for _, m := range [...]struct{ out, in byte }{
			{UART_MCR_RTS, UART_MSR_CTS}, {UART_MCR_DTR, UART_MSR_DSR},
			{UART_MCR_OUT1, UART_MSR_RI}, {UART_MCR_OUT2, UART_MSR_DCD},
		} {
			if s.mcr&m.out != 0 {
				lines |= m.in
			}
		}
	}
	changed := (s.msr ^ lines) & 0xF0
	delta := changed >> 4 & (UART_MSR_DCTS | UART_MSR_DDSR | UART_MSR_DDCD)
	if changed&UART_MSR_RI != 0 && lines&UART_MSR_RI == 0 {
		delta |= UART_MSR_TERI // only the trailing edge counts
	}
	s.msr = lines | s.msr&uartMSRDelta | delta
}

func (s *Serial) lsrLocked() byte {
	var v byte
	if s.rx.count > 0 {
		v |= UART_LSR_DR
	}
	if s.overrun {
		v |= UART_LSR_OE
	}
	if s.hasRoomLocked() {
		v |= UART_LSR_THRE | UART_LSR_TEMT
	}
	return v
}

// interruptLocked is the pending interrupt of the highest priority, as IIR has
// it (PC16550D, table IV).
func (s *Serial) interruptLocked() byte {
	switch {
	case s.ier&UART_IER_RLSI != 0 && s.overrun:
		return UART_IIR_RLSI
	case s.ier&UART_IER_RDI != 0 && s.rx.count >= s.trigger:
		return UART_IIR_RDI
	case s.ier&UART_IER_RDI != 0 && s.rx.count > 0:
		return UART_IIR_RX_TIMEOUT // the four character times are not waited for
	case s.ier&UART_IER_THRI != 0 && s.thrPending:
		return UART_IIR_THRI
	case s.ier&UART_IER_MSI != 0 && s.msr&uartMSRDelta != 0:
		return UART_IIR_MSI
	}
	return UART_IIR_NO_INT
}
