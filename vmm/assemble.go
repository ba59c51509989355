package vmm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kvm"
	"github.com/peervisor/peervisor/memory"
	"github.com/peervisor/peervisor/virtio/mmio"
	"github.com/peervisor/peervisor/vmm/acpi"
	"github.com/peervisor/peervisor/vmm/boot"
	"github.com/peervisor/peervisor/vmm/chipset"
)

// Addresses that KVM needs on Intel processors (docs/machine-v1.md).
const (
	identityMapAddr = 0xFFFB_C000
	tssAddr         = 0xFFFB_D000
)

// spareProcs is how many Ps there are beside the vCPUs': a thread that comes
// back from KVM_RUN must find one while device workers are busy.
const spareProcs = 4

// New makes a machine: it checks cfg, opens /dev/kvm, takes memory, loads the
// kernel and sets up the devices. Nothing runs. On error nothing is left behind.
//
// Errors that callers may tell apart: ErrConfig, kvm.ErrNotPresent,
// kvm.ErrNotPermitted; others name what failed.
func New(cfg Config) (*Machine, error) { return newMachine(cfg, boot.Load) }

// loader is boot.Load, or a test's.
type loader func(*memory.Memory, boot.Source, memory.Addr) (boot.Entry, error)

func newMachine(cfg Config, load loader) (*Machine, error) {
	start := time.Now()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if err := checkHostMemory(cfg.MemoryBytes); err != nil {
		return nil, err
	}
	m := &Machine{cfg: cfg, life: make(chan struct{}, 1), done: make(chan struct{}), gate: newGate(cfg.CPUs)}
	m.ending, m.setEnding = context.WithCancel(context.Background())
	m.times.New = start
	if n := cfg.CPUs + spareProcs; runtime.GOMAXPROCS(0) < n {
		runtime.GOMAXPROCS(n)
	}
	if err := m.assemble(load); err != nil {
		m.finish(Exit{Reason: ReasonKilled})
		return nil, errors.Join(fmt.Errorf("make machine %s: %w", cfg.Name, err), m.teardown())
	}
	m.cfg.Boot = boot.Source{} // the caller's readers are not used any more
	m.times.Ready = time.Now()
	go m.reap()
	return m, nil
}

// checkHostMemory refuses a guest that is larger than the host.
func checkHostMemory(bytes uint64) error {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return nil // the mapping will tell
	}
	if host := uint64(si.Totalram) * uint64(si.Unit); bytes > host {
		return configErrorf("%d MiB of memory: this host has %d MiB", bytes>>20, host>>20)
	}
	return nil
}

// assemble makes the parts. The kernel is loaded on a goroutine of its own
// while KVM, which takes about as long, makes the VM and its vCPUs.
func (m *Machine) assemble(boots loader) error {
	var err error
	if m.ram, err = memory.New("peervisor:"+m.cfg.Name, memory.Layout(m.cfg.MemoryBytes)); err != nil {
		return err
	}
	type loaded struct {
		entry boot.Entry
		err   error
	}
	load := make(chan loaded, 1)
	go func() {
		entry, err := m.load(boots)
		load <- loaded{entry, err}
	}()
	err = m.assembleKVM()
	l := <-load
	if err := cmp.Or(err, l.err); err != nil { // one line for a person: KVM's first
		return err
	}
	m.times.Loaded = time.Now()
	return m.onVCPU(0, func(p *kvm.VCPU) error { return setEntry(p, l.entry) })
}

// load writes ACPI tables and kernel into guest RAM.
func (m *Machine) load(boots loader) (boot.Entry, error) {
	cfg := acpi.Config{CPUs: m.cfg.CPUs, Serial: m.cfg.Serial.Out != nil}
	for _, d := range m.cfg.Devices {
		if i := len(cfg.VirtioMMIO); d.Transport == TransportMMIO {
			cfg.VirtioMMIO = append(cfg.VirtioMMIO, acpi.MMIODevice{Addr: virtioMMIOBase + uint64(i)*mmio.LenBytes, GSI: firstMMIOGSI + uint32(i)})
		}
	}
	tables, rsdp, err := acpi.Build(cfg)
	if err != nil {
		return boot.Entry{}, err
	}
	if err := m.ram.WriteAt(tables, acpi.Base); err != nil {
		return boot.Entry{}, fmt.Errorf("write ACPI tables: %w", err)
	}
	return boots(m.ram, m.cfg.Boot, memory.Addr(rsdp))
}

// assembleKVM makes everything that does not depend on the kernel.
func (m *Machine) assembleKVM() error {
	var err error
	if m.sys, err = kvm.Open(); err != nil {
		return err
	}
	if most, err := m.sys.CheckExtension(kvm.KVM_CAP_MAX_VCPUS); err == nil && most > 0 && m.cfg.CPUs > most {
		return configErrorf("%d CPUs: this host's KVM has at most %d", m.cfg.CPUs, most)
	}
	if m.vm, err = m.sys.CreateVM(); err != nil {
		return err
	}
	if err := m.vm.SetTSSAddr(tssAddr); err != nil {
		return err
	}
	if err := m.vm.SetIdentityMapAddr(identityMapAddr); err != nil {
		return err
	}
	// Before KVM_CREATE_IRQCHIP: that queues an SRCU grace period, for which a
	// later memory slot would wait (5 ms, against 0.1 ms here).
	for i, s := range m.ram.Slots() {
		if err := m.vm.SetMemoryRegion(uint32(i), 0, uint64(s.Start), s.LenBytes, s.HostAddr); err != nil {
			return err
		}
	}
	if err := m.vm.CreateIRQChip(); err != nil {
		return err
	}
	// vCPUs are made while the rest is: nothing below depends on them.
	ready := make(chan error, m.cfg.CPUs)
	if err := m.startVCPUs(ready); err != nil {
		return err
	}
	err = m.assembleBoard()
	for range m.vcpus {
		err = cmp.Or(err, <-ready) // all say the same, most likely
	}
	return err
}

