package guest

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// Bounds of what a SPEC may be.
const (
	maxSpecBytes = 64 << 10
	maxSpecKeys  = 64
)

// SpecError says which part of which SPEC is wrong and what was expected.
type SpecError struct {
	// Flag is the flag without dashes: "disk".
	Flag string
	// Spec is the whole text as given.
	Spec string
	// Msg says what is wrong.
	Msg string
}

func (e *SpecError) Error() string { return fmt.Sprintf("--%s %s: %s", e.Flag, e.Spec, e.Msg) }

// fields is a SPEC taken apart: key=value,key,… A backslash-free syntax: a comma
// in a value is written twice, as QEMU has it.
type fields struct {
	flag, spec string
	kv         []field
	used       []bool
}

type field struct {
	key, value string
	hasValue   bool
}

// splitSpec takes a SPEC apart. firstKey is the key that the first value
// belongs to when it has none ("--disk root.img" is path=root.img); "" if none.
// words lists keys that stand alone, which the first value may also be.
func splitSpec(flag, spec, firstKey string, words ...string) (*fields, error) {
	f := &fields{flag: flag, spec: spec}
	if spec == "" {
		return nil, f.errorf("is empty")
	}
	if len(spec) > maxSpecBytes {
		f.spec = spec[:40] + "…"
		return nil, f.errorf("is longer than %d bytes", maxSpecBytes)
	}
	if i := strings.IndexFunc(spec, func(r rune) bool { return r < ' ' }); i >= 0 {
		f.spec = strconv.Quote(spec)
		return nil, f.errorf("has a control character at byte %d", i)
	}
	for i, part := range splitCommas(spec) {
		k, v, has := strings.Cut(part, "=")
		if i == 0 && firstKey != "" && (!has || strings.ContainsAny(k, "/.")) && !contains(words, part) {
			k, v, has = firstKey, part, true
		}
		if k == "" {
			return nil, f.errorf("has an empty key in %q; write key=value,key=value", part)
		}
		for _, o := range f.kv {
			if o.key == k && k != "hostfwd" {
				return nil, f.errorf("has %s twice", k)
			}
		}
		if len(f.kv) == maxSpecKeys {
			return nil, f.errorf("has more than %d keys", maxSpecKeys)
		}
		f.kv = append(f.kv, field{k, v, has})
	}
	f.used = make([]bool, len(f.kv))
	return f, nil
}

