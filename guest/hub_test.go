package guest

import (
	"bytes"
	"io"
	"net"
	"testing"
)

func testHub(owned bool) (*hub, chan struct{}) {
	h := newHub(owned)
	lost := make(chan struct{}, 1)
	h.onResize, h.onSignal = func(Winsize) {}, func(int) {}
	h.onOwnerLost = func() { lost <- struct{}{} }
	return h, lost
}

func attachTo(t *testing.T, h *hub, owner bool) (*Attachment, chan error) {
	t.Helper()
	a, b := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- h.serve(b, owner) }()
	t.Cleanup(func() { _ = a.Close() })
	return &Attachment{conn: a, fw: &frameWriter{w: a}, fr: &frameReader{r: a}}, served
}

func TestHubOwnerGetsEveryByteAndTheExit(t *testing.T) {
	h, lost := testHub(true)
	att, served := attachTo(t, h, true)
	var out bytes.Buffer
	got := make(chan *Exit, 1)
	go func() {
		e, err := att.Copy(&out, io.Discard)
		if err != nil {
			t.Error(err)
		}
		got <- e
	}()
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	w := h.stream(frameStdout)
	for rest := want; len(rest) > 0; {
		n := min(len(rest), 100_001)
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	h.end(&Exit{Code: 7, Reason: "command"})
	if e := <-got; e == nil || e.Code != 7 {
		t.Errorf("exit %+v", e)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("%d of %d bytes, or others", out.Len(), len(want))
	}
	_ = att.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	select {
	case <-lost:
		t.Error("the owner of an ended guest was lost")
	default:
	}
}

func TestHubOwnerLostAndDetached(t *testing.T) {
	h, lost := testHub(true)
	att, served := attachTo(t, h, true)
	_ = att.Resize(Winsize{1, 1}) // it is served by now
	_ = att.Close()
	<-served
	<-lost

	h, lost = testHub(true)
	att, served = attachTo(t, h, true)
	go func() { _, _ = att.Copy(io.Discard, io.Discard) }()
	if err := att.Detach(); err != nil {
		t.Fatal(err)
	}
	<-served
	select {
	case <-lost:
		t.Error("a detached owner counts as lost")
	default:
	}
	if _, err := h.attach(true); err == nil {
		t.Error("a guest whose owner left got a second one")
	}
}

func TestHubDropsASpectatorThatLags(t *testing.T) {
	h, _ := testHub(false)
	c, err := h.attach(false)
	if err != nil {
		t.Fatal(err)
	}
	w := h.stream(frameStdout)
	for range hubQueueFrames + 1 {
		_, _ = w.Write([]byte("x"))
	}
	<-c.gone
}

func FuzzFrame(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 3, 0, 0, 0, 'a', 'b', 'c'})
	f.Add([]byte{2, 0, 0, 0, 255, 255, 255, 255})
	f.Add([]byte{8, 0, 0, 0, 2, 0, 0, 0, '{', '}'})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &frameReader{r: bytes.NewReader(b)}
		for {
			if _, p, err := r.read(); err != nil {
				return
			} else if len(p) > maxFrameBytes {
				t.Fatal("a frame beyond the bound")
			}
		}
	})
}
