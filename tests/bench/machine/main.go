// Command machine is the smallest program around package vmm that the
// benchmarks measure where the peervisor binary is not wanted: a kernel, a
// command line, virtio-mmio disks on files, the serial port on standard output.
// Its exit status is 0 when the guest powered off.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime/pprof"
	"strings"

	"github.com/peervisor/peervisor/virtio/blk"
	"github.com/peervisor/peervisor/vmm"
	"github.com/peervisor/peervisor/vmm/boot"
)

type options struct {
	kernel, append, profile string
	memMiB                  uint64
	cpus, queues            int
	stats                   bool
	disks                   stringList
}

type stringList []string

func (l *stringList) String() string     { return strings.Join(*l, ",") }
func (l *stringList) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	var o options
	flag.StringVar(&o.kernel, "kernel", "", "ELF to boot")
	flag.StringVar(&o.append, "append", "", "command line")
	flag.Uint64Var(&o.memMiB, "memory", 128, "RAM in MiB")
	flag.IntVar(&o.cpus, "cpus", 1, "vCPUs")
	flag.IntVar(&o.queues, "queues", 1, "queues of each disk")
	flag.BoolVar(&o.stats, "stats", false, "print the machine's counters on standard error at the end")
	flag.StringVar(&o.profile, "profile", "", "write a CPU profile to this file")
	flag.Var(&o.disks, "disk", "raw file; repeatable")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "machine:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	if o.profile != "" {
		f, err := os.Create(o.profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	k, err := os.Open(o.kernel)
	if err != nil {
		return err
	}
	defer k.Close()
	st, err := k.Stat()
	if err != nil {
		return err
	}
	cfg := vmm.Config{
		CPUs: o.cpus, MemoryBytes: o.memMiB << 20,
		Boot:   boot.Source{Kernel: k, KernelSize: st.Size(), KernelName: o.kernel, Cmdline: o.append},
		Serial: vmm.SerialConfig{Out: os.Stdout},
	}
	for i, path := range o.disks {
		backend, err := blk.Open(blk.Options{Path: path, ForceRaw: true})
		if err != nil {
			return err
		}
		d, err := blk.New(blk.Config{Backend: backend, Queues: o.queues})
		if err != nil {
			return err
		}
		defer func() { _ = d.Close() }()
		cfg.Devices = append(cfg.Devices, vmm.DeviceConfig{Name: fmt.Sprintf("disk%d", i), Half: d, Transport: vmm.TransportMMIO})
		cfg.Boot.Cmdline += fmt.Sprintf(" virtio_mmio.device=4K@%#x:%d", 0xF000_0000+i*0x1000, 16+i)
	}
	m, err := vmm.New(cfg)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	if err := m.Start(); err != nil {
		return err
	}
	exit, err := m.Wait(context.Background())
	if err != nil {
		return err
	}
	if o.stats {
		fmt.Fprintf(os.Stderr, "%+v\n", m.Stats())
	}
	if exit.Reason != vmm.ReasonPowerOff {
		return fmt.Errorf("guest ended by %v: %s", exit.Reason, exit.Detail)
	}
	return nil
}
