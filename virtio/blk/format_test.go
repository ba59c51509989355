package blk

import (
	"errors"
	"strings"
	"testing"
)

// FuzzFormat looks at any first and last bytes of a file: every refusal is
// ErrFormat and names a command.
func FuzzFormat(f *testing.F) {
	for _, s := range signatures {
		head, tail := make([]byte, probeBytes), make([]byte, probeBytes)
		if s.off < 0 {
			copy(tail[len(tail)+s.off:], s.magic)
		} else {
			copy(head[s.off:], s.magic)
		}
		if checkFormat("x", head, tail) == nil {
			f.Errorf("%s image is taken as raw", s.name)
		}
		f.Add(head, tail)
	}
	f.Add([]byte("QF"), []byte{})
	f.Fuzz(func(t *testing.T, head, tail []byte) {
		err := checkFormat("x", head, tail)
		if err != nil && (!errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "convert it with: ")) {
			t.Error(err)
		}
	})
}
