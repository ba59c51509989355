package bare

import (
	"strings"
	"testing"

	"github.com/peervisor/peervisor/virtio"
)

// harmless are the cases in which the device may go on as if nothing were: what was
// written names nothing that exists, or is undone by the reset that belongs to it.
var harmless = map[string]bool{"queue-unknown": true, "queue-select": true, "config-range": true, "reset-in-flight": true}

// broken are violations of the ring's rules, after which nothing in the ring can
// be believed: the device must say DEVICE_NEEDS_RESET.
var broken = map[string]bool{
	"desc-loop": true, "desc-self": true, "next-range": true, "head-range": true, "head-huge": true,
	"addr-hole": true, "addr-mmio": true, "addr-far": true, "addr-wrap": true, "addr-cross": true, "len-huge": true,
	"readable-after-writable": true, "avail-jump": true, "avail-back": true,
	"indirect-nested": true, "indirect-odd": true, "indirect-empty": true, "indirect-short": true, "indirect-huge": true,
	"indirect-next": true, "indirect-unasked": true,
}

func TestHostileDriverHarmsOnlyItsDevice(t *testing.T) {
	var lines []string
	r := run(t, spec{
		cmdline: "bare.test=hostile disk=0",
		halves:  []virtio.Device{disk(t, 16, 1), disk(t, 16, 1)},
		line: func(s string) {
			if strings.HasPrefix(s, "H ") {
				lines = append(lines, s)
			}
		},
	})
	if r.Cases < 39 || int(r.Cases) != len(lines) || r.Dead != 0 || r.Disturbed != 0 {
		t.Errorf("result %s with %d lines", r.Line, len(lines))
	}
	for _, l := range lines {
		f := strings.Fields(l)
		if len(f) != 6 {
			t.Errorf("line %q", l)
			continue
		}
		name, what := f[1], f[2]
		if broken[name] && what != "needs-reset" {
			t.Errorf("%s: the device is %s, want needs-reset", name, what)
		}
		if harmless[name] && what == "needs-reset" {
			t.Errorf("%s: the device needs a reset", name)
		}
		t.Log(l)
	}
}
