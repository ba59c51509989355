package pci

import (
	"encoding/binary"
	"fmt"

	"github.com/peervisor/peervisor/virtio"
)

var le = binary.LittleEndian

// classes are the class and sub-class codes of device types (PCI Code and ID
// Assignment); others are "unclassified, not VGA".
var classes = map[virtio.DeviceID][2]byte{
	virtio.VIRTIO_ID_NET:     {0x02, 0x00}, // network, Ethernet
	virtio.VIRTIO_ID_BLOCK:   {0x01, 0x80}, // mass storage, other
	virtio.VIRTIO_ID_CONSOLE: {0x07, 0x80}, // communication, other
	virtio.VIRTIO_ID_RNG:     {0x10, 0x80}, // encryption, other
}

// initConfig sets the registers to their state after power-on.
func (f *Function) initConfig() {
	c, w := &f.config, &f.writable
	clear(c[:])
	clear(w[:])
	id := f.core.ID()
	le.PutUint16(c[PCI_VENDOR_ID:], VIRTIO_PCI_VENDOR_ID)
	le.PutUint16(c[PCI_DEVICE_ID:], VIRTIO_PCI_DEVICE_BASE+uint16(id))
	le.PutUint16(c[PCI_STATUS:], PCI_STATUS_CAP_LIST)
	c[PCI_REVISION_ID] = 1
	class, ok := classes[id]
	if !ok {
		class = [2]byte{0x00, 0xFF}
	}
	c[PCI_CLASS_PROG+1], c[PCI_CLASS_PROG+2] = class[1], class[0]
	le.PutUint16(c[PCI_SUBSYSTEM_VENDOR_ID:], VIRTIO_PCI_VENDOR_ID)
	le.PutUint16(c[PCI_SUBSYSTEM_ID:], subsystemBase+uint16(id))
	le.PutUint32(c[PCI_BASE_ADDRESS_0:], f.bar)
	le.PutUint16(w[PCI_COMMAND:], PCI_COMMAND_MEMORY|PCI_COMMAND_MASTER|PCI_COMMAND_INTX_DISABLE)
	le.PutUint32(w[PCI_BASE_ADDRESS_0:], barMask)
	w[PCI_INTERRUPT_LINE] = 0xFF
	f.initCaps()
}

// initCaps lays out the capability list: MSI-X at firstCap, then virtio's in the
// order of their numbers.
func (f *Function) initCaps() {
	c, w := &f.config, &f.writable
	at, link := firstCap, PCI_CAPABILITY_LIST
	add := func(id byte, lenBytes int) []byte {
		c[link] = byte(at)
		b := c[at : at+lenBytes]
		b[0] = id
		link = at + 1
		at += (lenBytes + 3) &^ 3
		return b
	}
	b := add(PCI_CAP_ID_MSIX, msixCapBytes)
	le.PutUint16(b[PCI_MSIX_FLAGS:], uint16(len(f.vectors)-1))
	le.PutUint32(b[PCI_MSIX_TABLE:], tableOff) // BIR 0 in the low bits
	le.PutUint32(b[PCI_MSIX_PBA:], pbaOff)
	le.PutUint16(w[firstCap+PCI_MSIX_FLAGS:], PCI_MSIX_FLAGS_ENABLE|PCI_MSIX_FLAGS_MASKALL)

	region := func(typ byte, lenBytes int, off, regionBytes uint32) []byte {
		b := add(PCI_CAP_ID_VNDR, lenBytes)
		b[2], b[3] = byte(lenBytes), typ
		le.PutUint32(b[VIRTIO_PCI_CAP_OFFSET:], off)
		le.PutUint32(b[VIRTIO_PCI_CAP_LENGTH:], regionBytes)
		return b
	}
	region(VIRTIO_PCI_CAP_COMMON_CFG, virtioPCICapBytes, commonOff, virtioPCICommonBytes)
	// With no queue at all the region still has to hold one notification (4.1.4.4.1).
	b = region(VIRTIO_PCI_CAP_NOTIFY_CFG, virtioPCINotifyCapBytes, notifyOff, notifyMultiplier*uint32(max(1, f.core.Queues())))
	le.PutUint32(b[virtioPCICapBytes:], notifyMultiplier)
	region(VIRTIO_PCI_CAP_ISR_CFG, virtioPCICapBytes, isrOff, 1)
	if n := f.core.ConfigLen(); n > 0 {
		region(VIRTIO_PCI_CAP_DEVICE_CFG, virtioPCICapBytes, deviceOff, uint32(n))
	}
	f.pciCfg = at
	region(VIRTIO_PCI_CAP_PCI_CFG, virtioPCICfgCapBytes, 0, 0)
	for i := VIRTIO_PCI_CAP_BAR; i < virtioPCICfgCapBytes; i++ {
		w[f.pciCfg+i] = 0xFF
	}
	w[f.pciCfg+VIRTIO_PCI_CAP_BAR+1] = 0 // cap.id and padding
	w[f.pciCfg+VIRTIO_PCI_CAP_BAR+2] = 0
	w[f.pciCfg+VIRTIO_PCI_CAP_BAR+3] = 0
}

