package boot

import (
	"encoding/binary"
	"io"
	"math/bits"
)

// x86Filter undoes the x86 branch filter of .xz. The encoder replaced the
// relative targets of CALL (E8) and JMP (E9) by absolute ones, which repeat and
// so compress better. It did so only where the top byte of the target is 00 or
// FF, and it kept away from what looks like the inside of another such
// instruction: recent remembers which of the last three bytes were opcodes that it left alone.
type x86Filter struct {
	pos    uint32 // stream position of the next byte, plus the start offset
	recent uint32 // bit n: the byte n+1 before this one was an opcode left alone
}

// isSign says whether a byte can be the top one of a near target.
func isSign(b byte) bool { return b == 0x00 || b == 0xFF }

// run filters b in place and returns how many bytes are finished. What is left,
// at most 4 bytes, needs those that follow; at the end of the stream it stays as it is.
func (f *x86Filter) run(b []byte) int {
	i := 0
	for i+4 < len(b) {
		if b[i]&0xFE != 0xE8 {
			f.recent = f.recent << 1 & 7
			i++
			continue
		}
		if !f.converted(b[i:]) {
			f.recent = (f.recent<<1 | 1) & 7
			i++
			continue
		}
		target := f.relative(binary.LittleEndian.Uint32(b[i+1:]), f.pos+uint32(i)+5)
		binary.LittleEndian.PutUint32(b[i+1:], target)
		f.recent = 0
		i += 5
	}
	f.pos += uint32(i)
	return i
}

// converted says whether the encoder changed the instruction at b[0].
func (f *x86Filter) converted(b []byte) bool {
	if !isSign(b[4]) {
		return false
	}
	if f.recent == 0 {
		return true
	}
	// With one opcode n bytes back, its target ends in the byte 4-n of this one.
	n := bits.Len32(f.recent)
	return f.recent&(f.recent-1) == 0 && !isSign(b[4-n])
}

// relative turns an absolute target into one relative to next, the address
// behind the instruction, sign-extended from 25 bits. Where the result would
// look converted to the earlier opcode, the encoder stored a complement. A
// second round is the last: it gives the complement of what the first began with,
// whose byte in question is no sign byte.
func (f *x86Filter) relative(target, next uint32) uint32 {
	target -= next
	if f.recent != 0 {
		low := 32 - 8*uint(bits.Len32(f.recent)) // bits shared with the earlier target
		if isSign(byte(target >> (low - 8))) {
			target = target ^ (1<<low - 1) - next
		}
	}
	return uint32(int32(target<<7) >> 7)
}

// x86Reader filters a stream.
type x86Reader struct {
	r      io.Reader
	filter x86Filter
	buf    [64 << 10]byte
	// buf[start:ready] is filtered, buf[ready:end] is not yet.
	start, ready, end int
	err               error // of r
}

// Read implements io.Reader.
func (x *x86Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for x.start == x.ready {
		if x.err == io.EOF && x.ready < x.end {
			x.ready = x.end // the tail that is too short for an instruction
			break
		}
		if x.err != nil {
			return 0, x.err
		}
		x.end = copy(x.buf[:], x.buf[x.ready:x.end])
		x.start, x.ready = 0, 0
		var n int
		n, x.err = x.r.Read(x.buf[x.end:])
		x.end += n
		x.ready = x.filter.run(x.buf[:x.end])
	}
	n := copy(p, x.buf[x.start:x.ready])
	x.start += n
	return n, nil
}
