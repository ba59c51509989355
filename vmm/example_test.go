package vmm_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"

	"github.com/peervisor/peervisor/virtio/rng"
	"github.com/peervisor/peervisor/vmm"
	"github.com/peervisor/peervisor/vmm/boot"
)

// A kernel boots with its console on this program's standard output, and an
// entropy device, until it powers itself off.
func Example() {
	kernel, err := os.ReadFile("vmlinuz")
	if err != nil {
		log.Fatal(err)
	}
	entropy, err := rng.New(rng.Config{})
	if err != nil {
		log.Fatal(err)
	}
	m, err := vmm.New(vmm.Config{
		CPUs:        2,
		MemoryBytes: 512 << 20,
		Boot:        boot.Source{Kernel: bytes.NewReader(kernel), KernelSize: int64(len(kernel)), KernelName: "vmlinuz", Cmdline: "console=ttyS0 panic=-1"},
		Serial:      vmm.SerialConfig{Out: os.Stdout},
		Devices:     []vmm.DeviceConfig{{Name: "rng0", Half: entropy}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if err := m.Start(); err != nil {
		log.Fatal(err)
	}
	exit, err := m.Wait(context.Background())
	fmt.Println(exit, err)
}
