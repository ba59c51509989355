package lab

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestConfigDefaults(t *testing.T) {
	dir := t.TempDir()
	cfg, err := Config{CacheDir: dir, Binary: "/bin/x", ResultDir: filepath.Join(dir, "r"), Packages: []string{"zstd", "bash"}}.complete()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.CPUs != 2 || cfg.MemoryMiB != 4096 || cfg.Name != "lab" || cfg.KernelPackage != DefaultKernelPackage {
		t.Errorf("%+v", cfg)
	}
	if !slices.IsSorted(cfg.Packages) || len(cfg.Packages) != len(defaultPackages)+1 {
		t.Errorf("packages: %q", cfg.Packages)
	}
	if !slices.Equal(cfg.Files, []File{{Source: "/bin/x", Path: "bin/peervisor"}}) {
		t.Errorf("files: %v", cfg.Files)
	}
	if !slices.Equal(cfg.Shares, []Share{{Source: dir, Target: dir, ReadOnly: true}, {Source: dir + "/r", Target: ResultsMount}}) {
		t.Errorf("shares: %v", cfg.Shares)
	}
}

func TestConfigErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "no cache directory"},
		{Config{CPUs: -1}, "-1 CPUs"},
		{Config{CPUs: maxCPUs + 1}, "CPUs"},
		{Config{MemoryMiB: 16}, "16 MiB"},
		{Config{Name: "a b"}, `name "a b"`},
		{Config{Name: "-a"}, `name "-a"`},
		{Config{Packages: []string{"--purge"}}, `package "--purge"`},
		{Config{Packages: []string{"bash-"}}, `package "bash-"`},
		{Config{Packages: []string{"bash+"}}, `package "bash+"`},
		{Config{Packages: []string{"a/b"}}, `package "a/b"`},
		{Config{Packages: []string{""}}, `package ""`},
		{Config{Files: []File{{Source: "x", Path: "../x"}}}, `"../x"`},
		{Config{Files: []File{{Source: "x", Path: "/x"}}}, `"/x"`},
		{Config{Files: []File{{Source: "x", Path: "a//x"}}}, `"a//x"`},
		{Config{Shares: []Share{{Source: dir, Target: "work"}}}, `"work"`},
		{Config{Shares: []Share{{Source: dir, Target: "/"}}}, `"/"`},
		{Config{Shares: []Share{{Source: dir, Target: "/a\x00b"}}}, "NUL"},
		{Config{Shares: []Share{{Source: dir, Target: "/usr"}}}, "would hide /usr/bin"},
		{Config{Shares: []Share{{Source: dir, Target: "/etc"}}}, "would hide /etc"},
		{Config{Shares: []Share{{Source: dir, Target: "/opt"}}}, "would hide /opt/peervisor"},
		{Config{Shares: []Share{{Source: filepath.Join(dir, "none"), Target: "/a"}}}, "no such file"},
		{Config{Shares: []Share{{Source: file, Target: "/a"}}}, "not a directory"},
	} {
		if c.want != "no cache directory" {
			c.cfg.CacheDir = dir
		}
		if _, err := c.cfg.complete(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, expected %q in it", c.cfg, err, c.want)
		}
	}
	for _, name := range []string{"g++", "libstdc++6", "qemu-system-x86", "linux-image-6.1.0-56-amd64"} {
		if !validPackageName(name) {
			t.Errorf("package %q is refused", name)
		}
	}
}