// ReadConfig fills p from the function's 4096-byte configuration space at off.
// What lies beyond is all ones.
func (f *Function) ReadConfig(off int, p []byte) {
	if off < 0 || off >= configBytes || len(p) > configBytes-off {
		for i := range p {
			p[i] = 0xFF
		}
		return
	}
	clear(p)
	f.cfgWindow(off, len(p), f.ReadBAR) // what was read is in pci_cfg_data now
	f.mu.Lock()
	defer f.mu.Unlock()
	if off < configStdBytes {
		copy(p, f.config[off:])
	}
	if i := PCI_STATUS - off; i >= 0 && i < len(p) && f.isr.Load() != 0 && !f.msixOn.Load() {
		p[i] |= PCI_STATUS_INTERRUPT
	}
}

// WriteConfig applies a driver's write of p at off of the configuration space.
// Read-only bits keep their value.
func (f *Function) WriteConfig(off int, p []byte) {
	if off < 0 || off >= configStdBytes || len(p) > configStdBytes-off {
		return
	}
	f.mapping.Lock()
	defer f.mapping.Unlock()
	f.mu.Lock()
	for i, b := range p {
		w := f.writable[off+i]
		f.config[off+i] = f.config[off+i]&^w | b&w
	}
	f.updateVectorsLocked()
	want := uint64(0)
	if le.Uint16(f.config[PCI_COMMAND:])&PCI_COMMAND_MEMORY != 0 {
		want = uint64(le.Uint32(f.config[PCI_BASE_ADDRESS_0:]))
	}
	f.mu.Unlock()
	if err := f.remapLocked(want); err != nil && f.log != nil {
		f.log.Warn("virtio pci device", "device", f.name, "err", err)
	}
	f.cfgWindow(off, len(p), f.WriteBAR)
}

// remapLocked makes the BAR visible at want, nowhere for 0. mapping is held.
func (f *Function) remapLocked(want uint64) error {
	if want == f.mappedAt {
		return nil
	}
	if f.mappedAt != 0 {
		f.mappedAt = 0
		if err := f.mapper.Unmap(0); err != nil {
			return fmt.Errorf("unmap BAR 0: %w", err)
		}
	}
	if want == 0 {
		return nil
	}
	if err := f.mapper.Map(0, want, BARLenBytes); err != nil {
		return fmt.Errorf("map BAR 0 at %#x: %w", want, err)
	}
	f.mappedAt = want
	return nil
}

// cfgWindow does the access to BAR 0 that one to pci_cfg_data stands for
// (4.1.4.9), if [off, off+n) touches it and what the capability names is legal.
func (f *Function) cfgWindow(off, n int, access func(off uint64, p []byte)) {
	f.mu.Lock()
	data := f.pciCfg + VIRTIO_PCI_CFG_DATA
	if off >= data+4 || off+n <= data {
		f.mu.Unlock()
		return
	}
	bar := f.config[f.pciCfg+VIRTIO_PCI_CAP_BAR]
	at := le.Uint32(f.config[f.pciCfg+VIRTIO_PCI_CAP_OFFSET:])
	lenBytes := le.Uint32(f.config[f.pciCfg+VIRTIO_PCI_CAP_LENGTH:])
	var buf [4]byte
	copy(buf[:], f.config[data:])
	f.mu.Unlock()
	if bar != 0 || (lenBytes != 1 && lenBytes != 2 && lenBytes != 4) || at%lenBytes != 0 || at > BARLenBytes-lenBytes {
		return
	}
	access(uint64(at), buf[:lenBytes])
	f.mu.Lock()
	copy(f.config[data:data+4], buf[:])
	f.mu.Unlock()
}
