package bare

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed guest
var sources embed.FS

// compiler is the command that Build runs, with gcc's options.
const compiler = "gcc"

// flags: ring 3 on any x86-64 with POPCNT, no library, fixed addresses, nothing
// that wants a runtime (stack protector, unwind tables, CET). Loops stay
// loops: memset and memcpy must not be compiled into calls of themselves.
var flags = []string{
	"-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror",
	"-ffreestanding", "-fno-pic", "-fno-pie", "-mcmodel=small", "-mno-red-zone", "-mpopcnt",
	"-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none",
	"-fno-tree-loop-distribute-patterns",
	"-nostdlib", "-static", "-no-pie", "-Wl,-T,bare.ld", "-Wl,--build-id=none", "-Wl,--no-warn-rwx-segments",
}

// ErrNoCompiler is wrapped by Build where gcc is not installed.
var ErrNoCompiler = errors.New("gcc is not installed (Debian: apt-get install gcc)")

// Build makes the guest's ELF in dir, which is created if missing, and returns
// its path. The name has a hash of the sources, the flags and the compiler's
// version; a file that is there already is used as it is. Builds at the same
// time, also in other processes, do not disturb each other.
func Build(dir string) (string, error) {
	gcc, err := exec.LookPath(compiler)
	if err != nil {
		return "", fmt.Errorf("build bare guest: %w", ErrNoCompiler)
	}
	sum, err := contentHash(gcc)
	if err != nil {
		return "", fmt.Errorf("build bare guest: %w", err)
	}
	out := filepath.Join(dir, "bare-"+sum+".elf")
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("build bare guest: %w", err)
	}
	tmp, err := os.MkdirTemp(dir, ".bare-")
	if err != nil {
		return "", fmt.Errorf("build bare guest: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := compile(gcc, tmp); err != nil {
		return "", fmt.Errorf("build bare guest: %w", err)
	}
	if err := os.Rename(filepath.Join(tmp, "bare.elf"), out); err != nil {
		return "", fmt.Errorf("build bare guest: %w", err)
	}
	return out, nil
}

func contentHash(gcc string) (string, error) {
	version, err := exec.Command(gcc, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", gcc, err)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q %q\n", version, flags)
	err = fs.WalkDir(sources, "guest", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := sources.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n%s", path, len(b), b)
		return err
	})
	return hex.EncodeToString(h.Sum(nil))[:16], err
}

// compile unpacks the sources into dir and leaves bare.elf there.
func compile(gcc, dir string) error {
	entries, err := sources.ReadDir("guest")
	if err != nil {
		return err
	}
	args := append([]string{"-o", "bare.elf"}, flags...)
	for _, e := range entries {
		b, err := sources.ReadFile("guest/" + e.Name())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, e.Name()), b, 0o644); err != nil {
			return err
		}
		if ext := filepath.Ext(e.Name()); ext == ".c" || ext == ".S" {
			args = append(args, e.Name())
		}
	}
	cmd := exec.Command(gcc, args...)
	cmd.Dir = dir
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", gcc, err, strings.TrimSpace(string(text)))
	}
	return nil
}
