package vmm

import (
	"errors"
	"strings"
	"testing"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/vmm/boot"
)

// idle is a device half that does nothing.
type idle struct{ info virtio.Info }

func (h idle) Info() virtio.Info                    { return h.info }
func (h idle) Activate(virtio.Activation) error     { return nil }
func (h idle) WriteConfig(int, []byte)              {}
func (h idle) Submit(_ int, reqs []*virtio.Request) { reqs[0].Return() }
func (h idle) Quiesce(int)                          {}
func (h idle) Reset()                               {}

func TestConfigErrors(t *testing.T) {
	kernel := boot.Source{Kernel: strings.NewReader("")}
	many := func(n int, tr Transport) (out []DeviceConfig) {
		for i := range n {
			out = append(out, DeviceConfig{Name: string(rune('A' + i)), Half: idle{}, Transport: tr})
		}
		return out
	}
	for _, c := range []struct {
		want string
		cfg  Config
	}{
		{"0 bytes of memory", Config{Boot: kernel}},
		{"multiple of 4096", Config{Boot: kernel, MemoryBytes: 4<<20 + 1}},
		{"bytes of memory", Config{Boot: kernel, MemoryBytes: 1 << 50}},
		{"this host has", Config{Boot: kernel, MemoryBytes: 1 << 39}},
		{"300 CPUs", Config{Boot: kernel, MemoryBytes: 4 << 20, CPUs: 300}},
		{"-1 CPUs", Config{Boot: kernel, MemoryBytes: 4 << 20, CPUs: -1}},
		{"no kernel", Config{MemoryBytes: 4 << 20}},
		{"name of 200 bytes", Config{Boot: kernel, MemoryBytes: 4 << 20, Name: strings.Repeat("x", 200)}},
		{"device 0: expected a name", Config{Boot: kernel, MemoryBytes: 4 << 20, Devices: []DeviceConfig{{Half: idle{}}}}},
		{`device "a": no device half`, Config{Boot: kernel, MemoryBytes: 4 << 20, Devices: []DeviceConfig{{Name: "a"}}}},
		{`device "a": the name is used twice`, Config{Boot: kernel, MemoryBytes: 4 << 20, Devices: []DeviceConfig{{Name: "a", Half: idle{}}, {Name: "a", Half: idle{}}}}},
		{"transport(9) is no transport", Config{Boot: kernel, MemoryBytes: 4 << 20, Devices: []DeviceConfig{{Name: "a", Half: idle{}, Transport: 9}}}},
		{"32 PCI devices", Config{Boot: kernel, MemoryBytes: 4 << 20, Devices: many(32, TransportPCI)}},
		{"9 virtio-mmio devices", Config{Boot: kernel, MemoryBytes: 4 << 20, Devices: many(9, TransportMMIO)}},
	} {
		m, err := New(c.cfg)
		if m != nil || !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, expected … %s", err, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		StatePaused.String(): "paused", State(99).String(): "state(99)",
		ReasonTripleFault.String(): "triple-fault", Reason(99).String(): "reason(99)",
		TransportMMIO.String():                          "mmio",
		Exit{Reason: ReasonReset}.String():              "reset",
		Exit{Reason: ReasonPanic, Detail: "x"}.String(): "panic: x",
	} {
		if got != want {
			t.Errorf("%q, expected %q", got, want)
		}
	}
	for s := StateNew; s <= StateClosed; s++ {
		if strings.HasPrefix(s.String(), "state(") {
			t.Errorf("state %d has no name", s)
		}
	}
	for r := ReasonNone; r <= ReasonFault; r++ {
		if strings.HasPrefix(r.String(), "reason(") {
			t.Errorf("reason %d has no name", r)
		}
	}
}
