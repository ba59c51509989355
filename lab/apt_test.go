package lab

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const goodURIs = `'http://deb.debian.org/debian/pool/main/g/glibc/libc6_2.36-9%2bdeb12u14_amd64.deb' libc6_2.36-9+deb12u14_amd64.deb 2759320 SHA256:8d98f0
'http://deb.debian.org/debian/pool/main/q/qemu/qemu-utils_7.2_amd64.deb' qemu-utils_1%3a7.2_amd64.deb 5 SHA256:00

'http://deb.debian.org/debian/pool/main/b/bash/bash_5_amd64.deb' bash_5_amd64.deb 5 SHA256:11
`

func TestParseURIs(t *testing.T) {
	files, err := parseURIs([]byte(goodURIs))
	want := []debFile{{"bash_5_amd64.deb", "SHA256:11"}, {"libc6_2.36-9+deb12u14_amd64.deb", "SHA256:8d98f0"}, {"qemu-utils_1%3a7.2_amd64.deb", "SHA256:00"}}
	if err != nil || !slices.Equal(files, want) {
		t.Errorf("%v, %v", files, err)
	}
	for _, bad := range []string{
		"", "\n", "E: nothing", "'u' a.deb 1", "'u' a.deb 1 MD5Sum:11", "'u' ../a.deb 1 SHA256:1",
		"'u' -a.deb 1 SHA256:1", "'u' a.txt 1 SHA256:1", "'u' a%.deb 1 SHA256:1",
		strings.Repeat("'u' a.deb 1 SHA256:1\n", maxClosure+1),
	} {
		if files, err := parseURIs([]byte(bad)); err == nil {
			t.Errorf("%.60q: %v", bad, files)
		}
	}
}

func FuzzParseURIs(f *testing.F) {
	f.Add([]byte(goodURIs))
	f.Add([]byte("'u' a.deb 1 MD5Sum:11\n"))
	f.Add([]byte("'u' ../../etc/a.deb 1 SHA256:1\n"))
	f.Fuzz(func(t *testing.T, out []byte) {
		files, err := parseURIs(out)
		if err != nil {
			return
		}
		for _, file := range files {
			if filepath.Base(file.Name) != file.Name || strings.HasPrefix(file.Name, "-") {
				t.Errorf("%q would leave its directory", file.Name)
			}
		}
	})
}

func TestAptStampFollowsTheLists(t *testing.T) {
	lists := t.TempDir()
	file := filepath.Join(lists, "main_Packages")
	if err := os.WriteFile(file, []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	stamp := func() string {
		t.Helper()
		s, err := aptStamp(lists, filepath.Join(lists, "none"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := stamp()
	if second := stamp(); second != first {
		t.Error("the stamp changes by itself")
	}
	if err := os.WriteFile(filepath.Join(lists, "lock"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if second := stamp(); second != first {
		t.Error("the stamp depends on apt's lock")
	}
	if err := os.Chtimes(file, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if stamp() == first {
		t.Error("new lists have the old stamp")
	}
}

func TestMissingToolIsUnavailable(t *testing.T) {
	_, err := findTool("no-such-tool")
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no-such-tool") {
		t.Error(err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := findTool("mke2fs"); err != nil {
		t.Errorf("mke2fs is in /usr/sbin: %v", err)
	}
}

func TestComplaint(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "a\nb\n\n": "b", "W: x\nE: Unable to locate package y\nz\n": "Unable to locate package y",
	} {
		if got := complaint([]byte(in)); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}
