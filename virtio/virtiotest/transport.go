package virtiotest

import (
	"context"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/peervisor/peervisor/memory"
	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/mmio"
	"github.com/peervisor/peervisor/virtio/pci"
)

// Transport is what a driver does to a device, whatever the registers are.
type Transport interface {
	Name() string
	Status() byte
	SetStatus(v byte)
	DeviceFeatures() uint64
	SetDriverFeatures(v uint64)
	// QueueMax is the queue size offered; 0: no such queue.
	QueueMax(q int) int
	SetupQueue(q int, size uint32, desc, driver, device memory.Addr)
	EnableQueue(q int)
	QueueEnabled(q int) bool
	Notify(q int)
	ReadConfig(off uint64, p []byte)
	WriteConfig(off uint64, p []byte)
	Generation() uint32
	// QueueInterrupts and ConfigInterrupts count what the driver received. Where the
	// transport has one interrupt for all queues, q does not matter.
	QueueInterrupts(q int) int
	ConfigInterrupts() int

	Half
}

// Half is the machine's side of a transport half, the same for all transports.
type Half interface {
	Pause(ctx context.Context) error
	Resume() error
	Reset() error
	Close() error
	Stats() virtio.Stats
	Doorbells() []virtio.Doorbell
}

// Transports makes each real transport half around a device half.
var Transports = map[string]func(testing.TB, virtio.Device, *memory.Memory) Transport{
	"pci":  func(tb testing.TB, d virtio.Device, m *memory.Memory) Transport { return NewPCI(tb, d, m) },
	"mmio": func(tb testing.TB, d virtio.Device, m *memory.Memory) Transport { return NewMMIO(tb, d, m) },
}

// Each runs a test once for each transport.
func Each(t *testing.T, f func(t *testing.T, make func(testing.TB, virtio.Device, *memory.Memory) Transport)) {
	for _, name := range []string{"pci", "mmio"} {
		t.Run(name, func(t *testing.T) { f(t, Transports[name]) })
	}
}

// Offsets of the registers, from the specification: the driver does not share
// the constants of the device that it tests.
const (
	barCommon, barISR, barDevice, barNotify, barTable, barPBA = 0, 0x1000, 0x2000, 0x4000, 0x8000, 0xC000

	msixCap = 0x40
)

// PCI drives a pci.Function, with MSI-X on: vector 0 is for the configuration, i+1 for
// queue i. It is the function's MSIX and Mapper, too.
type PCI struct {
	*pci.Function
	tb testing.TB

	mu     sync.Mutex
	mapped map[int]uint64
	// FailMap makes Map fail.
	FailMap error

	// Signals, Sets and Masks count what the function did to each vector; Routes
	// is what it set last.
	Signals, Sets, Masks []atomic.Uint64
	Routes               []atomic.Uint64
}

// NewPCI makes a function for the half, in slot 1, as a driver finds it after the
// firmware: MSI-X and memory decoding are on, all vectors unmasked.
func NewPCI(tb testing.TB, half virtio.Device, mem *memory.Memory) *PCI {
	tb.Helper()
	p := NewPCIRaw(tb, half, mem)
	p.Firmware()
	return p
}

// Firmware sets up what a driver finds: again after a reset of the machine.
func (p *PCI) Firmware() {
	for i := range p.Vectors() {
		p.Write32(barTable+uint64(i)*16, 0xFEE0_0000)
		p.Write32(barTable+uint64(i)*16+8, uint32(0x40+i))
		p.Write32(barTable+uint64(i)*16+12, 0)
	}
	p.WriteConfig16(4, 6)
	p.WriteConfig16(msixCap+2, 0x8000)
}

// NewPCIRaw is NewPCI without the firmware's and driver's set-up.
func NewPCIRaw(tb testing.TB, half virtio.Device, mem *memory.Memory) *PCI {
	tb.Helper()
	n := len(half.Info().Queues) + 1
	p := &PCI{
		tb: tb, mapped: map[int]uint64{}, Signals: make([]atomic.Uint64, n), Sets: make([]atomic.Uint64, n),
		Masks: make([]atomic.Uint64, n), Routes: make([]atomic.Uint64, n),
	}
	f, err := pci.New(pci.Config{Name: "test", Device: half, Memory: mem, Slot: 1, BAR: 0xC001_0000, MSIX: p, Mapper: p})
	if err != nil {
		tb.Fatal(err)
	}
	p.Function = f
	return p
}