// startVCPUs starts the vCPUs' threads. Each sends one value to ready.
func (m *Machine) startVCPUs(ready chan<- error) error {
	supported, err := m.sys.SupportedCPUID()
	if err != nil {
		return err
	}
	deadline, err := m.sys.CheckExtension(kvm.KVM_CAP_TSC_DEADLINE_TIMER)
	if err != nil {
		return err
	}
	for id := range m.cfg.CPUs {
		c := newVCPU(id, m, m.gate)
		m.vcpus = append(m.vcpus, c)
		go c.run(func() (processor, error) {
			p, err := m.vm.CreateVCPU(id)
			if err != nil {
				return nil, err
			}
			cpuid := guestCPUID(supported, id, m.cfg.CPUs, deadline > 0)
			if err := initVCPU(p, id, cpuid); err != nil {
				return nil, errors.Join(fmt.Errorf("vCPU %d: %w", id, err), p.Close())
			}
			return p, nil
		}, ready)
	}
	return nil
}

// assembleBoard makes chipset and devices.
func (m *Machine) assembleBoard() error {
	if err := m.vm.CreatePIT2(kvm.KVM_PIT_SPEAKER_DUMMY); err != nil {
		return err
	}
	var err error
	if m.router, err = newRouter(m.vm); err != nil {
		return err
	}
	host := chipset.NewPCIHost(chipset.NewResetControl(m.power))
	if err := m.addChipset(host); err != nil {
		return err
	}
	return m.addDevices(host)
}

// addChipset makes the devices that every machine has.
func (m *Machine) addChipset(host *chipset.PCIHost) error {
	m.rtc = chipset.NewRTC(chipset.RTCConfig{IRQ: pinLine{m.vm, chipset.RTCGSI}})
	m.pm = chipset.NewPM(chipset.PMConfig{SCI: pinLine{m.vm, chipset.SCIGSI}, Power: m.power})
	errs := []error{
		m.addRange(&m.ports, "rtc", chipset.RTCPort, chipset.RTCBytes, m.rtc),
		m.addRange(&m.ports, "pm", chipset.PMPort, chipset.PMBytes, m.pm),
		m.addRange(&m.ports, "i8042", chipset.I8042Port, chipset.I8042Bytes, chipset.NewI8042(m.power)),
		m.addRange(&m.ports, "pvpanic", chipset.PVPanicPort, chipset.PVPanicBytes, chipset.NewPVPanic(m.power)),
		m.addRange(&m.ports, "pci ports", chipset.PCIPort, chipset.PCIPortBytes, host.Ports()),
		m.addRange(&m.mmio, "pci ecam", chipset.ECAMStart, chipset.ECAMBytes, host.ECAM()),
	}
	if m.cfg.Serial.Out != nil {
		m.watch = &panicWatch{out: m.cfg.Serial.Out, clock: chipset.SystemClock(), halted: func() {
			m.finish(Exit{Reason: ReasonPanic, Detail: m.watch.found()})
		}}
		m.serial = chipset.NewSerial(chipset.SerialConfig{Out: m.watch, IRQ: pinLine{m.vm, chipset.SerialGSI}})
		errs = append(errs, m.addRange(&m.ports, "serial", chipset.SerialPort, chipset.SerialBytes, m.serial))
	}
	return errors.Join(errs...)
}

// onVCPU runs f on the thread of a vCPU that is held, and waits for it.
func (m *Machine) onVCPU(id int, f func(*kvm.VCPU) error) error {
	err := errEnded
	m.vcpus[id].call(func(p processor) {
		err = errors.ErrUnsupported
		if c, ok := p.(*kvm.VCPU); ok {
			err = f(c)
		}
	})
	return err
}

// teardown gives everything back, also what a failed assemble left. The guest
// has ended (finish was called).
func (m *Machine) teardown() error {
	m.setEnding()
	for _, c := range m.vcpus {
		<-c.gone
	}
	var errs []error
	keep := func(err error) { errs = append(errs, err) }
	for _, d := range m.devices {
		keep(d.close())
	}
	if m.watch != nil {
		m.watch.close()
		keep(m.serial.Close())
	}
	if m.rtc != nil {
		keep(m.rtc.Close())
		keep(m.pm.Close())
	}
	if m.vm != nil {
		keep(m.vm.Close())
	}
	if m.sys != nil {
		keep(m.sys.Close())
	}
	if m.ram != nil {
		keep(m.ram.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close machine %s: %w", m.cfg.Name, err)
	}
	return nil
}
