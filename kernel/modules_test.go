package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// makeModule makes an ELF object with a .modinfo section, which is all that is read of one.
func makeModule(t testing.TB, fields ...string) []byte {
	t.Helper()
	info := []byte(strings.Join(fields, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	const headerBytes, sectionBytes = 64, 64
	infoAt := headerBytes
	namesAt := infoAt + len(info)
	sectionsAt := namesAt + len(names)
	var b bytes.Buffer
	put := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	h := elf.Header64{Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Shoff: uint64(sectionsAt),
		Ehsize: headerBytes, Shentsize: sectionBytes, Shnum: 3, Shstrndx: 2}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	put(h)
	b.Write(info)
	b.Write(names)
	put(elf.Section64{})
	put(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: uint64(infoAt), Size: uint64(len(info)), Addralign: 1})
	put(elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(namesAt), Size: uint64(len(names)), Addralign: 1})
	return b.Bytes()
}

// makeTree makes a modules tree and indexes it.
func makeTree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, fields := range map[string][]string{
		"kernel/drivers/virtio/virtio.ko":             {"name=virtio", "depends=virtio_ring"},
		"kernel/drivers/virtio/virtio_ring.ko":        {"depends="},
		"kernel/drivers/virtio/virtio_pci.ko":         {"depends=virtio,virtio_ring", "alias=pci:v00001AF4d*sv*sd*bc*sc*i*"},
		"kernel/drivers/char/hw_random/virtio-rng.ko": {"depends=virtio", "alias=virtio:d00000004v*"},
		"kernel/fs/ext4/ext4.ko":                      {"softdep=pre: crc32c", "alias=fs-ext4"},
		"kernel/crypto/crc32c.ko":                     {"depends="},
		"kernel/extra/extra.ko":                       {"depends=virtio-ring", "alias=bad alias"},
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, makeModule(t, fields...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/drivers/net/loopback.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := indexModules(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestIndexIsDepmods(t *testing.T) {
	dir := makeTree(t)
	b, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko\n"; !strings.Contains(string(b), want) {
		t.Errorf("no %q in\n%s", want, b)
	}
	b, err = os.ReadFile(filepath.Join(dir, "modules.alias"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "alias fs-ext4 ext4\nalias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\nalias virtio:d00000004v* virtio_rng\n"; string(b) != want {
		t.Errorf("modules.alias is %q", b)
	}
	b, err = os.ReadFile(filepath.Join(dir, "modules.softdep"))
	if err != nil || string(b) != "softdep ext4 pre: crc32c\n" {
		t.Errorf("modules.softdep is %q, %v", b, err)
	}
}

func TestSelectModules(t *testing.T) {
	g, err := openModules(makeTree(t))
	if err != nil {
		t.Fatal(err)
	}
	sel, err := g.selectModules([]string{"virtio_rng", "not-in-this-flavour"}, []string{"ext4", "loopback"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"virtio_ring", "virtio", "virtio_rng", "crc32c", "ext4"}; !slices.Equal(sel.order, want) {
		t.Errorf("order %v, want %v", sel.order, want)
	}
	if _, err := g.selectModules(nil, []string{"nvidia"}); err == nil || !strings.Contains(err.Error(), "nvidia") {
		t.Errorf("a module that is not there: %v", err)
	}
}

func TestModulesGoInACircle(t *testing.T) {
	g := &moduleGraph{files: map[string]string{"a": "a.ko", "b": "b.ko"}, depends: map[string][]string{"a": {"b"}, "b": {"a"}}}
	if _, err := g.loadOrder("a"); err == nil {
		t.Error("no error")
	}
}

func TestDamagedModule(t *testing.T) {
	good := makeModule(t, "depends=a,b", "alias=x")
	for n := range len(good) {
		if _, err := readModinfo(bytes.NewReader(good[:n])); err == nil {
			t.Fatalf("cut off after %d of %d bytes: no error", n, len(good))
		}
	}
}

func FuzzModulesDep(f *testing.F) {
	f.Add([]byte("kernel/a.ko: kernel/b.ko kernel/c.ko\nkernel/b.ko:\n# comment\n"))
	f.Add([]byte("/abs.ko:\n../up.ko:\n:\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		files, depends, err := parseModulesDep(data)
		if err != nil {
			return
		}
		for m, file := range files {
			if !filepath.IsLocal(file) {
				t.Fatalf("module %q is at %q", m, file)
			}
		}
		g := &moduleGraph{files: files, depends: depends}
		for m := range files {
			_, _ = g.loadOrder(m)
		}
	})
}

func FuzzModinfo(f *testing.F) {
	f.Add(makeModule(f, "depends=a,b", "alias=x", "softdep=pre: a b post: c"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = readModinfo(bytes.NewReader(data))
	})
}
