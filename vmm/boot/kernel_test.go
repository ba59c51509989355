package boot

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/peervisor/peervisor/memory"
)

// testSegment is a program header of a generated ELF file.
type testSegment struct {
	kind    uint32
	addr    uint64
	content []byte
	size    uint64 // in memory; 0: as long as content
}

// testELF generates a kernel; edit, if there, changes the bytes of the header.
func testELF(entry uint64, segs ...testSegment) []byte {
	le := binary.LittleEndian
	b := make([]byte, elfHeaderBytes+len(segs)*elfSegmentBytes)
	copy(b, elfMagic)
	b[4], b[5], b[6] = ELFCLASS64, ELFDATA2LSB, 1
	le.PutUint16(b[16:], ET_EXEC)
	le.PutUint16(b[18:], EM_X86_64)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], entry)
	le.PutUint64(b[32:], elfHeaderBytes)
	le.PutUint16(b[52:], elfHeaderBytes)
	le.PutUint16(b[54:], elfSegmentBytes)
	le.PutUint16(b[56:], uint16(len(segs)))
	for i, s := range segs {
		ph := b[elfHeaderBytes+i*elfSegmentBytes:]
		le.PutUint32(ph, s.kind)
		le.PutUint64(ph[8:], uint64(len(b)))
		le.PutUint64(ph[16:], s.addr)
		le.PutUint64(ph[24:], s.addr)
		le.PutUint64(ph[32:], uint64(len(s.content)))
		le.PutUint64(ph[40:], max(s.size, uint64(len(s.content))))
		b = append(b, s.content...)
	}
	return b
}

// testNote encodes one note.
func testNote(name string, kind uint32, desc []byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, uint32(len(name)+1))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, kind)
	pad := func() {
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	b = append(append(b, name...), 0)
	pad()
	b = append(b, desc...)
	pad()
	return b
}

func pvhNote(entry uint64) []byte {
	return testNote("Xen", XEN_ELFNOTE_PHYS32_ENTRY, binary.LittleEndian.AppendUint64(nil, entry))
}

const testBase = 0x10_0000

func pvhKernel() []byte {
	return testELF(testBase,
		testSegment{kind: PT_LOAD, addr: testBase, content: bytes.Repeat([]byte{0x90}, 5000), size: 20_000},
		testSegment{kind: PT_NOTE, content: pvhNote(testBase + 16)})
}

func linuxKernel() []byte {
	return testELF(testBase, testSegment{kind: PT_LOAD, addr: testBase, content: bytes.Repeat([]byte{0xF4}, 5000)})
}

func newMemory(t testing.TB, sizeBytes uint64) *memory.Memory {
	t.Helper()
	m, err := memory.New("test", memory.Layout(sizeBytes))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func source(kernel []byte) Source {
	return Source{Kernel: bytes.NewReader(kernel), KernelSize: int64(len(kernel)), KernelName: "k"}
}

func withInitrd(s Source, initrd []byte) Source {
	s.Initrd, s.InitrdSize, s.InitrdName = bytes.NewReader(initrd), int64(len(initrd)), "i"
	return s
}

func bytesAt(t *testing.T, m *memory.Memory, a memory.Addr, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if err := m.ReadAt(b, a); err != nil {
		t.Fatal(err)
	}
	return b
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want one with %q", err, want)
	}
	if err != nil && strings.Contains(err.Error(), "\n") {
		t.Errorf("the error has more than one line: %q", err)
	}
}

func TestLoadNames(t *testing.T) {
	small := linuxKernel()
	m := newMemory(t, 8<<20)
	for _, c := range []struct {
		name string
		src  Source
		want string
	}{
		{"qcow2", source([]byte("QFI\xfb\x00\x00\x00\x03")), `kernel k: neither an ELF file nor a Linux bzImage (starts with "QFI\xfb")`},
		{"empty", source(nil), "kernel k: it is empty"},
		{"one byte", source([]byte("x")), `kernel k: neither an ELF file nor a Linux bzImage (starts with "x")`},
		{"magic only", source([]byte(elfMagic)), "kernel k: an ELF file of 4 bytes: it ends inside its header of 64"},
		{"shrunk", Source{Kernel: bytes.NewReader(small[:2000]), KernelSize: int64(len(small)), KernelName: "k"}, "kernel k: ELF segment 0: read"},
		{"command line", Source{Kernel: bytes.NewReader(small), KernelSize: int64(len(small)), Cmdline: strings.Repeat("x", 2048)}, "kernel command line of 2048 bytes: this kernel takes at most 2047"},
		{"NUL", Source{Kernel: bytes.NewReader(small), KernelSize: int64(len(small)), Cmdline: "a\x00b"}, "kernel command line: it has a NUL byte at offset 1"},
		{"empty initrd", withInitrd(source(small), nil), "initrd i: it is empty"},
		{"wrong initrd", withInitrd(source(small), []byte("\x89PNG1234")), `initrd i: not an initramfs (starts with "\x89PNG"): want a cpio archive`},
		{"big initrd", withInitrd(source(small), append([]byte("070701"), make([]byte, 7<<20)...)), "initrd i: its 7340038 bytes do not fit between 0x100000 and 0x800000"},
		{"initrd over kernel", withInitrd(source(small), append([]byte("070701"), make([]byte, 7<<20-4096)...)), "give the guest more memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Load(m, c.src, 0xE_0000)
			wantError(t, err, c.want)
		})
	}
}