// SetVector implements pci.MSIX.
func (p *PCI) SetVector(i int, addr uint64, data uint32) error {
	p.Sets[i].Add(1)
	p.Routes[i].Store(addr<<32 | uint64(data))
	return nil
}

// MaskVector implements pci.MSIX.
func (p *PCI) MaskVector(i int) error { p.Masks[i].Add(1); return nil }

// Signal implements pci.MSIX.
func (p *PCI) Signal(i int) error { p.Signals[i].Add(1); return nil }

// Map implements pci.Mapper.
func (p *PCI) Map(bar int, addr, lenBytes uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.FailMap != nil {
		return p.FailMap
	}
	if _, ok := p.mapped[bar]; ok || lenBytes != pci.BARLenBytes {
		p.tb.Errorf("BAR %d mapped twice, or not with its length: %#x", bar, lenBytes)
	}
	p.mapped[bar] = addr
	return nil
}

// Unmap implements pci.Mapper.
func (p *PCI) Unmap(bar int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.mapped[bar]; !ok {
		p.tb.Errorf("BAR %d unmapped without a mapping", bar)
	}
	delete(p.mapped, bar)
	return nil
}

// Mapped is where BAR 0 is, 0 for nowhere.
func (p *PCI) Mapped() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mapped[0]
}

// Read8 and its like access BAR 0.
func (p *PCI) Read8(off uint64) uint8 { var b [1]byte; p.ReadBAR(off, b[:]); return b[0] }
func (p *PCI) Read16(off uint64) uint16 {
	var b [2]byte
	p.ReadBAR(off, b[:])
	return binary.LittleEndian.Uint16(b[:])
}
func (p *PCI) Read32(off uint64) uint32 {
	var b [4]byte
	p.ReadBAR(off, b[:])
	return binary.LittleEndian.Uint32(b[:])
}
func (p *PCI) Write8(off uint64, v uint8) { p.WriteBAR(off, []byte{v}) }
func (p *PCI) Write16(off uint64, v uint16) {
	p.WriteBAR(off, binary.LittleEndian.AppendUint16(nil, v))
}
func (p *PCI) Write32(off uint64, v uint32) {
	p.WriteBAR(off, binary.LittleEndian.AppendUint32(nil, v))
}

// WriteConfig16 and its like access the configuration space.
func (p *PCI) WriteConfig16(off int, v uint16) {
	p.Function.WriteConfig(off, binary.LittleEndian.AppendUint16(nil, v))
}
func (p *PCI) WriteConfig32(off int, v uint32) {
	p.Function.WriteConfig(off, binary.LittleEndian.AppendUint32(nil, v))
}
func (p *PCI) ReadConfig32(off int) uint32 {
	var b [4]byte
	p.Function.ReadConfig(off, b[:])
	return binary.LittleEndian.Uint32(b[:])
}

func (p *PCI) Name() string     { return "pci" }
func (p *PCI) Status() byte     { return p.Read8(20) }
func (p *PCI) SetStatus(v byte) { p.Write8(20, v) }

func (p *PCI) DeviceFeatures() uint64 {
	p.Write32(0, 0)
	lo := p.Read32(4)
	p.Write32(0, 1)
	return uint64(lo) | uint64(p.Read32(4))<<32
}

func (p *PCI) SetDriverFeatures(v uint64) {
	p.Write32(8, 0)
	p.Write32(12, uint32(v))
	p.Write32(8, 1)
	p.Write32(12, uint32(v>>32))
}

func (p *PCI) QueueMax(q int) int {
	p.Write16(22, uint16(q))
	return int(p.Read16(24))
}

func (p *PCI) SetupQueue(q int, size uint32, desc, driver, device memory.Addr) {
	p.Write16(22, uint16(q))
	p.Write16(24, uint16(min(size, 0xFFFF)))
	p.Write16(26, uint16(q+1))
	for i, a := range []memory.Addr{desc, driver, device} {
		p.Write32(32+8*uint64(i), uint32(a))
		p.Write32(36+8*uint64(i), uint32(a>>32))
	}
}

func (p *PCI) EnableQueue(q int) {
	p.Write16(22, uint16(q))
	p.Write16(28, 1)
	p.Write16(16, 0) // the configuration's vector
}

