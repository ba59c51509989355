package bench

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Resident is what a VMM process holds in memory, counted as Firecracker's
// own test counts it: the resident pages of every mapping but the guest's RAM.
type Resident struct {
	OutsideBytes, GuestBytes uint64
	// Parts splits OutsideBytes by mapping: a file, a named anonymous mapping, or "anonymous".
	Parts map[string]uint64
}

// ReadResident looks at a running process whose guest has guestBytes of RAM. The
// guest's RAM is the mapping, or the mappings of one file, of exactly that size.
func ReadResident(pid int, guestBytes uint64) (Resident, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return Resident{}, fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	defer f.Close()
	r, err := readSmaps(f, guestBytes)
	if err != nil {
		return Resident{}, fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	return r, nil
}

type mapping struct {
	name      string
	size, rss uint64
}

func readSmaps(in io.Reader, guestBytes uint64) (Resident, error) {
	var maps []mapping
	sc := bufio.NewScanner(in)
	for sc.Scan() {
		line := sc.Text()
		key, rest, _ := strings.Cut(line, " ")
		if lo, hi, ok := strings.Cut(key, "-"); ok && !strings.HasSuffix(key, ":") {
			a, err1 := strconv.ParseUint(lo, 16, 64)
			b, err2 := strconv.ParseUint(hi, 16, 64)
			if err1 != nil || err2 != nil || b < a {
				return Resident{}, fmt.Errorf("smaps line %q: no address range", line)
			}
			maps = append(maps, mapping{name: mappingName(rest), size: b - a})
			continue
		}
		if !strings.HasSuffix(key, ":") || len(maps) == 0 {
			return Resident{}, fmt.Errorf("smaps line %q: neither a mapping nor a field", line)
		}
		if key == "Rss:" {
			kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return Resident{}, fmt.Errorf("smaps line %q: %w", line, err)
			}
			maps[len(maps)-1].rss = kib << 10
		}
	}
	if err := sc.Err(); err != nil {
		return Resident{}, err
	}
	return sum(maps, guestBytes)
}

// mappingName is for what is behind "permissions offset device inode".
func mappingName(rest string) string {
	f := strings.Fields(rest)
	switch {
	case len(f) < 5:
		return "anonymous"
	case strings.HasPrefix(f[4], "/"):
		return "file " + strings.Join(f[4:], " ")
	}
	return strings.Join(f[4:], " ")
}

func sum(maps []mapping, guestBytes uint64) (Resident, error) {
	r := Resident{Parts: map[string]uint64{}}
	found := false
	for _, m := range maps {
		if m.size == guestBytes {
			found = true
			r.GuestBytes += m.rss
			continue
		}
		r.OutsideBytes += m.rss
		r.Parts[m.name] += m.rss
	}
	if !found {
		return Resident{}, fmt.Errorf("no mapping has the guest's %d bytes", guestBytes)
	}
	return r, nil
}

// Largest lists the parts, largest first, at most n and the rest as one.
func (r Resident) Largest(n int) string {
	names := make([]string, 0, len(r.Parts))
	for name := range r.Parts {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return int(int64(r.Parts[b]) - int64(r.Parts[a])) })
	var out []string
	rest := uint64(0)
	for i, name := range names {
		if i < n {
			out = append(out, fmt.Sprintf("%s %d KiB", shortName(name), r.Parts[name]>>10))
		} else {
			rest += r.Parts[name]
		}
	}
	if rest > 0 {
		out = append(out, fmt.Sprintf("others %d KiB", rest>>10))
	}
	return strings.Join(out, ", ")
}

// shortName leaves out where a file is: it differs from machine to machine.
func shortName(part string) string {
	if path, ok := strings.CutPrefix(part, "file "); ok {
		return "file " + filepath.Base(path)
	}
	return part
}
