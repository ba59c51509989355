package kernel

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// Bounds of a modules tree.
const (
	maxModuleBytes = 64 << 20 // one module; the largest of Debian's is 9 MiB
	maxIndexBytes  = 64 << 20 // modules.dep, modules.alias
	maxModinfo     = 1 << 20  // the section; modules with thousands of aliases have 300 KiB
	maxDepth       = 64       // of dependencies
)

// errModules is wrapped by complaints about the files of a modules tree.
var errModules = errors.New("not a good modules tree")

// modinfo is what a module says of itself that matters for loading it.
type modinfo struct {
	depends []string
	softPre []string // to be loaded before, if there
	aliases []string
}

// normal is a module's name as the kernel has it: a file virtio-rng.ko is
// virtio_rng once loaded.
func normal(name string) string { return strings.ReplaceAll(name, "-", "_") }

// moduleOf is the name of the module in a file.
func moduleOf(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return normal(name)
}

// readModinfo reads the .modinfo section of an unpacked module.
func readModinfo(r io.ReaderAt) (*modinfo, error) {
	f, err := elf.NewFile(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errModules, err)
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("%w: no .modinfo section", errModules)
	}
	if s.Size > maxModinfo {
		return nil, fmt.Errorf("%w: .modinfo section of %d bytes", errModules, s.Size)
	}
	b, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("%w: .modinfo section: %w", errModules, err)
	}
	return parseModinfo(b), nil
}

// parseModinfo reads NUL-separated "key=value".
func parseModinfo(b []byte) *modinfo {
	info := &modinfo{}
	for _, field := range bytes.Split(b, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch key {
		case "depends":
			for _, d := range strings.Split(value, ",") {
				if d != "" {
					info.depends = append(info.depends, normal(d))
				}
			}
		case "alias":
			if value != "" && !strings.ContainsAny(value, " \t\n") {
				info.aliases = append(info.aliases, value)
			}
		case "softdep":
			pre := false
			for _, word := range strings.Fields(value) {
				if strings.HasSuffix(word, ":") {
					pre = word == "pre:"
				} else if pre {
					info.softPre = append(info.softPre, normal(word))
				}
			}
		}
	}
	return info
}

// moduleGraph is the modules of a tree and what each needs.
type moduleGraph struct {
	dir     string
	files   map[string]string   // module → file, relative to dir
	depends map[string][]string // module → modules
	builtin map[string]bool
}

// indexModules does what depmod does when a kernel package is installed: it
// writes modules.dep, modules.alias and modules.softdep for a tree of unpacked modules.
func indexModules(dir string) error {
	g := &moduleGraph{dir: dir, files: map[string]string{}, depends: map[string][]string{}}
	infos := map[string]*modinfo{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path.Ext(name) != ".ko" {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := readModinfo(f)
		if err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
		m := moduleOf(name)
		g.files[m], g.depends[m], infos[m] = rel, info.depends, info
		return nil
	})
	if err != nil {
		return fmt.Errorf("index modules: %w", err)
	}
	if len(g.files) == 0 {
		return fmt.Errorf("index modules: %w: no modules in it", errModules)
	}
	index, err := g.index(infos, slices.Sorted(mapKeys(g.files)))
	if err != nil {
		return fmt.Errorf("index modules: %w", err)
	}
	for _, f := range index {
		if err := os.WriteFile(filepath.Join(dir, f.name), f.data, 0o644); err != nil {
			return fmt.Errorf("index modules: %w", err)
		}
	}
	return nil
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// indexFile is one of the files that modprobe reads.
type indexFile struct {
	name string
	data []byte
}

// index writes the files for these modules. As in depmod's, the dependencies of a
// module are all that it needs, and are loaded from the last to the first.
func (g *moduleGraph) index(infos map[string]*modinfo, modules []string) ([]indexFile, error) {
	var dep, alias, soft bytes.Buffer
	for _, m := range modules {
		order, err := g.loadOrder(m)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&dep, "%s:", g.files[m])
		for _, d := range slices.Backward(order[:len(order)-1]) {
			fmt.Fprintf(&dep, " %s", g.files[d])
		}
		dep.WriteByte('\n')
		info := infos[m]
		if info == nil {
			continue
		}
		for _, a := range info.aliases {
			fmt.Fprintf(&alias, "alias %s %s\n", a, m)
		}
		if len(info.softPre) > 0 {
			fmt.Fprintf(&soft, "softdep %s pre: %s\n", m, strings.Join(info.softPre, " "))
		}
	}
	return []indexFile{
		{"modules.dep", dep.Bytes()},
		{"modules.alias", alias.Bytes()},
		{"modules.softdep", soft.Bytes()},
	}, nil
}

