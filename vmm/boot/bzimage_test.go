package boot

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// pack compresses a kernel as Linux's build does, without the trailer that all
// but gzip need.
func pack(t testing.TB, format string, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch format {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "xz":
		w, err = xz.WriterConfig{CheckSum: xz.CRC32}.NewWriter(&b)
	case "lz4":
		z := lz4.NewWriter(&b)
		err = z.Apply(lz4.LegacyOption(true))
		w = z
	case "zstd":
		w, err = zstd.NewWriter(&b)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// testBzImage wraps a kernel in a bzImage with protocol 2.15.
func testBzImage(t testing.TB, format string, kernel []byte) []byte {
	t.Helper()
	payload := pack(t, format, kernel)
	if format != "gzip" {
		payload = binary.LittleEndian.AppendUint32(payload, uint32(len(kernel)))
	}
	return wrapPayload(payload)
}

func wrapPayload(payload []byte) []byte {
	le := binary.LittleEndian
	const sects, stub = 1, 100 // one setup sector, then the unpacker's code
	b := make([]byte, (sects+1)*sectorBytes+stub)
	b[setup_sects] = sects
	le.PutUint16(b[boot_flag:], bootFlag)
	b[0x200], b[setup_jump] = 0xEB, 0x6A
	copy(b[header_magic:], headerMagic)
	le.PutUint16(b[boot_version:], 0x020F)
	b[loadflags] = loadedHigh
	le.PutUint16(b[xloadflags:], xlfKernel64)
	le.PutUint32(b[initrd_max:], 0x7FFF_FFFF)
	le.PutUint32(b[cmdline_size:], 2047)
	le.PutUint32(b[payload_offset:], stub)
	le.PutUint32(b[payload_length:], uint32(len(payload)))
	return append(append(b, payload...), "certificates follow"...)
}

func TestUnpack(t *testing.T) {
	kernel := append(pvhKernel(), make([]byte, 100_000)...) // the relocations that follow the ELF
	for _, format := range []string{"gzip", "xz", "lz4", "zstd"} {
		t.Run(format, func(t *testing.T) {
			bz := testBzImage(t, format, kernel)
			r, got, err := Unpack(bytes.NewReader(bz), int64(len(bz)))
			if err != nil || got != format {
				t.Fatalf("format %q, %v", got, err)
			}
			content, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(content, kernel) {
				t.Errorf("%d bytes, want %d; %v", len(content), len(kernel), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			m := newMemory(t, 4<<20)
			if e, err := Load(m, source(bz), 0xE_0000); err != nil || e.RIP != testBase+16 {
				t.Errorf("load: entry %#x, %v", e.RIP, err)
			}
			if !bytes.Equal(bytesAt(t, m, testBase, 5000), bytes.Repeat([]byte{0x90}, 5000)) {
				t.Error("load: the segment's bytes are not in memory")
			}
		})
	}
}

func TestBzImageRefused(t *testing.T) {
	le := binary.LittleEndian
	edited := func(edit func(b []byte)) []byte {
		b := testBzImage(t, "gzip", linuxKernel())
		edit(b)
		return b
	}
	for _, c := range []struct {
		name   string
		kernel []byte
		want   string
	}{
		{"old protocol", edited(func(b []byte) { le.PutUint16(b[boot_version:], 0x0204) }), "kernel k: a Linux image with boot protocol 2.04: want 2.08 or newer"},
		{"zImage", edited(func(b []byte) { b[loadflags] = 0 }), "kernel k: a Linux zImage: want a bzImage"},
		{"32 bit", edited(func(b []byte) { b[xloadflags] = 0 }), "kernel k: a 32-bit Linux bzImage: want a 64-bit one"},
		{"payload beyond the file", edited(func(b []byte) { le.PutUint32(b[payload_length:], 1<<30) }), "a Linux bzImage with its payload at 0x464, 1073741824 bytes: the file has"},
		{"offset beyond the file", edited(func(b []byte) { le.PutUint32(b[payload_offset:], 1<<32-1) }), "a Linux bzImage with its payload at"},
		{"no payload", edited(func(b []byte) { le.PutUint32(b[payload_length:], 0) }), "a Linux bzImage with its payload at"},
		{"bzip2", wrapPayload([]byte("BZh91AY&SY....\x00\x01\x00\x00")), "kernel k: a Linux bzImage compressed with bzip2: only gzip, xz, lz4 and zstd can be unpacked"},
		{"lzma", wrapPayload([]byte("\x5d\x00\x00\x80\x00.........\x00\x01\x00\x00")), "compressed with lzma:"},
		{"lzo", wrapPayload([]byte("\x89LZO\x00\x0d\x0a\x1a...\x00\x01\x00\x00")), "compressed with lzo:"},
		{"unknown", wrapPayload([]byte("neither of these\x00\x01\x00\x00")), `an unknown payload (starts with "neithe"): want gzip, xz, lz4 or zstd`},
		{"unpacks to 2 GiB", wrapPayload([]byte("\x1f\x8b..............\x00\x00\x00\x80")), "whose kernel unpacks to 2147483648 bytes: want 64 to 1073741824"},
		{"unpacks to nothing", wrapPayload([]byte("\x1f\x8b..............\x00\x00\x00\x00")), "unpacks to 0 bytes"},
		{"no gzip", wrapPayload([]byte("\x1f\x8b..............\x00\x01\x00\x00")), "kernel k: unpack gzip: "},
		{"not an ELF inside", testBzImage(t, "lz4", bytes.Repeat([]byte("not a kernel"), 100)), `kernel k: in its lz4 payload: not an ELF file (starts with "not ")`},
		{"arm64 inside", testBzImage(t, "zstd", func() []byte { k := linuxKernel(); le.PutUint16(k[18:], 183); return k }()), "in its zstd payload: an ELF file for machine 183"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Load(newMemory(t, 4<<20), source(c.kernel), 0xE_0000)
			wantError(t, err, c.want)
		})
	}
}

// The trailer must tell the truth, in both directions.
func TestTrailer(t *testing.T) {
	kernel := append(linuxKernel(), make([]byte, 100)...) // the ELF itself is whole
	for _, format := range []string{"xz", "lz4", "zstd"} {
		for _, delta := range []int{-1, 1} {
			payload := binary.LittleEndian.AppendUint32(pack(t, format, kernel), uint32(len(kernel)+delta))
			bz := wrapPayload(payload)
			_, err := Load(newMemory(t, 4<<20), source(bz), 0xE_0000)
			wantError(t, err, "its trailer says")
		}
	}
}

// Every damaged or cut payload gives an error or the same kernel, never another one.
func TestDamagedPayload(t *testing.T) {
	kernel := pvhKernel()
	for _, format := range []string{"gzip", "xz"} { // these two always have a checksum
		bz := testBzImage(t, format, kernel)
		start := len(bz) - len("certificates follow") - len(pack(t, format, kernel))
		for i := start; i < len(bz)-len("certificates follow"); i++ {
			damaged := bytes.Clone(bz)
			damaged[i] ^= 0x10
			r, _, err := Unpack(bytes.NewReader(damaged), int64(len(damaged)))
			if err != nil {
				continue
			}
			got, err := io.ReadAll(r)
			if err == nil && !bytes.Equal(got, kernel) {
				t.Fatalf("%s: byte %d changed gives another kernel of %d bytes", format, i, len(got))
			}
		}
	}
}

func TestUnpackAfterClose(t *testing.T) {
	bz := testBzImage(t, "zstd", linuxKernel())
	r, _, err := Unpack(bytes.NewReader(bz), int64(len(bz)))
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	if n, err := r.Read(make([]byte, 10)); n != 0 || err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read after close: %d, %v", n, err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

// A real kernel, if one is named: unpacks, loads, and is entered by PVH.
func TestRealKernel(t *testing.T) {
	name := os.Getenv("PEERVISOR_TEST_KERNEL")
	if name == "" {
		t.Skip("PEERVISOR_TEST_KERNEL names no bzImage")
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r, format, err := Unpack(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, r)
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	e, err := Load(newMemory(t, 512<<20), Source{Kernel: f, KernelSize: st.Size(), KernelName: name, Cmdline: "console=ttyS0"}, 0xE_0000)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s, %d bytes unpacked, entry by %v at %#x, ends at %#x", format, n, e.Protocol, e.RIP, e.KernelEnd)
}

func FuzzBzImage(f *testing.F) {
	for _, format := range []string{"gzip", "xz", "lz4", "zstd"} {
		f.Add(testBzImage(f, format, pvhKernel()))
	}
	f.Add(wrapPayload([]byte("BZh91AY&SY....\x00\x01\x00\x00")))
	m := newMemory(f, 4<<20)
	f.Fuzz(func(t *testing.T, kernel []byte) {
		if len(kernel) < bzHeaderBytes {
			return
		}
		// The marks are given, so that the fuzzer comes past them.
		kernel = bytes.Clone(kernel)
		binary.LittleEndian.PutUint16(kernel[boot_flag:], bootFlag)
		copy(kernel[header_magic:], headerMagic)
		_, _ = Load(m, source(kernel), 0xE_0000)
	})
}