func TestLoadNeedsLowMemory(t *testing.T) {
	m, err := memory.New("test", []memory.Region{{Start: testBase, LenBytes: 4 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	_, err = Load(m, source(pvhKernel()), 0)
	wantError(t, err, "a kernel needs at least 2097152 at address 0")
}

// The segment's bytes are there, bss is not touched, and what was written is dirty.
func TestLoadSegments(t *testing.T) {
	kernel := pvhKernel()
	name := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(name, kernel, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	for _, src := range []Source{source(kernel), {Kernel: file, KernelSize: int64(len(kernel))}} {
		m := newMemory(t, 4<<20)
		e, err := Load(m, src, 0xE_0000)
		if err != nil {
			t.Fatal(err)
		}
		if e.KernelEnd != testBase+20_000 {
			t.Errorf("kernel ends at %#x", e.KernelEnd)
		}
		if !bytes.Equal(bytesAt(t, m, testBase, 5000), bytes.Repeat([]byte{0x90}, 5000)) {
			t.Error("the segment's bytes are not in memory")
		}
		dirty := make([]uint64, 16)
		if err := m.TakeDirty(0, dirty); err != nil {
			t.Fatal(err)
		}
		if dirty[4] != 3 { // pages 256 and 257 of 256..260
			t.Errorf("dirty pages of the kernel: %#x, want two", dirty[4])
		}
	}
}

// An ELF file without the note of PVH is entered by the 64-bit protocol.
func TestProtocolChoice(t *testing.T) {
	for _, c := range []struct {
		kernel []byte
		want   Protocol
	}{{pvhKernel(), PVH}, {linuxKernel(), Linux64}, {testBzImage(t, "gzip", pvhKernel()), PVH}, {testBzImage(t, "gzip", linuxKernel()), Linux64}} {
		e, err := Load(newMemory(t, 4<<20), source(c.kernel), 0xE_0000)
		if err != nil || e.Protocol != c.want {
			t.Errorf("got %v, %v, want %v", e.Protocol, err, c.want)
		}
	}
}

// docs/machine-v1.md: the initrd is page aligned and ends at the highest address
// that lies in RAM below 3 GiB and is allowed.
func TestInitrdPlacement(t *testing.T) {
	initrd := append([]byte("070701"), make([]byte, 5000)...)
	bz := testBzImage(t, "gzip", pvhKernel())
	binary.LittleEndian.PutUint32(bz[initrd_max:], 0x3F_FFFF)
	for _, c := range []struct {
		name      string
		ram       uint64
		kernel    []byte
		wantStart memory.Addr
	}{
		{"top of RAM", 16 << 20, pvhKernel(), 16<<20 - 8192},
		{"default limit of Linux", 4 << 30, pvhKernel(), 2<<30 - 8192},
		{"limit in the header", 16 << 20, bz, 4<<20 - 8192},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory(t, c.ram)
			e, err := Load(m, withInitrd(source(c.kernel), initrd), 0xE_0000)
			if err != nil {
				t.Fatal(err)
			}
			if e.InitrdStart != c.wantStart {
				t.Errorf("initrd at %#x, want %#x", e.InitrdStart, c.wantStart)
			}
			if !bytes.Equal(bytesAt(t, m, e.InitrdStart, len(initrd)), initrd) {
				t.Error("the initrd's bytes are not there")
			}
		})
	}
}

// A kernel that is not Linux may get any module.
func TestModuleOfOtherKernel(t *testing.T) {
	if _, err := Load(newMemory(t, 4<<20), withInitrd(source(pvhKernel()), []byte("anything")), 0xE_0000); err != nil {
		t.Error(err)
	}
}

// The command line goes to its place with a NUL; the limit is the kernel's.
func TestCmdline(t *testing.T) {
	m := newMemory(t, 4<<20)
	src := source(pvhKernel())
	src.Cmdline = "console=ttyS0"
	if _, err := Load(m, src, 0xE_0000); err != nil {
		t.Fatal(err)
	}
	if got := bytesAt(t, m, cmdlineAddr, 14); string(got) != "console=ttyS0\x00" {
		t.Errorf("got %q", got)
	}
	src.Cmdline = strings.Repeat("x", 65535)
	if _, err := Load(m, src, 0xE_0000); err != nil {
		t.Errorf("the whole room for a kernel without a limit: %v", err)
	}
	src.Cmdline += "x"
	_, err := Load(m, src, 0xE_0000)
	wantError(t, err, "takes at most 65535")

	bz := testBzImage(t, "gzip", pvhKernel())
	binary.LittleEndian.PutUint32(bz[cmdline_size:], 10)
	src = source(bz)
	src.Cmdline = "12345678901"
	_, err = Load(m, src, 0xE_0000)
	wantError(t, err, "kernel command line of 11 bytes: this kernel takes at most 10")
}

func BenchmarkLoad(b *testing.B) {
	kernel := testELF(16<<20,
		testSegment{kind: PT_LOAD, addr: 16 << 20, content: bytes.Repeat([]byte{0x90}, 40<<20)},
		testSegment{kind: PT_NOTE, content: pvhNote(16 << 20)})
	name := filepath.Join(b.TempDir(), "vmlinux")
	if err := os.WriteFile(name, kernel, 0o600); err != nil {
		b.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	run := func(src Source) func(b *testing.B) {
		return func(b *testing.B) {
			b.SetBytes(int64(len(kernel)))
			b.ReportAllocs()
			for b.Loop() {
				m, err := memory.New("bench", memory.Layout(128<<20))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := Load(m, src, 0xE_0000); err != nil {
					b.Fatal(err)
				}
				_ = m.Close()
			}
		}
	}
	b.Run("file", run(Source{Kernel: file, KernelSize: int64(len(kernel))}))
	b.Run("reader", run(source(kernel)))
}
