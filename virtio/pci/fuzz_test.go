package pci_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/virtiotest"
)

// FuzzRegisters plays scripts of accesses to the configuration space and to BAR 0:
// seven bytes each, an opcode with the width, an offset, and a value. Nothing panics,
// the Mapper is called in turn, and every script ends in a device that a reset
// makes well.
func FuzzRegisters(f *testing.F) {
	const toConfig, isWrite = 8, 4
	op := func(code byte, off uint16, v uint32) []byte {
		return binary.LittleEndian.AppendUint32([]byte{code, byte(off), byte(off >> 8)}, v)
	}
	var start []byte
	add := func(width byte, off uint16, v uint32) { start = append(start, op(isWrite|width, off, v)...) }
	add(0, 20, 3)
	add(2, 8, 1)
	add(2, 12, 1)
	add(0, 20, 11)
	add(1, 22, 0)
	add(1, 24, 8)
	add(2, 32, 0x1000)
	add(2, 40, 0x2000)
	add(2, 48, 0x3000)
	add(1, 28, 1)
	add(0, 20, 15)
	add(1, 0x4000, 0)
	f.Add(start)
	f.Add(slices.Concat(start, op(isWrite, 20, 0)))
	f.Add(slices.Concat(op(toConfig|isWrite|2, 0x10, 0xFFFF_FFFF), op(toConfig|isWrite|1, 4, 2), op(toConfig|isWrite|1, 0x42, 0xC000)))
	f.Add(slices.Concat(op(isWrite|3, 0x8000, 0), op(isWrite|2, 0x800C, 0), op(3, 0xC000, 0), op(2, 0xFFFC, 0)))
	f.Fuzz(func(t *testing.T, script []byte) {
		half := virtiotest.NewDevice(2, 8)
		d := virtiotest.NewDriver(t, half, virtiotest.Transports["pci"])
		p := d.T.(*virtiotest.PCI)
		d.Put(0x1000, virtiotest.Desc{Addr: 0x4000, Len: 64, Flags: virtio.VIRTQ_DESC_F_WRITE}.Bytes())
		d.Put(0x2000, []byte{0, 0, 1, 0})
		for n := 0; len(script) >= 7 && n < 200; n, script = n+1, script[7:] {
			b := make([]byte, 1<<(script[0]&3))
			off := binary.LittleEndian.Uint16(script[1:])
			copy(b, script[3:7])
			switch code := script[0]; {
			case code&toConfig == 0 && code&isWrite != 0:
				p.WriteBAR(uint64(off), b)
			case code&toConfig == 0:
				p.ReadBAR(uint64(off), b)
			case code&isWrite != 0:
				p.Function.WriteConfig(int(off&0x1FFF), b)
			default:
				p.Function.ReadConfig(int(off&0x1FFF), b)
			}
		}
		if err := p.Reset(); err != nil {
			t.Fatal(err)
		}
		p.Firmware()
		d.Features = p.DeviceFeatures()
		d.Start(0)
		d.Queues[0].Add(virtiotest.Buf{Addr: 0x100000, Len: 1, Writable: true})
		d.Queues[0].Kick()
		d.Queues[0].Wait(1)
		if err := half.Violations(); err != nil {
			t.Error(err)
		}
	})
}
