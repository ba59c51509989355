package guest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// The attach protocol: after POST /v1/attach with "Upgrade: peervisor-attach/1" both sides
// send frames. A frame is an 8-byte header and a payload:
//
//	byte 0     type
//	byte 1..3  zero
//	byte 4..7  payload length, little-endian, at most maxFrameBytes
type frameType byte

const (
	frameStdin  frameType = 1 // client → guest: bytes
	frameStdout frameType = 2 // guest → client: bytes
	frameStderr frameType = 3 // guest → client: bytes
	frameEOF    frameType = 4 // client → guest: end of input; only the owner's counts
	frameResize frameType = 5 // client → guest: {"rows":,"cols":}
	frameSignal frameType = 6 // client → guest: {"signal":}
	frameDetach frameType = 7 // client → guest: leaving; guest → client: put out, payload is why
	frameExit   frameType = 8 // guest → client: Exit as JSON; the last frame
)

const (
	frameHeaderBytes = 8
	maxFrameBytes    = 64 << 10
)

// Winsize is a terminal's size in characters.
type Winsize struct {
	Rows int `json:"rows"`
	Cols int `json:"cols"`
}

type signalMsg struct {
	Signal int `json:"signal"`
}

// frameWriter writes frames; safe for several goroutines.
type frameWriter struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

func (f *frameWriter) write(t frameType, p []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for first := true; first || len(p) > 0; first = false {
		n := min(len(p), maxFrameBytes)
		f.buf = append(f.buf[:0], byte(t), 0, 0, 0)
		f.buf = binary.LittleEndian.AppendUint32(f.buf, uint32(n))
		f.buf = append(f.buf, p[:n]...)
		if _, err := f.w.Write(f.buf); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func (f *frameWriter) writeJSON(t frameType, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return f.write(t, b)
}

// frameReader reads frames; the payload is valid until the next read.
type frameReader struct {
	r   io.Reader
	buf []byte
}

func (f *frameReader) read() (frameType, []byte, error) {
	var h [frameHeaderBytes]byte
	if _, err := io.ReadFull(f.r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(h[4:])
	if n > maxFrameBytes || h[1]|h[2]|h[3] != 0 || h[0] == 0 {
		return 0, nil, fmt.Errorf("attach frame with header % x: not of this protocol", h)
	}
	if cap(f.buf) < int(n) {
		f.buf = make([]byte, maxFrameBytes)
	}
	f.buf = f.buf[:n]
	if _, err := io.ReadFull(f.r, f.buf); err != nil {
		return 0, nil, io.ErrUnexpectedEOF
	}
	return frameType(h[0]), f.buf, nil
}
