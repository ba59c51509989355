package main

import (
	"errors"
	"strconv"
	"strings"
)

// mountSpec is a file system that the kernel command line names.
type mountSpec struct {
	source, path, fstype string
	readOnly             bool
}

// options are the words of the kernel command line that are init's.
type options struct {
	root     *mountSpec
	mounts   []mountSpec
	net      bool
	hostname string
	// time is seconds since 1970 that it is at least; 0: not said.
	time int64
	// verbose: the user chose how much the kernel prints to its console.
	verbose bool
}

// maxMounts bounds the words peervisor.mount=; the line itself is 2 KiB to 64 KiB.
const maxMounts = 64

// defaultHostname is the guest's if the command line gives none.
const defaultHostname = "guest"

// parseOptions reads the command line. What it cannot read it reports and leaves out.
func parseOptions(line string) (options, []error) {
	o := options{net: true, hostname: defaultHostname}
	var faults []error
	fault := func(word, why string) { faults = append(faults, errors.New("kernel command line: "+word+": "+why)) }
	for _, word := range splitWords(line) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "peervisor.root":
			// SOURCE:TYPE[:ro]
			fields := strings.Split(value, ":")
			if len(fields) < 2 || len(fields) > 3 || fields[0] == "" || fields[1] == "" || len(fields) == 3 && fields[2] != "ro" {
				fault(word, "expected peervisor.root=DEVICE:TYPE[:ro]")
				continue
			}
			o.root = &mountSpec{source: fields[0], path: newRoot, fstype: fields[1], readOnly: len(fields) == 3}
		case "peervisor.mount":
			// SOURCE:PATH:TYPE[:ro]
			fields := strings.Split(value, ":")
			if len(fields) < 3 || len(fields) > 4 || fields[0] == "" || !strings.HasPrefix(fields[1], "/") || fields[2] == "" || len(fields) == 4 && fields[3] != "ro" {
				fault(word, "expected peervisor.mount=TAG:PATH:TYPE[:ro]")
				continue
			}
			if len(o.mounts) == maxMounts {
				fault(word, "too many mounts")
				continue
			}
			o.mounts = append(o.mounts, mountSpec{source: fields[0], path: fields[1], fstype: fields[2], readOnly: len(fields) == 4})
		case "peervisor.net":
			switch value {
			case "off":
				o.net = false
			case "dhcp", "on":
				o.net = true
			default:
				fault(word, "expected off or dhcp")
			}
		case "peervisor.hostname":
			if value == "" || len(value) > 64 {
				fault(word, "expected 1 to 64 characters")
				continue
			}
			o.hostname = value
		case "peervisor.time":
			seconds, err := strconv.ParseInt(value, 10, 64)
			if err != nil || seconds <= 0 || seconds > maxTime {
				fault(word, "expected seconds since 1970")
				continue
			}
			o.time = seconds
		case "loglevel", "debug", "ignore_loglevel", "quiet":
			o.verbose = true
		}
	}
	return o, faults
}

// maxTime is the last second of the year 9999.
const maxTime = 253402300799

// splitWords splits a kernel command line as the kernel does: at spaces outside
// double quotes, which are dropped.
func splitWords(line string) []string {
	var words []string
	var word strings.Builder
	quoted, any := false, false
	for _, c := range []byte(line) {
		switch {
		case c == '"':
			quoted, any = !quoted, true
		case !quoted && (c == ' ' || c == '\n' || c == '\t' || c == '\r'):
			if any {
				words = append(words, word.String())
				word.Reset()
				any = false
			}
		default:
			word.WriteByte(c)
			any = true
		}
	}
	if any {
		words = append(words, word.String())
	}
	return words
}
