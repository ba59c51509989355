// Package archtest keeps the house rules of ARCHITECTURE.md true: who may import
// whom, where unsafe stands, who may write guest memory, and what a library may not do.
package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/peervisor/peervisor/"

// mayImport lists for each room (the longest matching folder prefix wins) which
// of our own packages its non-test code may import. A trailing /… allows all below.
var mayImport = map[string][]string{
	"kvm":               {},
	"kvm/probe":         {"kvm"},
	"memory":            {},
	"virtio":            {"memory"},
	"virtio/pci":        {"memory", "virtio"},
	"virtio/mmio":       {"memory", "virtio"},
	"virtio/virtiotest": {"memory", "virtio", "virtio/pci", "virtio/mmio"},
	"virtio/blk":        {"virtio", "virtio/blk/…"},
	"virtio/net":        {"virtio", "virtio/net/…"},
	"virtio/console":    {"virtio", "virtio/console/…"},
	"virtio/rng":        {"virtio", "virtio/rng/…"},
	"network":           {"virtio/net"},
	"vmm":               {"kvm", "memory", "virtio", "virtio/pci", "virtio/mmio", "vmm/…"},
	"vmm/boot":          {"memory"},
	"vmm/acpi":          {"vmm/chipset"}, // port numbers and bits of the devices that it describes
	"vmm/chipset":       {},
	"kernel":            {"vmm/boot", "kernel/…"},
	"kernel/agent":      {"kernel/…"},
	"kernel/init":       {"kernel/…"},
	"kernel/bare":       {},
	"guest":             {"kvm/…", "memory", "virtio/…", "network", "vmm/…", "kernel/…", "remoteio/…", "migrate/…", "identity/…"},
	"lab":               {"kernel/…"},
	"lab/labtest":       {"lab", "kernel/…", "internal/testenv"},
	"cmd":               {"guest", "kvm/…", "vmm", "lab", "kernel/…", "cmd/…"},
	"internal/testenv":  {},
	"internal/archtest": {},
	"tests":             {"…"},
}

// unsafeOK lists files outside *_unsafe.go that may import unsafe.
var unsafeOK = map[string]bool{}

// rawMemoryOK lists the packages that may borrow guest memory for writing; each
// pairs it with MarkDirty. Everybody else writes by memory.WriteAt or a Request.
var rawMemoryOK = []string{"memory", "virtio", "vmm/boot"}

type file struct {
	path, dir string
	test      bool
	ast       *ast.File
	fset      *token.FileSet
}

func sources(t *testing.T) []file {
	t.Helper()
	root := filepath.Join("..", "..")
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatalf("not in the module: %v", err)
	}
	var out []file
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && rel != "." || d.Name() == "testdata" || rel == "bin") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		out = append(out, file{rel, path.Dir(rel), strings.HasSuffix(rel, "_test.go"), f, fset})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func room(dir string) (string, bool) {
	for d := dir; d != "." && d != "/"; d = path.Dir(d) {
		if _, ok := mayImport[d]; ok {
			return d, true
		}
	}
	return "", false
}

func allowed(r, dir, imp string) bool {
	if imp == dir {
		return true
	}
	for _, a := range mayImport[r] {
		if a == "…" || a == imp || strings.HasSuffix(a, "/…") && (imp == strings.TrimSuffix(a, "/…") || strings.HasPrefix(imp, strings.TrimSuffix(a, "…"))) {
			return true
		}
	}
	return false
}

func TestImports(t *testing.T) {
	n := 0
	for _, f := range sources(t) {
		r, ok := room(f.dir)
		if !ok {
			t.Errorf("%s: folder %s is no room of DESIGN; add it to mayImport with its reason in ARCHITECTURE.md", f.path, f.dir)
			continue
		}
		for _, im := range f.ast.Imports {
			p := strings.Trim(im.Path.Value, `"`)
			if p == "C" {
				t.Errorf("%s: cgo is not used here", f.path)
			}
			imp, own := strings.CutPrefix(p, module)
			if !own {
				continue
			}
			n++
			if strings.HasPrefix(imp, "tests/") && !strings.HasPrefix(f.dir, "tests") {
				t.Errorf("%s imports %s: nothing imports tests", f.path, imp)
			}
			if !f.test && !allowed(r, f.dir, imp) {
				t.Errorf("%s: room %s may not import %s", f.path, r, imp)
			}
		}
	}
	if n == 0 {
		t.Error("no import of our own was seen: the walk is broken")
	}
}

