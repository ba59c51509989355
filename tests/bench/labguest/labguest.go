// Package labguest makes what the guests of the lab's benchmarks boot: copies of
// a Debian kernel that say when they are entered, and initramfs with an init that says
// when user space is reached or what iperf3 measured.
package labguest

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/cavaliergopher/cpio"
)

// Stamps are the bytes that a guest writes to COM1.
const (
	EntryStamp = 2 // the kernel's first instructions
	InitStamp  = 3 // PID 1's first system calls
)

//go:embed guest/init.c
var initSource []byte

//go:embed guest/net.sh
var netInit []byte

// BuildBootInitrd writes the initramfs at base to out, with an init that writes
// InitStamp and waits.
func BuildBootInitrd(ctx context.Context, base, out string) error {
	dir := filepath.Dir(out)
	src, bin := filepath.Join(dir, "init.c"), filepath.Join(dir, "init")
	if err := os.WriteFile(src, initSource, 0o644); err != nil {
		return fmt.Errorf("build boot init: %w", err)
	}
	cc := exec.CommandContext(ctx, "gcc", "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector",
		"-fno-asynchronous-unwind-tables", "-fno-pie", "-no-pie", "-s", "-o", bin, src)
	if text, err := cc.CombinedOutput(); err != nil {
		return fmt.Errorf("build boot init: %w: %s", err, text)
	}
	init, err := os.ReadFile(bin)
	if err != nil {
		return fmt.Errorf("build boot init: %w", err)
	}
	return withInit(base, out, init)
}

// BuildNetInitrd writes the initramfs at base to out, with an init that runs
// iperf3 both ways and prints what it says on ttyS0.
func BuildNetInitrd(base, out string) error { return withInit(base, out, netInit) }

// withInit appends a second archive, whose /init replaces the first one's: Linux
// unpacks archives in order.
func withInit(base, out string, init []byte) (err error) {
	in, err := os.Open(base)
	if err != nil {
		return fmt.Errorf("build initramfs: %w", err)
	}
	defer in.Close()
	f, err := os.Create(out)
	if err != nil {
		return fmt.Errorf("build initramfs: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("build initramfs: %w", cerr)
		}
	}()
	n, err := io.Copy(f, in)
	if err == nil {
		_, err = f.Write(make([]byte, -n&3)) // archives start at multiples of four bytes
	}
	w := cpio.NewWriter(f)
	if err == nil {
		err = w.WriteHeader(&cpio.Header{Name: "init", Mode: cpio.TypeReg | 0o755, Size: int64(len(init)), Links: 1})
	}
	if err == nil {
		_, err = w.Write(init)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return fmt.Errorf("build initramfs: %w", err)
	}
	return nil
}
