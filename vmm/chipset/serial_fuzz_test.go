package chipset

import (
	"bytes"
	"io"
	"testing"
)

func FuzzSerial(f *testing.F) {
	f.Add([]byte{0x82, 0xC1, 0x81, 0x0F, 0x40, 'a', 0x00, 0, 0x05, 0, 0x80, 'x'})
	f.Add([]byte{0x84, 0x1F, 0x80, 1, 0x80, 2, 0x83, 0x80, 0x80, 3})
	f.Fuzz(func(t *testing.T, script []byte) {
		line := newFakeLine()
		s := NewSerial(SerialConfig{IRQ: line, InBytes: 128})
		for ; len(script) >= 2; script = script[2:] {
			switch off := uint64(script[0] & 7); {
			case script[0]&0x80 != 0:
				out8(s, off, script[1])
			case script[0]&0x40 != 0:
				s.Input(bytes.Repeat(script[1:2], int(script[0]&0x3F)))
			default:
				in8(s, off)
			}
			if s.rx.count < 0 || s.rx.count > s.fifoSizeLocked() || len(s.in) > 128 {
				t.Fatalf("%d bytes in the FIFO, %d behind it", s.rx.count, len(s.in))
			}
			if high, _ := line.state(); high != (s.interruptLocked() != UART_IIR_NO_INT) {
				t.Fatal("the pin is not what IIR says")
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkSerialWrite(b *testing.B) {
	s, _ := newTestSerial(b, io.Discard)
	b.ReportAllocs()
	for b.Loop() {
		out8(s, 0, 'x')
	}
}