// loadOrder is module m after all that it needs.
func (g *moduleGraph) loadOrder(m string) ([]string, error) {
	var order []string
	done := map[string]bool{}
	var visit func(m string, depth int) error
	visit = func(m string, depth int) error {
		if done[m] || g.builtin[m] {
			return nil
		}
		if _, ok := g.files[m]; !ok {
			return fmt.Errorf("%w: module %s is needed and not there", errModules, m)
		}
		if depth > maxDepth {
			return fmt.Errorf("%w: dependencies of module %s go in a circle", errModules, m)
		}
		for _, d := range g.depends[m] {
			if err := visit(d, depth+1); err != nil {
				return err
			}
		}
		if !done[m] { // a circle of one
			done[m] = true
			order = append(order, m)
		}
		return nil
	}
	err := visit(m, 0)
	return order, err
}

// openModules reads modules.dep and modules.builtin of a tree.
func openModules(dir string) (*moduleGraph, error) {
	g := &moduleGraph{dir: dir, builtin: map[string]bool{}}
	b, err := readBounded(filepath.Join(dir, "modules.dep"), maxIndexBytes)
	if err != nil {
		return nil, fmt.Errorf("read modules: %w", err)
	}
	if g.files, g.depends, err = parseModulesDep(b); err != nil {
		return nil, fmt.Errorf("read modules: %s: %w", filepath.Join(dir, "modules.dep"), err)
	}
	b, err = readBounded(filepath.Join(dir, "modules.builtin"), maxIndexBytes)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read modules: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		g.builtin[moduleOf(strings.TrimSpace(line))] = true
	}
	return g, nil
}

func readBounded(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s is larger than %d bytes", name, most)
	}
	return b, err
}

// parseModulesDep reads "file: file file…", one module a line.
func parseModulesDep(b []byte) (files map[string]string, depends map[string][]string, err error) {
	files, depends = map[string]string{}, map[string][]string{}
	s := bufio.NewScanner(bytes.NewReader(b))
	s.Buffer(nil, 1<<20)
	for n := 1; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		file, deps, ok := strings.Cut(line, ":")
		if !ok || !filepath.IsLocal(file) || moduleOf(file) == "" {
			return nil, nil, fmt.Errorf("%w: line %d is not FILE: FILE…", errModules, n)
		}
		m := moduleOf(file)
		if _, again := files[m]; again {
			continue // an older kernel's updates/ and kernel/: the first is what modprobe takes
		}
		files[m] = file
		for _, d := range strings.Fields(deps) {
			depends[m] = append(depends[m], moduleOf(d))
		}
	}
	if err := s.Err(); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errModules, err)
	}
	return files, depends, nil
}

// read returns the bytes of a module, unpacked.
func (g *moduleGraph) read(m string) ([]byte, error) {
	name := g.files[m]
	f, err := os.Open(filepath.Join(g.dir, name))
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", m, err)
	}
	defer f.Close()
	z, err := decompress(name, f)
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", m, err)
	}
	defer z.Close()
	b, err := io.ReadAll(io.LimitReader(z, maxModuleBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", m, err)
	}
	if len(b) > maxModuleBytes {
		return nil, fmt.Errorf("read module %s: larger than %d bytes", m, maxModuleBytes)
	}
	return b, nil
}

// selected is the modules that go into an archive, in an order in which they can
// be loaded, with their bytes.
type selected struct {
	graph *moduleGraph
	order []string
	bytes map[string][]byte
	infos map[string]*modinfo
}

// selectModules takes the wanted modules that the kernel has, the required ones,
// which it must have, and what all of them need.
func (g *moduleGraph) selectModules(wanted, required []string) (*selected, error) {
	sel := &selected{graph: g, bytes: map[string][]byte{}, infos: map[string]*modinfo{}}
	var add func(m string, depth int) error
	add = func(m string, depth int) error {
		order, err := g.loadOrder(m)
		if err != nil {
			return err
		}
		for _, m := range order {
			if sel.infos[m] != nil {
				continue
			}
			b, err := g.read(m)
			if err != nil {
				return err
			}
			info, err := readModinfo(bytes.NewReader(b))
			if err != nil {
				return fmt.Errorf("module %s: %w", m, err)
			}
			sel.bytes[m], sel.infos[m] = b, info
			for _, soft := range info.softPre {
				if _, ok := g.files[soft]; ok && depth < maxDepth {
					if err := add(soft, depth+1); err != nil {
						return err
					}
				}
			}
			sel.order = append(sel.order, m)
		}
		return nil
	}
	for _, m := range wanted {
		if _, ok := g.files[normal(m)]; ok {
			if err := add(normal(m), 0); err != nil {
				return nil, err
			}
		}
	}
	for _, m := range required {
		m = normal(m)
		if _, ok := g.files[m]; !ok && !g.builtin[m] {
			return nil, fmt.Errorf("module %s: the kernel has none of this name", m)
		}
		if err := add(m, 0); err != nil {
			return nil, err
		}
	}
	return sel, nil
}

// index makes modprobe's files for the selection alone.
func (sel *selected) index() ([]indexFile, error) {
	modules := slices.Clone(sel.order)
	sort.Strings(modules)
	return sel.graph.index(sel.infos, modules)
}
