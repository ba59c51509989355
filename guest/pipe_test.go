package guest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

func TestPipeKeepsEveryByteInOrder(t *testing.T) {
	p := newPipe(1 << 12)
	rnd := rand.New(rand.NewPCG(1, 2))
	src := make([]byte, 3<<20)
	for i := range src {
		src[i] = byte(rnd.Uint32())
	}
	go func() {
		rest := src
		for len(rest) > 0 {
			n := min(len(rest), 1+rnd.IntN(10000))
			if _, err := p.Write(rest[:n]); err != nil {
				t.Error(err)
			}
			rest = rest[n:]
		}
		p.CloseWrite()
	}()
	got, err := io.ReadAll(p)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(src) {
		t.Fatalf("read %d of %d bytes, %v", len(got), len(src), err)
	}
}

func TestPipeCloseFreesBothSides(t *testing.T) {
	p := newPipe(4)
	done := make(chan error, 2)
	go func() { _, err := p.Write(bytes.Repeat([]byte("x"), 100)); done <- err }()
	b := make([]byte, 2)
	if _, err := io.ReadFull(p, b); err != nil {
		t.Fatal(err)
	}
	_ = p.Close()
	if err := <-done; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("writer got %v", err)
	}
	if _, err := p.Read(b); err != io.EOF {
		t.Errorf("reader got %v", err)
	}
}
