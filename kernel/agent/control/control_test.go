package control

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

func TestRoundTrip(t *testing.T) {
	rows := Message{Type: TypeRun, ID: 1, Argv: []string{"cat", "a b", "<&>", "ü"}, Env: []string{"A=b"}, Dir: "/", TTY: true, Rows: 24, Cols: 80}
	msgs := []Message{
		{Type: TypeHello, Version: Version, Kernel: "6.1.0"},
		rows,
		Exited(1, 0, 0, 0),
		Exited(2, 3, 123, 1<<40),
		Signalled(3, 9, 1, 2),
		Failed(4, CodeNotFound, "nope"),
		Notice("hm"),
		EOF(1, 0),
		{Type: TypeSignal, ID: 1, Signal: 2},
		{Type: TypeClosed, ID: 1, Stream: StreamStdout},
		{Type: TypePowerOff},
	}
	var wire bytes.Buffer
	for _, m := range msgs {
		line, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		wire.Write(line)
		wire.WriteString(" \n") // blank lines do not count
	}
	r := NewReader(iotest.OneByteReader(&wire))
	for i, want := range msgs {
		got, err := r.Next()
		if err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("message %d: got %+v, want %+v", i, got, want)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// The page's examples are what another implementation is written from.
func TestExamplesOfThePage(t *testing.T) {
	for _, line := range []string{
		`{"type":"hello","version":1,"kernel":"6.1.0-…"}`,
		`{"type":"started","id":1}`,
		`{"type":"exit","id":1,"code":3,"stdout":123,"stderr":0}`,
		`{"type":"exit","id":1,"signal":9,"stdout":123,"stderr":0}`,
		`{"type":"failed","id":1,"code":127,"message":"…"}`,
		`{"type":"notice","message":"…"}`,
		`{"type":"run","id":1,"argv":["cat"],"env":["A=b"],"dir":"/","tty":false,"rows":24,"cols":80}`,
		`{"type":"eof","id":1,"bytes":42}`,
		`{"type":"signal","id":1,"signal":2}`,
		`{"type":"winsize","id":1,"rows":50,"cols":120}`,
		`{"type":"closed","id":1,"stream":"stdout"}`,
		`{"type":"poweroff"}`,
		`{"type":"reboot"}`,
		`{"type":"from the future","unknown":[1,2,{}]}`,
	} {
		if _, err := Decode([]byte(line)); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestMalformed(t *testing.T) {
	for _, line := range []string{
		`x`, `{}`, `[]`, `null`, `{"type":1}`, `{"type":"run","id":1}`, `{"type":"run","argv":["a"]}`,
		`{"type":"run","id":-1,"argv":["a"]}`, `{"type":"exit","id":1,"code":1}`,
		`{"type":"exit","id":1,"code":1,"signal":9,"stdout":0,"stderr":0}`,
		`{"type":"exit","id":1,"stdout":0,"stderr":0}`, `{"type":"exit","id":1,"code":256,"stdout":0,"stderr":0}`,
		`{"type":"signal","id":1,"signal":65}`, `{"type":"signal","id":1,"signal":-9}`, `{"type":"signal","id":1}`,
		`{"type":"closed","id":1,"stream":"stdin"}`, `{"type":"eof","id":1}`, `{"type":"failed","id":1}`,
		`{"type":"winsize","id":1,"rows":70000,"cols":1}`,
	} {
		var syntax *SyntaxError
		if _, err := Decode([]byte(line)); !errors.As(err, &syntax) {
			t.Errorf("%s: %v, want a SyntaxError", line, err)
		}
	}
}

func TestReaderGoesOnAfterGarbage(t *testing.T) {
	r := NewReader(strings.NewReader("garbage\n\x00\xff\n" + `{"type":"poweroff"}` + "\n" + `{"type":"reboot"}`))
	var syntax *SyntaxError
	for range 2 {
		if _, err := r.Next(); !errors.As(err, &syntax) {
			t.Fatalf("garbage: %v", err)
		}
	}
	if m, err := r.Next(); err != nil || m.Type != TypePowerOff {
		t.Fatalf("after garbage: %+v, %v", m, err)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Fatalf("half a line at the end: %v, want EOF", err)
	}
}

func TestLineBound(t *testing.T) {
	fits := `{"type":"notice","message":"` + strings.Repeat("x", MaxLineBytes-len(`{"type":"notice","message":""}`)-1) + `"}` + "\n"
	if len(fits) != MaxLineBytes {
		t.Fatalf("test makes a line of %d", len(fits))
	}
	if _, err := NewReader(strings.NewReader(fits)).Next(); err != nil {
		t.Errorf("a line of exactly the bound: %v", err)
	}
	if _, err := NewReader(strings.NewReader("x" + fits)).Next(); !errors.Is(err, ErrLineTooLong) {
		t.Errorf("one byte more: %v", err)
	}
	if _, err := Encode(Notice(strings.Repeat("x", MaxLineBytes))); !errors.Is(err, ErrLineTooLong) {
		t.Errorf("encode: %v", err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte(`{"type":"run","id":1,"argv":["cat"]}` + "\n" + `{"type":"eof","id":1,"bytes":0}` + "\n"))
	f.Add([]byte("\n\n{}\nnull\n"))
	f.Add([]byte(`{"type":"exit","id":1,"code":3,"stdout":123,"stderr":0}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewReader(bytes.NewReader(data))
		for range len(data) + 1 {
			m, err := r.Next()
			var syntax *SyntaxError
			if errors.As(err, &syntax) {
				continue
			}
			if err != nil {
				return
			}
			line, err := Encode(m)
			if err != nil {
				t.Fatalf("decoded message does not encode: %v", err)
			}
			again, err := Decode(line)
			if err != nil {
				t.Fatalf("encoded message does not decode: %v", err)
			}
			if line2, err := Encode(again); err != nil || !bytes.Equal(line, line2) {
				t.Fatalf("%q became %q (%v)", line, line2, err)
			}
		}
		t.Fatal("more messages than bytes")
	})
}