func splitCommas(s string) []string {
	var out []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == ',' {
			if i+1 < len(s) && s[i+1] == ',' {
				i++
			} else {
				out = append(out, b.String())
				b.Reset()
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return append(out, b.String())
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

func (f *fields) errorf(format string, a ...any) error {
	return &SpecError{Flag: f.flag, Spec: f.spec, Msg: fmt.Sprintf(format, a...)}
}

// str returns the value of key, "" if absent; a key without a value is an error.
func (f *fields) str(key string, err *error) string {
	for i, kv := range f.kv {
		if kv.key == key {
			f.used[i] = true
			if (!kv.hasValue || kv.value == "") && *err == nil {
				*err = f.errorf("%s needs a value: %s=…", key, key)
			}
			return kv.value
		}
	}
	return ""
}

// all returns every value of a repeatable key.
func (f *fields) all(key string) []string {
	var out []string
	for i, kv := range f.kv {
		if kv.key == key {
			f.used[i] = true
			out = append(out, kv.value)
		}
	}
	return out
}

// flag reports a key that stands alone, or has on/off as its value.
func (f *fields) boolean(key string, err *error) bool {
	for i, kv := range f.kv {
		if kv.key != key {
			continue
		}
		f.used[i] = true
		switch {
		case !kv.hasValue, kv.value == "on", kv.value == "true", kv.value == "yes":
			return true
		case kv.value == "off", kv.value == "false", kv.value == "no":
			return false
		}
		if *err == nil {
			*err = f.errorf("%s is on or off, not %q", key, kv.value)
		}
	}
	return false
}

// integer returns key's value within [lo, hi], or def if absent.
func (f *fields) integer(key string, def, lo, hi int, err *error) int {
	s := f.str(key, err)
	if s == "" {
		return def
	}
	n, perr := strconv.Atoi(s)
	if (perr != nil || n < lo || n > hi) && *err == nil {
		*err = f.errorf("%s is a whole number from %d to %d, not %q", key, lo, hi, s)
	}
	return n
}

// rest fails if a key was not asked for; known lists what there is.
func (f *fields) rest(known string) error {
	for i, u := range f.used {
		if !u {
			return f.errorf("does not know the key %q; known are %s", f.kv[i].key, known)
		}
	}
	return nil
}

// ParseSize reads a number of bytes with an optional unit: K, M, G, T (powers of
// 1024, an i and a B may follow). A bare number is bytes.
func ParseSize(s string) (uint64, error) {
	num := strings.TrimRight(s, "KMGTkmgtiB")
	n, err := strconv.ParseUint(num, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("size %q: write a number and a unit, as 512M or 2G", s)
	}
	unit := strings.ToUpper(strings.TrimSuffix(strings.TrimSuffix(s[len(num):], "B"), "i"))
	shift, ok := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[unit]
	if !ok {
		return 0, fmt.Errorf("size %q: the unit is one of K, M, G, T", s)
	}
	if n > (1<<62)>>shift {
		return 0, fmt.Errorf("size %q is too large", s)
	}
	return n << shift, nil
}

// ParseDisk reads the SPEC of --disk.
func ParseDisk(spec string) (DiskSpec, error) {
	f, err := splitSpec("disk", spec, "path")
	if err != nil {
		return DiskSpec{}, err
	}
	d := DiskSpec{
		Path: f.str("path", &err), ID: f.str("id", &err), Serial: f.str("serial", &err),
		ReadOnly: f.boolean("readonly", &err), Snapshot: f.boolean("snapshot", &err), Direct: f.boolean("direct", &err),
		Queues: f.integer("queues", 1, 1, 64, &err),
	}
	format := f.str("format", &err)
	d.Raw = format == "raw"
	if err == nil {
		err = f.rest("path, id, serial, readonly, snapshot, direct, queues, format")
	}
	switch {
	case err != nil:
	case d.Path == "":
		err = f.errorf("names no file; write path=FILE")
	case format != "" && format != "raw":
		err = f.errorf("format=%s: only raw is read; convert with: qemu-img convert -O raw %s %s.raw", format, d.Path, d.Path)
	case d.ReadOnly && d.Snapshot:
		err = f.errorf("readonly and snapshot exclude each other: a snapshot is a writable throw-away overlay")
	case len(d.Serial) > 20:
		err = f.errorf("serial has %d bytes; virtio-blk has room for 20", len(d.Serial))
	case d.ID != "":
		err = checkID(f, d.ID)
	}
	return d, err
}

func checkID(f *fields, id string) error {
	if !validName(id) {
		return f.errorf("id %q: use letters, digits, dot, dash and underscore, at most %d", id, maxNameBytes)
	}
	return nil
}

// ParseNet reads the SPEC of --net: "user,…" or "tap=NAME,…" or "none".
func ParseNet(spec string) (NetSpec, error) {
	f, err := splitSpec("net", spec, "", "user", "none")
	if err != nil {
		return NetSpec{}, err
	}
	n := NetSpec{
		User: f.boolean("user", &err), None: f.boolean("none", &err), Tap: f.str("tap", &err),
		Bridge: f.str("bridge", &err), ID: f.str("id", &err), MAC: f.str("mac", &err),
		HostFwd: f.all("hostfwd"), HostAccess: f.boolean("hostaccess", &err), Restrict: f.boolean("restrict", &err),
		MTU: f.integer("mtu", 0, 68, 65535, &err),
	}
	if err == nil {
		err = f.rest("user, tap, none, id, mac, mtu; for user: hostfwd, hostaccess, restrict; for tap: bridge")
	}
	if err != nil {
		return n, err
	}
	kinds := 0
	for _, b := range []bool{n.User, n.None, n.Tap != ""} {
		if b {
			kinds++
		}
	}
	userOnly := len(n.HostFwd) > 0 || n.HostAccess || n.Restrict
	switch {
	case kinds != 1:
		return n, f.errorf("is exactly one of user, tap=NAME and none")
	case !n.User && userOnly:
		return n, f.errorf("hostfwd, hostaccess and restrict belong to user")
	case n.Tap == "" && n.Bridge != "":
		return n, f.errorf("bridge belongs to tap=NAME")
	}
	if n.MAC != "" {
		hw, merr := net.ParseMAC(n.MAC)
		if merr != nil || len(hw) != 6 || hw[0]&1 != 0 {
			return n, f.errorf("mac %q is not a unicast Ethernet address such as 52:54:00:12:34:56", n.MAC)
		}
	}
	if n.ID != "" {
		return n, checkID(f, n.ID)
	}
	return n, nil
}

// ParsePort reads the SPEC of --console or --serial.
func ParsePort(flag, spec string) (PortSpec, error) {
	f, err := splitSpec(flag, spec, "", "stdio", "log", "none", "pty")
	if err != nil {
		return PortSpec{}, err
	}
	p := PortSpec{File: f.str("file", &err), Socket: f.str("socket", &err)}
	kinds := 0
	for _, k := range []PortKind{PortStdio, PortLog, PortNone, PortPTY} {
		if f.boolean(string(k), &err) {
			p.Kind = k
			kinds++
		}
	}
	if p.File != "" {
		p.Kind = PortFile
		kinds++
	}
	if p.Socket != "" {
		p.Kind = PortSocket
		kinds++
	}
	if err == nil {
		err = f.rest("stdio, log, none, pty, file=PATH, socket=PATH")
	}
	if err == nil && kinds != 1 {
		err = f.errorf("is exactly one of stdio, log, none, pty, file=PATH and socket=PATH")
	}
	return p, err
}

// ParseRNG reads the SPEC of --rng: "host", "none", or path=FILE, with rate=BYTES per second.
func ParseRNG(spec string) (RNGSpec, error) {
	f, err := splitSpec("rng", spec, "", "host", "none")
	if err != nil {
		return RNGSpec{}, err
	}
	r := RNGSpec{None: f.boolean("none", &err), Path: f.str("path", &err)}
	host := f.boolean("host", &err)
	if s := f.str("rate", &err); s != "" {
		n, serr := ParseSize(s)
		if serr != nil || n == 0 {
			return r, f.errorf("rate is a number of bytes a second, as 64K, not %q", s)
		}
		r.RateBytes = n
	}
	if err == nil {
		err = f.rest("host, none, path=FILE, rate=BYTES")
	}
	if err == nil && (r.None && (host || r.Path != "") || host && r.Path != "") {
		err = f.errorf("is one of host, none and path=FILE")
	}
	return r, err
}

var errName = errors.New("names are letters, digits, dot, dash and underscore, do not start with a dot or dash, and have at most 64 bytes")

const maxNameBytes = 64

func validName(s string) bool {
	if s == "" || len(s) > maxNameBytes || s[0] == '.' || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// CheckName returns an error if s cannot be a guest's name.
func CheckName(s string) error {
	if !validName(s) {
		return fmt.Errorf("guest name %q: %w", s, errName)
	}
	return nil
}
