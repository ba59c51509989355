package virtio

// Request is one descriptor chain as a device half sees it: device-readable
// bytes, then room for device-writable bytes, and no addresses. Channels
// make requests and use them again; a half keeps none after it ended it.
//
// The slices behind a request may be guest memory, which the driver can change
// at any moment: copy a header once, check the copy, use the copy.
//
// A request is used by one goroutine at a time.
type Request struct {
	// Queue and Seq name the request. Seq counts the queue's requests from 0 at
	// DRIVER_OK, without gaps, in the order of the available ring.
	Queue int
	Seq   uint64
	// Token belongs to the channel (the transport half keeps the chain's head in it).
	Token uint64
	// Data belongs to the device half while it has the request. Channels set
	// it to nil when they hand the request over.
	Data any

	channel            Channel
	readable, writable [][]byte
	readLen, writeLen  int
	used               uint32
	touched            span
	extents            []Extent
	self               [1]*Request
}

// Extent is a range of device-writable bytes that a completion speaks for.
type Extent struct {
	// Off and Len are in bytes from the start of the device-writable part.
	Off, Len int
	// Zero says that the range is all zeroes, which a wire need not carry.
	Zero bool
}

type span struct{ lo, hi int }

// Init readies r for its next use by a channel. The slices are kept until the
// request ends; their backing arrays belong to the channel.
func (r *Request) Init(ch Channel, queue int, seq, token uint64, readable, writable [][]byte) {
	r.Queue, r.Seq, r.Token, r.Data = queue, seq, token, nil
	r.channel, r.readable, r.writable = ch, readable, writable
	r.readLen, r.writeLen = segLen(readable), segLen(writable)
	r.used, r.touched, r.extents = 0, span{}, r.extents[:0]
	r.self[0] = r
}

func segLen(segs [][]byte) int {
	n := 0
	for _, s := range segs {
		n += len(s)
	}
	return n
}

// ReadableLen is the number of device-readable bytes.
func (r *Request) ReadableLen() int { return r.readLen }

// WritableLen is the room for device-writable bytes.
func (r *Request) WritableLen() int { return r.writeLen }

// ReadAt copies device-readable bytes from off into p and returns how many
// there were.
func (r *Request) ReadAt(p []byte, off int) int {
	n := 0
	for _, s := range r.readable {
		if off >= len(s) {
			off -= len(s)
			continue
		}
		n += copy(p[n:], s[off:])
		off = 0
		if n == len(p) {
			break
		}
	}
	return n
}

// ReadVec appends to dst the slices that hold the device-readable bytes
// [off, off+n), clipped to what is there, for a writev. They are borrowed until
// the request ends.
func (r *Request) ReadVec(dst [][]byte, off, n int) [][]byte { return clip(dst, r.readable, off, n) }

// WriteVec appends to dst the slices of the device-writable room [off, off+n),
// clipped to what is there, for a readv. They are borrowed until the request
// ends. The range counts as touched, so its pages will be marked dirty; say with
// Wrote what of it has become meaningful.
func (r *Request) WriteVec(dst [][]byte, off, n int) [][]byte {
	r.touch(off, n)
	return clip(dst, r.writable, off, n)
}

func clip(dst, segs [][]byte, off, n int) [][]byte {
	for _, s := range segs {
		if n <= 0 {
			break
		}
		if off >= len(s) {
			off -= len(s)
			continue
		}
		s = s[off:]
		off = 0
		if len(s) > n {
			s = s[:n:n]
		}
		dst = append(dst, s)
		n -= len(s)
	}
	return dst
}

// WriteAt copies p to the device-writable room at off, records it as written
// and returns how many bytes had room.
func (r *Request) WriteAt(p []byte, off int) int {
	start, n := off, 0
	for _, s := range r.writable {
		if off >= len(s) {
			off -= len(s)
			continue
		}
		n += copy(s[off:], p[n:])
		off = 0
		if n == len(p) {
			break
		}
	}
	r.Wrote(start, n)
	return n
}

// Zero clears [off, off+n) of the device-writable room, clipped, and records it
// as zeroes.
func (r *Request) Zero(off, n int) {
	n = min(n, r.writeLen-off)
	if n <= 0 {
		return
	}
	var few [8][]byte
	for _, s := range r.WriteVec(few[:0], off, n) {
		clear(s)
	}
	r.add(Extent{Off: off, Len: n, Zero: true})
}

// Wrote records that the half has filled [off, off+n) by way of WriteVec.
func (r *Request) Wrote(off, n int) {
	n = min(n, r.writeLen-off)
	if n <= 0 {
		return
	}
	r.touch(off, n)
	r.add(Extent{Off: off, Len: n})
}

func (r *Request) add(e Extent) {
	if k := len(r.extents); k > 0 {
		if last := &r.extents[k-1]; last.Zero == e.Zero && last.Off+last.Len == e.Off {
			last.Len += e.Len
			return
		}
	}
	r.extents = append(r.extents, e)
}

func (r *Request) touch(off, n int) {
	n = min(n, r.writeLen-off)
	if n <= 0 {
		return
	}
	if r.touched.hi == 0 {
		r.touched = span{off, off + n}
		return
	}
	r.touched.lo = min(r.touched.lo, off)
	r.touched.hi = max(r.touched.hi, off+n)
}

// Touched is the smallest range of device-writable bytes that holds all that
// may have been written. The transport half marks it dirty.
func (r *Request) Touched() (off, n int) { return r.touched.lo, r.touched.hi - r.touched.lo }

// Extents lists what was written, in the order of writing; later ones win where
// they overlap. Borrowed until the request ends.
func (r *Request) Extents() []Extent { return r.extents }

// SetUsed sets the used length that the driver will see: the number of bytes,
// from the start of the device-writable part, that the device has written.
// It is clipped to the room there is.
func (r *Request) SetUsed(n int) { r.used = uint32(max(0, min(n, r.writeLen))) }

// Used is the length set by SetUsed.
func (r *Request) Used() uint32 { return r.used }

// Complete ends the request with used length n. See Channel.Complete for
// several at once.
func (r *Request) Complete(n int) {
	r.SetUsed(n)
	r.channel.Complete(r.self[:])
}

// Return gives the request back unused.
func (r *Request) Return() { r.channel.Return(r.self[:]) }

// Fail ends the request in the queue's failure form, in place of the half's
// own error reporting: for a channel whose other side is gone.
func (r *Request) Fail(f Failure, reason error) {
	switch {
	case f.Form == FailStatus && r.writeLen > 0:
		r.WriteAt([]byte{f.Status}, r.writeLen-1)
		r.Complete(0) // a lower bound of what was written from the start on (2.7.8.2)
	case f.Form == FailDrop:
		r.Complete(0)
	default:
		r.channel.NeedsReset(reason)
	}
}
