// Package modload loads kernel modules for the devices that are there, from the
// index files that depmod makes (modules.dep, modules.alias, modules.softdep).
//
// It is the guest's side; package kernel writes the index. It keeps no state but
// what was loaded, and Set may be used from any goroutine.
package modload

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxDepth bounds a chain of dependencies; a circle is longer than that.
const maxDepth = 64

// Set is the modules of one directory.
type Set struct {
	load    func(file string) error // file is relative to the directory
	modules map[string]*module
	aliases []alias
}

type module struct {
	name, file string
	needs      []*module
	once       sync.Once
	done       atomic.Bool // once was done
	err        error
}

type alias struct {
	// pattern is a shell pattern; fixed is what it starts with before the first
	// special character, which most comparisons end at.
	pattern, fixed string
	module         string
}

// Open reads the index in dir. The directory stays open for good: modules may
// still be loaded when the root has changed.
func Open(dir string) (*Set, error) {
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	optional := func(name string) (string, error) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return string(b), err
	}
	aliases, err := optional("modules.alias")
	if err != nil {
		return nil, err
	}
	soft, err := optional("modules.softdep")
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return parse(string(dep), aliases, soft, func(file string) error { return finit(fd, file) }), nil
}

// parse takes what it understands; lines that it does not are left out, as a
// guest that misses a module is better than none.
func parse(dep, aliases, soft string, load func(file string) error) *Set {
	s := &Set{load: load, modules: map[string]*module{}}
	needs := map[string][]string{}
	for line := range strings.Lines(dep) {
		file, deps, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || file == "" || file[0] == '#' {
			continue
		}
		name := Name(file)
		s.modules[name] = &module{name: name, file: file}
		fields := strings.Fields(deps)
		for i := len(fields) - 1; i >= 0; i-- { // the last is to be loaded first
			needs[name] = append(needs[name], Name(fields[i]))
		}
	}
	for line := range strings.Lines(soft) {
		f := strings.Fields(line) // softdep NAME pre: A B …
		if len(f) > 3 && f[0] == "softdep" && f[2] == "pre:" {
			name := Name(f[1])
			needs[name] = append(f[3:len(f):len(f)], needs[name]...)
		}
	}
	for name, m := range s.modules {
		for _, n := range needs[name] {
			if d := s.modules[Name(n)]; d != nil && d != m {
				m.needs = append(m.needs, d)
			}
		}
	}
	for line := range strings.Lines(aliases) {
		f := strings.Fields(line) // alias PATTERN NAME
		if len(f) == 3 && f[0] == "alias" {
			fixed := f[1]
			if i := strings.IndexAny(fixed, `*?[\`); i >= 0 {
				fixed = fixed[:i]
			}
			s.aliases = append(s.aliases, alias{pattern: f[1], fixed: fixed, module: Name(f[2])})
		}
	}
	return s
}

// Name is the module in a file, as the kernel names it.
func Name(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// Has tells whether there is such a module.
func (s *Set) Has(name string) bool { return s.modules[Name(name)] != nil }

// Match returns the modules for a device's modalias, or another alias ("fs-ext4").
func (s *Set) Match(modalias string) []string {
	var names []string
	for _, a := range s.aliases {
		if !strings.HasPrefix(modalias, a.fixed) || s.modules[a.module] == nil {
			continue
		}
		if ok, err := path.Match(a.pattern, modalias); ok && err == nil {
			names = append(names, a.module)
		}
	}
	return names
}

// Load loads a module after all that it needs. A second call gives the first
// one's result, and waits for it. A module that is not in the set is an error.
func (s *Set) Load(name string) error {
	m := s.modules[Name(name)]
	if m == nil {
		return errors.New("no module " + name)
	}
	return s.loadModule(m, 0)
}

func (s *Set) loadModule(m *module, depth int) error {
	if m.done.Load() {
		return m.err
	}
	if depth > maxDepth {
		return errors.New("module " + m.name + ": dependencies go in a circle")
	}
	for _, d := range m.needs {
		if err := s.loadModule(d, depth+1); err != nil {
			return err
		}
	}
	m.once.Do(func() {
		if err := s.load(m.file); err != nil && !errors.Is(err, unix.EEXIST) {
			m.err = errors.New("module " + m.name + ": " + err.Error())
		}
		m.done.Store(true)
	})
	return m.err
}

// LoadAll loads several modules side by side and returns what went wrong.
func (s *Set) LoadAll(names []string) []error {
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { errs[i] = s.Load(name) })
	}
	wg.Wait()
	var failed []error
	for _, err := range errs {
		if err != nil {
			failed = append(failed, err)
		}
	}
	return failed
}

// finit is finit_module(2) for a file in the directory dir.
func finit(dir int, file string) error {
	fd, err := unix.Openat(dir, file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.FinitModule(fd, "", 0)
}

// Coldplug loads the modules of all devices below sys (/sys), again and again
// until none is new, since loading a bus's driver makes the bus's devices. Modules for
// which later says so are left, and returned.
func (s *Set) Coldplug(sys string, later func(module string) bool) (left []string, failed []error) {
	seen := map[string]bool{} // modalias, and module
	for range maxDepth {
		var wanted []string
		for _, bus := range []string{"pci", "virtio", "acpi", "platform"} {
			files, _ := filepath.Glob(filepath.Join(sys, "bus", bus, "devices", "*", "modalias"))
			for _, file := range files {
				b, err := os.ReadFile(file)
				modalias := strings.TrimSpace(string(b))
				if err != nil || modalias == "" || seen[modalias] {
					continue
				}
				seen[modalias] = true
				for _, name := range s.Match(modalias) {
					switch {
					case seen["module "+name]:
						continue
					case later(name):
						left = append(left, name)
					default:
						wanted = append(wanted, name)
					}
					seen["module "+name] = true
				}
			}
		}
		if len(wanted) == 0 {
			return left, failed
		}
		failed = append(failed, s.LoadAll(wanted)...)
	}
	return left, failed
}