func (p *PCI) QueueEnabled(q int) bool {
	p.Write16(22, uint16(q))
	return p.Read16(28) == 1
}

func (p *PCI) Notify(q int)                     { p.Write16(barNotify+4*uint64(q), uint16(q)) }
func (p *PCI) ReadConfig(off uint64, b []byte)  { p.ReadBAR(barDevice+off, b) }
func (p *PCI) WriteConfig(off uint64, b []byte) { p.WriteBAR(barDevice+off, b) }
func (p *PCI) Generation() uint32               { return uint32(p.Read8(21)) }
func (p *PCI) QueueInterrupts(q int) int        { return int(p.Signals[q+1].Load()) }
func (p *PCI) ConfigInterrupts() int            { return int(p.Signals[0].Load()) }

// MMIO drives an mmio.Device. It is the device's Line, too, and acknowledges each
// interrupt at once.
type MMIO struct {
	*mmio.Device
	used, config, edges atomic.Uint64
	// NoAck leaves InterruptStatus to the test.
	NoAck atomic.Bool
}

// NewMMIO makes a device for the half.
func NewMMIO(tb testing.TB, half virtio.Device, mem *memory.Memory) *MMIO {
	tb.Helper()
	m := &MMIO{}
	d, err := mmio.New(mmio.Config{Name: "test", Device: half, Memory: mem, Line: m})
	if err != nil {
		tb.Fatal(err)
	}
	m.Device = d
	return m
}

// Signal implements mmio.Line: the driver's interrupt handler.
func (m *MMIO) Signal() error {
	m.edges.Add(1)
	if m.NoAck.Load() {
		return nil
	}
	s := m.Read32(0x60)
	m.Write32(0x64, s)
	m.used.Add(uint64(s & 1))
	m.config.Add(uint64(s >> 1 & 1))
	return nil
}

// Edges counts the interrupts raised.
func (m *MMIO) Edges() int { return int(m.edges.Load()) }

func (m *MMIO) Read32(off uint64) uint32 {
	var b [4]byte
	m.Read(off, b[:])
	return binary.LittleEndian.Uint32(b[:])
}
func (m *MMIO) Write32(off uint64, v uint32) { m.Write(off, binary.LittleEndian.AppendUint32(nil, v)) }

func (m *MMIO) Name() string     { return "mmio" }
func (m *MMIO) Status() byte     { return byte(m.Read32(0x70)) }
func (m *MMIO) SetStatus(v byte) { m.Write32(0x70, uint32(v)) }

func (m *MMIO) DeviceFeatures() uint64 {
	m.Write32(0x14, 0)
	lo := m.Read32(0x10)
	m.Write32(0x14, 1)
	return uint64(lo) | uint64(m.Read32(0x10))<<32
}

func (m *MMIO) SetDriverFeatures(v uint64) {
	m.Write32(0x24, 0)
	m.Write32(0x20, uint32(v))
	m.Write32(0x24, 1)
	m.Write32(0x20, uint32(v>>32))
}

func (m *MMIO) QueueMax(q int) int {
	m.Write32(0x30, uint32(q))
	return int(m.Read32(0x34))
}

func (m *MMIO) SetupQueue(q int, size uint32, desc, driver, device memory.Addr) {
	m.Write32(0x30, uint32(q))
	m.Write32(0x38, size)
	for i, a := range []memory.Addr{desc, driver, device} {
		m.Write32(0x80+0x10*uint64(i), uint32(a))
		m.Write32(0x84+0x10*uint64(i), uint32(a>>32))
	}
}

func (m *MMIO) EnableQueue(q int) {
	m.Write32(0x30, uint32(q))
	m.Write32(0x44, 1)
}

func (m *MMIO) QueueEnabled(q int) bool {
	m.Write32(0x30, uint32(q))
	return m.Read32(0x44) == 1
}

func (m *MMIO) Notify(q int)                     { m.Write32(0x50, uint32(q)) }
func (m *MMIO) ReadConfig(off uint64, b []byte)  { m.Read(0x100+off, b) }
func (m *MMIO) WriteConfig(off uint64, b []byte) { m.Write(0x100+off, b) }
func (m *MMIO) Generation() uint32               { return m.Read32(0xFC) }
func (m *MMIO) QueueInterrupts(int) int          { return int(m.used.Load()) }
func (m *MMIO) ConfigInterrupts() int            { return int(m.config.Load()) }
