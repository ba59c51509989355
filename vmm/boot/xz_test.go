package boot

import (
	"bufio"
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"
)

// branchy is deterministic content that is full of what the branch filter looks
// at: opcodes, sign bytes, and opcodes inside the targets of others.
func branchy(n int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	often := []byte{0xE8, 0xE9, 0x00, 0xFF, 0xE8, 0x00}
	b := make([]byte, n)
	for i := range b {
		if b[i] = often[rng.IntN(len(often))]; rng.IntN(3) == 0 {
			b[i] = byte(rng.Uint32())
		}
	}
	return b
}

func unxz(compressed []byte, unpackedBytes int64) ([]byte, error) {
	r, _, err := openXZ(bufio.NewReader(bytes.NewReader(compressed)), unpackedBytes)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// The golden file was made by xz 5.4 with --x86 --lzma2 --check=crc32 from branchy(6000).
func TestXZBranchFilterGolden(t *testing.T) {
	compressed, err := os.ReadFile("testdata/branchy-x86.xz")
	if err != nil {
		t.Fatal(err)
	}
	got, err := unxz(compressed, 6000)
	if err != nil || !bytes.Equal(got, branchy(6000)) {
		t.Errorf("%d bytes, %v: not the content", len(got), err)
	}
}

// Whatever form the xz tool writes is read.
func TestXZTool(t *testing.T) {
	if _, err := exec.LookPath("xz"); err != nil {
		t.Skip("no xz tool here (Debian package xz-utils)")
	}
	code, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Skipf("no machine code at hand: %v", err)
	}
	code = code[:min(len(code), 256<<10)]
	for _, args := range []string{
		"--check=crc32 --x86 --lzma2=preset=1", // as Linux's build does
		"--check=crc32 --x86=start=4096 --lzma2=preset=1",
		"--check=crc64 -1", "--check=sha256 -1", "--check=none -1",
		"--check=crc32 --block-size=90000 --x86 --lzma2=preset=1",
		"--check=crc32 -1 -T2 --block-size=100000",
	} {
		for _, content := range [][]byte{code, branchy(100_000), {0xE8}, []byte("\xE8\x00\x00\x00\x00")} {
			cmd := exec.Command("xz", append(strings.Fields(args), "-c", "--format=xz")...)
			cmd.Stdin = bytes.NewReader(content)
			compressed, err := cmd.Output()
			if err != nil {
				t.Fatalf("xz %s: %v", args, err)
			}
			got, err := unxz(compressed, int64(len(content)))
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("xz %s of %d bytes: %d bytes, %v", args, len(content), len(got), err)
			}
		}
	}
}

func TestXZOtherFilters(t *testing.T) {
	if _, err := exec.LookPath("xz"); err != nil {
		t.Skip("no xz tool here (Debian package xz-utils)")
	}
	for args, want := range map[string]string{
		"--arm --lzma2=preset=1":                "filter 1 of 2 has ID 0x7",
		"--delta=dist=1 --x86 --lzma2=preset=1": "filter 1 of 3 has ID 0x3",
	} {
		cmd := exec.Command("xz", append(strings.Fields(args), "-c")...)
		cmd.Stdin = strings.NewReader("content")
		compressed, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		_, err = unxz(compressed, 7)
		wantError(t, err, want)
	}
}

// The filter gives the same whether its input comes in one piece or byte by byte.
func TestBranchFilterPieces(t *testing.T) {
	content := branchy(200_000)
	whole, err := io.ReadAll(&x86Reader{r: bytes.NewReader(content)})
	if err != nil {
		t.Fatal(err)
	}
	pieces, err := io.ReadAll(&x86Reader{r: iotest.OneByteReader(bytes.NewReader(content))})
	if err != nil || !bytes.Equal(whole, pieces) {
		t.Errorf("they differ (%v)", err)
	}
}

func TestXZTruncated(t *testing.T) {
	compressed, err := os.ReadFile("testdata/branchy-x86.xz")
	if err != nil {
		t.Fatal(err)
	}
	for n := range compressed {
		if got, err := unxz(compressed[:n], 6000); err == nil {
			t.Fatalf("%d of %d bytes give %d bytes and no error", n, len(compressed), len(got))
		}
	}
}

func FuzzXZ(f *testing.F) {
	compressed, err := os.ReadFile("testdata/branchy-x86.xz")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(compressed)
	f.Add(pack(f, "xz", []byte("content")))
	f.Add([]byte(xzMagic))
	f.Fuzz(func(t *testing.T, compressed []byte) {
		r, _, err := openXZ(bufio.NewReader(bytes.NewReader(compressed)), 1<<20)
		if err == nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(r, 1<<20))
		}
	})
}

func FuzzBranchFilter(f *testing.F) {
	f.Add(branchy(100), uint8(3))
	f.Add([]byte{0xE8, 0xE8, 0x00, 0xFF, 0x00, 0xE9, 0x00}, uint8(1))
	f.Fuzz(func(t *testing.T, content []byte, piece uint8) {
		whole, err := io.ReadAll(&x86Reader{r: bytes.NewReader(content)})
		if err != nil || len(whole) != len(content) {
			t.Fatalf("%d of %d bytes, %v", len(whole), len(content), err)
		}
		r := &x86Reader{r: bytes.NewReader(content)}
		var got []byte
		p := make([]byte, int(piece)+1)
		for {
			n, err := r.Read(p)
			got = append(got, p[:n]...)
			if err != nil {
				break
			}
		}
		if !bytes.Equal(got, whole) {
			t.Error("reading in pieces gives something else")
		}
	})
}