func TestUnsafeHasItsPlaceAndReason(t *testing.T) {
	for _, f := range sources(t) {
		uses := false
		for _, im := range f.ast.Imports {
			uses = uses || im.Path.Value == `"unsafe"`
		}
		if !uses || f.test {
			continue
		}
		if !strings.Contains(f.path, "_unsafe") && !unsafeOK[f.path] {
			t.Errorf("%s imports unsafe: it belongs into a file named *_unsafe.go", f.path)
		}
		safety := false
		for _, c := range f.ast.Comments {
			safety = safety || strings.Contains(c.Text(), "SAFETY:")
		}
		if !safety {
			t.Errorf("%s uses unsafe without a SAFETY comment", f.path)
		}
	}
}

func TestPackagesAreDocumented(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range sources(t) {
		if f.test && strings.HasSuffix(f.ast.Name.Name, "_test") {
			continue
		}
		documented[f.dir] = documented[f.dir] || f.ast.Doc != nil && len(f.ast.Doc.Text()) > 40
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("package in %s has no package comment", dir)
		}
	}
}

// TestLibrariesAreQuiet: libraries return errors; they do not print, exit or panic.
func TestLibrariesAreQuiet(t *testing.T) {
	for _, f := range sources(t) {
		if f.test || f.ast.Name.Name == "main" || strings.HasPrefix(f.dir, "tests") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			bad := ""
			switch fn := call.Fun.(type) {
			case *ast.Ident:
				if fn.Name == "panic" || fn.Name == "println" || fn.Name == "print" {
					bad = fn.Name
				}
			case *ast.SelectorExpr:
				x, _ := fn.X.(*ast.Ident)
				switch {
				case x == nil:
				case x.Name == "fmt" && strings.HasPrefix(fn.Sel.Name, "Print"), x.Name == "log" && imports(f, "log"), x.Name == "os" && fn.Sel.Name == "Exit":
					bad = x.Name + "." + fn.Sel.Name
				}
			}
			if bad != "" {
				t.Errorf("%s: a library calls %s", f.fset.Position(call.Pos()), bad)
			}
			return true
		})
	}
}

func TestTestsDoNotSleep(t *testing.T) {
	for _, f := range sources(t) {
		if !f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && sel.Sel.Name == "Sleep" {
					t.Errorf("%s: a test sleeps; wait for what it waits for", f.fset.Position(sel.Pos()))
				}
			}
			return true
		})
	}
}

// TestGuestMemoryIsWrittenByMemory: every VMM write to guest memory goes through
// package memory, which marks the dirty bitmap. The two ways around it are
// borrowing for writing and the mapping's address.
func TestGuestMemoryIsWrittenByMemory(t *testing.T) {
	ok := func(dir string) bool {
		for _, d := range rawMemoryOK {
			if d == dir {
				return true
			}
		}
		return false
	}
	marks := map[string]bool{}
	borrows := map[string]bool{}
	for _, f := range sources(t) {
		if f.test || !imports(f, module+"memory") && f.dir != "memory" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if call, isCall := n.(*ast.CallExpr); isCall {
				fn, isSel := call.Fun.(*ast.SelectorExpr)
				if !isSel || fn.Sel.Name != "Writable" {
					return true
				}
				sel := fn
				borrows[f.dir] = true
				if !ok(f.dir) {
					t.Errorf("%s: borrows guest memory for writing; use memory.WriteAt or a virtio.Request", f.fset.Position(sel.Pos()))
				}
			}
			sel, isSel := n.(*ast.SelectorExpr)
			if !isSel {
				return true
			}
			switch sel.Sel.Name {
			case "MarkDirty":
				marks[f.dir] = true
			case "HostAddr":
				if f.dir != "memory" && f.dir != "vmm" {
					t.Errorf("%s: takes the mapping's address, which only vmm hands to KVM", f.fset.Position(sel.Pos()))
				}
			}
			return true
		})
	}
	for dir := range borrows {
		if !marks[dir] && dir != "memory" {
			t.Errorf("%s borrows guest memory for writing and never marks it dirty", dir)
		}
	}
}

// TestDeviceHalvesKnowNoAddresses: a device half sees requests, not memory, KVM or a transport.
func TestDeviceHalvesKnowNoAddresses(t *testing.T) {
	for _, f := range sources(t) {
		if f.test {
			continue
		}
		switch strings.SplitN(f.dir+"/", "/", 3)[0] + "/" + strings.SplitN(f.dir+"//", "/", 3)[1] {
		case "virtio/blk", "virtio/net", "virtio/console", "virtio/rng":
		default:
			continue
		}
		for _, bad := range []string{"kvm", "memory", "virtio/pci", "virtio/mmio"} {
			if imports(f, module+bad) {
				t.Errorf("%s: a device half imports %s", f.path, bad)
			}
		}
	}
}

func imports(f file, p string) bool {
	for _, im := range f.ast.Imports {
		if strings.Trim(im.Path.Value, `"`) == p {
			return true
		}
	}
	return false
}
