package kernel

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
)

func testOptions(t testing.TB) InitramfsOptions {
	t.Helper()
	busybox := filepath.Join(t.TempDir(), "busybox")
	for name, data := range map[string]string{busybox: "#!busybox", busybox + appletsSuffix: "bin/sh\nbin/ls\nsbin/init\nusr/bin/[\nbin/sh\n"} {
		if err := os.WriteFile(name, []byte(data), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return InitramfsOptions{
		Kernel:  &Kernel{Package: "p", Image: "i", Version: "1", Release: "6.1-test", ModulesDir: makeTree(t)},
		Init:    []byte("init!"),
		Busybox: busybox,
	}
}

// entry is what a reader finds under a name.
type entry struct {
	mode cpio.FileMode
	data string // or the link's target
}

func readArchive(t testing.TB, archive []byte) map[string]entry {
	t.Helper()
	got := map[string]entry{}
	r := cpio.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, again := got[h.Name]; again {
			t.Errorf("%s is there twice", h.Name)
		}
		if parent := path.Dir(h.Name); parent != "." && !got[parent].mode.IsDir() {
			t.Errorf("%s comes before its directory", h.Name)
		}
		got[h.Name] = entry{h.Mode, string(b) + h.Linkname}
	}
}

func TestInitramfs(t *testing.T) {
	o := testOptions(t)
	o.Modules, o.Preload = []string{"extra"}, []string{"virtio-rng"}
	source := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(source, []byte("program!"), 0o700); err != nil {
		t.Fatal(err)
	}
	o.ExtraFiles = []File{
		{Path: "/opt/x/program", Source: source, Mode: 0o755}, {Path: "/opt/x/link", Link: "program"},
		{Path: "/empty"}, {Path: "/tmp", Dir: true},
	}
	var first, second bytes.Buffer
	for _, b := range []*bytes.Buffer{&first, &second} {
		if err := BuildInitramfs(b, o); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same options gave different bytes")
	}
	got := readArchive(t, first.Bytes())
	for name, want := range map[string]entry{
		"init":          {cpio.TypeReg | 0o755, "init!"},
		"dev":           {cpio.TypeDir | 0o755, ""},
		"dev/console":   {cpio.TypeChar | 0o666, ""},
		"dev/null":      {cpio.TypeChar | 0o666, ""},
		"tmp":           {cpio.TypeDir | 0o1777, ""},
		"bin/busybox":   {cpio.TypeReg | 0o755, "#!busybox"},
		"usr/bin/[":     {cpio.TypeSymlink | 0o777, "/bin/busybox"},
		"opt/x":         {cpio.TypeDir | 0o755, ""},
		"opt/x/program": {cpio.TypeReg | 0o755, "program!"},
		"opt/x/link":    {cpio.TypeSymlink | 0o777, "program"},
		"empty":         {cpio.TypeReg | 0o644, ""},
		PreloadPath[1:]: {cpio.TypeReg | 0o644, "virtio_rng\n"},
	} {
		if got[name] != want {
			t.Errorf("%s is %+v, want %+v", name, got[name], want)
		}
	}
	if _, ok := got["sbin/init"]; ok {
		t.Error("busybox's init is there")
	}
	dep := got["lib/modules/6.1-test/modules.dep"].data
	if !strings.Contains(dep, "kernel/extra/extra.ko: kernel/drivers/virtio/virtio_ring.ko\n") {
		t.Errorf("modules.dep is %q", dep)
	}
	for line := range strings.Lines(dep) {
		file, _, _ := strings.Cut(line, ":")
		if got["lib/modules/6.1-test/"+file].data == "" {
			t.Errorf("%s is in modules.dep and not in the archive", file)
		}
	}
}

// Special device numbers are at 78 and 86 of a header (major and minor, hexadecimal).
func TestInitramfsDeviceNumbers(t *testing.T) {
	var b bytes.Buffer
	if err := BuildInitramfs(&b, testOptions(t)); err != nil {
		t.Fatal(err)
	}
	for name, numbers := range map[string]string{"dev/console": "0000000500000001", "dev/null": "0000000100000003"} {
		at := bytes.Index(b.Bytes(), []byte(name+"\x00")) - 110
		if at < 0 || at%4 != 0 || string(b.Bytes()[at+78:at+94]) != numbers {
			t.Errorf("%s: header at %d", name, at)
		}
	}
}

func TestInitramfsBadOptions(t *testing.T) {
	for name, change := range map[string]func(*InitramfsOptions){
		"no kernel":         func(o *InitramfsOptions) { o.Kernel = nil },
		"no modules":        func(o *InitramfsOptions) { o.Kernel = &Kernel{ModulesDir: "/no/such"} },
		"unknown module":    func(o *InitramfsOptions) { o.Modules = []string{"nvidia"} },
		"unknown preload":   func(o *InitramfsOptions) { o.Preload = []string{"nvidia"} },
		"no busybox":        func(o *InitramfsOptions) { o.Busybox = "/no/such" },
		"relative path":     func(o *InitramfsOptions) { o.ExtraFiles = []File{{Path: "x"}} },
		"the same twice":    func(o *InitramfsOptions) { o.ExtraFiles = []File{{Path: "/init"}} },
		"a file as parent":  func(o *InitramfsOptions) { o.ExtraFiles = []File{{Path: "/init/x"}} },
		"no source":         func(o *InitramfsOptions) { o.ExtraFiles = []File{{Path: "/x", Source: "/no/such"}} },
		"source is special": func(o *InitramfsOptions) { o.ExtraFiles = []File{{Path: "/x", Source: "/dev/zero"}} },
	} {
		o := testOptions(t)
		change(&o)
		if err := BuildInitramfs(io.Discard, o); err == nil {
			t.Errorf("%s: no error", name)
		}
		cache := t.TempDir()
		if _, err := Initramfs(t.Context(), cache, o); err == nil {
			t.Errorf("%s: no error from the cache", name)
		}
		if left, _ := filepath.Glob(filepath.Join(cache, "initramfs", "*")); len(left) > 0 {
			t.Errorf("%s left %v", name, left)
		}
	}
}

func TestInitramfsCache(t *testing.T) {
	o, cache := testOptions(t), t.TempDir()
	first, err := Initramfs(t.Context(), cache, o)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(first)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Initramfs(t.Context(), cache, o)
	if err != nil || again != first {
		t.Fatalf("second time: %s, %v", again, err)
	}
	if after, err := os.Stat(again); err != nil || !os.SameFile(before, after) {
		t.Error("it was built again")
	}
	o.Init = []byte("another")
	if other, err := Initramfs(t.Context(), cache, o); err != nil || other == first {
		t.Errorf("another init: %s, %v", other, err)
	}
	o.Busybox = ""
	o.ExtraFiles = []File{{Path: "/x", Data: []byte("1")}}
	one, err1 := Initramfs(t.Context(), cache, o)
	o.ExtraFiles[0].Data = []byte("2")
	two, err2 := Initramfs(t.Context(), cache, o)
	if errors.Join(err1, err2) != nil || one == two {
		t.Errorf("other files, same archive: %s, %v, %v", one, err1, err2)
	}
}

func TestInitIsBuiltIn(t *testing.T) {
	if b, err := Init(); err != nil {
		if !strings.Contains(err.Error(), "make build") {
			t.Errorf("missing init: %v", err)
		}
	} else if !bytes.HasPrefix(b, []byte("\x7fELF")) {
		t.Error("the built-in init is no ELF")
	}
}
