package kernel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// maxResolve bounds how many metapackages lead to an image.
const maxResolve = 4

// aptPackage is what apt says about the version of a package that it would install.
type aptPackage struct {
	name, version string
	depends       []string // names only; of alternatives, the first
}

// aptRun runs one of apt's programs in dir and returns what it printed. It runs in the
// C locale: the words are for us and for error messages.
func aptRun(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	switch {
	case err == nil:
		return stdout.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("run %s: %w", program, context.Cause(ctx))
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("run %s: not installed: packages are fetched with apt, on Debian or a system made from it", program)
	}
	return nil, fmt.Errorf("run %s: %w: %s", program, err, aptComplaint(stderr.Bytes()))
}

// aptComplaint is the first error line of what apt printed.
func aptComplaint(stderr []byte) string {
	s := bufio.NewScanner(bytes.NewReader(stderr))
	last := ""
	for s.Scan() {
		if line, ok := strings.CutPrefix(s.Text(), "E: "); ok {
			return line
		}
		last = s.Text()
	}
	return last
}

// aptShow asks apt for the candidate version of a package.
func aptShow(ctx context.Context, name string) (*aptPackage, error) {
	if !validPackageName(name) {
		return nil, fmt.Errorf("package %q: not the name of a Debian package", name)
	}
	out, err := aptRun(ctx, "", "apt-cache", "show", "--no-all-versions", name)
	if err != nil && (ctx.Err() != nil || !strings.Contains(err.Error(), "No packages found")) {
		return nil, err
	}
	pkg := parseControl(out)
	if err != nil || pkg.version == "" {
		return nil, fmt.Errorf("package %s: apt does not know it: if its lists are missing or old, run `apt-get update`, else check the name", name)
	}
	return pkg, nil
}

// validPackageName follows Debian policy 5.6.7. It also keeps options and paths
// away from apt's command line.
func validPackageName(name string) bool {
	for i, c := range name {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case i > 0 && strings.ContainsRune("+-.", c):
		default:
			return false
		}
	}
	return len(name) >= 2
}

// parseControl reads the first stanza of apt-cache's output.
func parseControl(stanza []byte) *aptPackage {
	pkg := &aptPackage{}
	s := bufio.NewScanner(bytes.NewReader(stanza))
	s.Buffer(nil, 1<<20)
	for s.Scan() && s.Text() != "" {
		key, value, ok := strings.Cut(s.Text(), ": ")
		if !ok {
			continue
		}
		switch key {
		case "Package":
			pkg.name = value
		case "Version":
			pkg.version = value
		case "Depends", "Pre-Depends":
			for _, dep := range strings.Split(value, ",") {
				dep, _, _ = strings.Cut(strings.TrimSpace(dep), "|")
				if fields := strings.Fields(dep); len(fields) > 0 {
					name, _, _ := strings.Cut(fields[0], ":") // an architecture
					pkg.depends = append(pkg.depends, name)
				}
			}
		}
	}
	return pkg
}

// resolveImage follows metapackages to the package that has the files of a kernel.
func resolveImage(ctx context.Context, name string) (*aptPackage, error) {
	seen := []string{}
	for range maxResolve {
		pkg, err := aptShow(ctx, name)
		if err != nil {
			return nil, err
		}
		next := ""
		for _, dep := range pkg.depends {
			if strings.HasPrefix(dep, "linux-image-") {
				next = dep
				break
			}
		}
		if next == "" {
			return pkg, nil
		}
		seen = append(seen, name)
		name = next
	}
	return nil, fmt.Errorf("package %s: leads from one metapackage to the next (%s)", seen[0], strings.Join(seen, ", "))
}

// aptDownload fetches one version of a package into dir and returns the file.
// apt checks it against the signed lists.
func aptDownload(ctx context.Context, dir string, pkg *aptPackage) (string, error) {
	_, err := aptRun(ctx, dir, "apt-get", "download", "-qq",
		"-o", "Acquire::Retries=3",
		// As root apt would drop to a user who cannot write here, and complain.
		"-o", "APT::Sandbox::User=root",
		pkg.name+"="+pkg.version)
	if err != nil {
		return "", fmt.Errorf("download package %s=%s (if the version is no longer there, run `apt-get update`): %w", pkg.name, pkg.version, err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(files) != 1 {
		return "", fmt.Errorf("download package %s=%s: apt left %d files", pkg.name, pkg.version, len(files))
	}
	return files[0], nil
}
