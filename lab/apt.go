package lab

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// aptState is what apt's answers depend on besides the question.
const (
	aptListsDir = "/var/lib/apt/lists"
	aptConfDir  = "/etc/apt"
)

// maxClosure bounds how many packages a root is made of.
const maxClosure = 4000

// debFile is one package of the closure, as apt would download it.
type debFile struct {
	// Name is the file's name, which has package, version and architecture.
	Name string `json:"name"`
	// Hash is "SHA256:…", from the signed lists.
	Hash string `json:"hash"`
}

// apt asks apt as if nothing were installed on this machine: its answers are about
// the lab's root, and neither read nor change the machine's own package state.
type apt struct {
	dir string // its state and downloads
}

// newApt makes an empty apt state in dir.
func newApt(dir string) (*apt, error) {
	a := &apt{dir: dir}
	if err := os.MkdirAll(filepath.Join(a.archives(), "partial"), 0o755); err != nil {
		return nil, fmt.Errorf("prepare apt: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "status"), nil, 0o644); err != nil {
		return nil, fmt.Errorf("prepare apt: %w", err)
	}
	return a, nil
}

func (a *apt) archives() string { return filepath.Join(a.dir, "cache", "archives") }

// install runs apt-get install with the closure's packages as goal.
func (a *apt) install(ctx context.Context, packages []string, opts ...string) ([]byte, error) {
	args := []string{
		"-qq", "-y", "--no-install-recommends",
		"-o", "Dir::State::status=" + filepath.Join(a.dir, "status"),
		"-o", "Dir::State::extended_states=" + filepath.Join(a.dir, "extended_states"),
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "Dir::Cache::archives=archives",
		// The lists are only read, and the rest is ours.
		"-o", "Debug::NoLocking=1",
		"-o", "Acquire::ForceHash=SHA256",
		"-o", "Acquire::Retries=3",
		// As root apt would drop to a user who cannot write here.
		"-o", "APT::Sandbox::User=root",
	}
	args = append(args, opts...)
	args = append(args, "install")
	return runTool(ctx, a.dir, "apt-get", append(args, packages...)...)
}

// resolve returns the closure of packages, in the order of file names.
func (a *apt) resolve(ctx context.Context, packages []string) ([]debFile, error) {
	out, err := a.install(ctx, packages, "--print-uris")
	if err != nil {
		return nil, fmt.Errorf("find the lab's packages (if apt's lists are missing or old, run `apt-get update`): %w", unavailable(ctx, err))
	}
	files, err := parseURIs(out)
	if err != nil {
		return nil, fmt.Errorf("find the lab's packages: %w", err)
	}
	return files, nil
}

// download fetches files, which resolve returned for packages. apt checks them
// against the signed lists.
func (a *apt) download(ctx context.Context, packages []string, files []debFile) ([]string, error) {
	if _, err := a.install(ctx, packages, "--download-only"); err != nil {
		return nil, fmt.Errorf("download the lab's packages (if a version is no longer there, run `apt-get update`): %w", unavailable(ctx, err))
	}
	paths := make([]string, len(files))
	for i, f := range files {
		paths[i] = filepath.Join(a.archives(), f.Name)
		if _, err := os.Stat(paths[i]); err != nil {
			return nil, fmt.Errorf("download the lab's packages: apt left one out: %w", err)
		}
	}
	return paths, nil
}

// unavailable marks err as a lack of this machine, unless the caller gave up.
func unavailable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// parseURIs reads lines "'URI' FILE SIZE HASH:VALUE".
func parseURIs(out []byte) ([]debFile, error) {
	var files []debFile
	s := bufio.NewScanner(bytes.NewReader(out))
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 4 || !strings.HasPrefix(fields[0], "'") || !strings.HasPrefix(fields[3], "SHA256:") {
			return nil, fmt.Errorf("apt-get --print-uris: unexpected line %.200q", s.Text())
		}
		// The name becomes a path and an argument. apt writes it as it names the file.
		name := fields[1]
		if !strings.HasSuffix(name, ".deb") || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, "-") {
			return nil, fmt.Errorf("apt-get --print-uris: %.200q is not the name of a package file", name)
		}
		if _, err := url.PathUnescape(name); err != nil {
			return nil, fmt.Errorf("apt-get --print-uris: %.200q is not the name of a package file", name)
		}
		files = append(files, debFile{Name: name, Hash: fields[3]})
		if len(files) > maxClosure {
			return nil, fmt.Errorf("apt-get --print-uris: more than %d packages", maxClosure)
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("apt-get --print-uris: %w", err)
	}
	if len(files) == 0 {
		return nil, errors.New("apt-get --print-uris: no package")
	}
	slices.SortFunc(files, func(a, b debFile) int { return cmp.Compare(a.Name, b.Name) })
	return files, nil
}

// aptStamp names the state of apt's lists and sources: while it is the same, so are
// apt's answers. It reads names, sizes and times, which takes a millisecond;
// asking apt takes seconds.
func aptStamp(dirs ...string) (string, error) {
	h := sha256.New()
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.Name() == "partial" || d.Name() == "lock" || d.Name() == "auxfiles" {
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if !d.IsDir() {
				fmt.Fprintf(h, "%q %d %d\n", p, info.Size(), info.ModTime().UnixNano())
			}
			return nil
		})
		// A file that goes away meanwhile is a change that the next Start sees.
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("look at apt's lists: %w", err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// runTool runs a program of the system in dir and returns what it printed. It runs in
// the C locale: the words are for us and for error messages.
func runTool(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	file, err := findTool(program)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, file, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, toolError(ctx, program, err, stderr.Bytes())
	}
	return stdout.Bytes(), nil
}

func toolError(ctx context.Context, program string, err error, stderr []byte) error {
	if ctx.Err() != nil {
		return fmt.Errorf("run %s: %w", program, context.Cause(ctx))
	}
	return fmt.Errorf("run %s: %w: %s", program, err, complaint(stderr))
}

// findTool looks in PATH, and where Debian keeps what only root is thought to need.
func findTool(program string) (string, error) {
	file, err := exec.LookPath(program)
	if err == nil {
		return file, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if file, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return file, nil
		}
	}
	pkg := map[string]string{"mke2fs": "e2fsprogs", "dpkg-deb": "dpkg", "apt-get": "apt", qemuProgram: "qemu-system-x86"}[program]
	return "", fmt.Errorf("run %s: %w: not installed (Debian package %s)", program, ErrUnavailable, cmp.Or(pkg, program))
}

// complaint is the first error line that apt printed, or else the last line.
func complaint(stderr []byte) string {
	last := ""
	s := bufio.NewScanner(bytes.NewReader(stderr))
	for s.Scan() {
		if line, ok := strings.CutPrefix(s.Text(), "E: "); ok {
			return line
		}
		if line := strings.TrimSpace(s.Text()); line != "" {
			last = line
		}
	}
	return last
}
