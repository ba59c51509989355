package pci

import (
	"github.com/peervisor/peervisor/virtio"
)

// ReadBAR fills p, of 1, 2, 4 or 8 bytes, from BAR 0 at off. What is not there
// reads as 0.
func (f *Function) ReadBAR(off uint64, p []byte) {
	clear(p)
	switch {
	case off < isrOff:
		f.readCommon(off, p)
	case off == isrOff && len(p) > 0:
		p[0] = byte(f.isr.Swap(0))
	case off >= deviceOff && off < deviceOff+virtio.MaxConfigBytes:
		f.core.ReadConfig(off-deviceOff, p)
	case off >= tableOff && off < tableOff+uint64(len(f.vectors))*PCI_MSIX_ENTRY_SIZE:
		f.readTable(off-tableOff, p)
	case off >= pbaOff && off < BARLenBytes:
		f.readPending(off-pbaOff, p)
	}
}

// WriteBAR applies a driver's write of p, of 1, 2, 4 or 8 bytes, at off of BAR
// 0. A write that fits no register is ignored.
func (f *Function) WriteBAR(off uint64, p []byte) {
	switch {
	case off < isrOff:
		f.writeCommon(off, p)
	case off >= deviceOff && off < deviceOff+virtio.MaxConfigBytes:
		f.core.WriteConfig(off-deviceOff, p)
	case off >= notifyOff && off < tableOff:
		// The address names the queue; the value is the same by the driver's word.
		if (off-notifyOff)%notifyMultiplier == 0 {
			f.core.Notify(uint32(off-notifyOff) / notifyMultiplier)
		}
	case off >= tableOff && off < tableOff+uint64(len(f.vectors))*PCI_MSIX_ENTRY_SIZE:
		f.writeTable(off-tableOff, p)
	}
}

// readCommon reads struct virtio_pci_common_cfg. Reading it has no side effects but for
// the generation, so any width is served from the whole of it.
func (f *Function) readCommon(off uint64, p []byte) {
	if off >= virtioPCICommonBytes {
		return
	}
	f.mu.Lock()
	sel := f.sel
	f.mu.Unlock()
	q := f.core.Queue(uint32(sel.queue))
	queueVector := uint32(VIRTIO_MSI_NO_VECTOR)
	notify := uint16(0)
	if int(sel.queue) < len(f.queueVectors) {
		queueVector = f.queueVectors[sel.queue].Load()
		notify = sel.queue
	}
	var b [virtioPCICommonBytes]byte
	le.PutUint32(b[VIRTIO_PCI_COMMON_DFSELECT:], sel.deviceFeature)
	le.PutUint32(b[VIRTIO_PCI_COMMON_DF:], f.core.DeviceFeatures(sel.deviceFeature))
	le.PutUint32(b[VIRTIO_PCI_COMMON_GFSELECT:], sel.driverFeature)
	le.PutUint32(b[VIRTIO_PCI_COMMON_GF:], f.core.DriverFeatures(sel.driverFeature))
	le.PutUint16(b[VIRTIO_PCI_COMMON_MSIX:], uint16(f.configVector.Load()))
	le.PutUint16(b[VIRTIO_PCI_COMMON_NUMQ:], uint16(f.core.Queues()))
	b[VIRTIO_PCI_COMMON_STATUS] = f.core.Status()
	if off <= VIRTIO_PCI_COMMON_CFGGEN && off+uint64(len(p)) > VIRTIO_PCI_COMMON_CFGGEN {
		b[VIRTIO_PCI_COMMON_CFGGEN] = byte(f.core.Generation())
	}
	le.PutUint16(b[VIRTIO_PCI_COMMON_Q_SELECT:], sel.queue)
	le.PutUint16(b[VIRTIO_PCI_COMMON_Q_SIZE:], q.Size)
	le.PutUint16(b[VIRTIO_PCI_COMMON_Q_MSIX:], uint16(queueVector))
	if q.Enabled {
		b[VIRTIO_PCI_COMMON_Q_ENABLE] = 1
	}
	le.PutUint16(b[VIRTIO_PCI_COMMON_Q_NOFF:], notify)
	le.PutUint64(b[VIRTIO_PCI_COMMON_Q_DESCLO:], uint64(q.Desc))
	le.PutUint64(b[VIRTIO_PCI_COMMON_Q_AVAILLO:], uint64(q.Driver))
	le.PutUint64(b[VIRTIO_PCI_COMMON_Q_USEDLO:], uint64(q.Device))
	copy(p, b[off:])
}

// writeCommon writes one field of struct virtio_pci_common_cfg, with the width of the
// field (4.1.3.1); a 64-bit field also by its halves.
func (f *Function) writeCommon(off uint64, p []byte) {
	switch len(p) {
	case 1:
		if off == VIRTIO_PCI_COMMON_STATUS {
			// A reset may go on behind this: the driver waits for a status of 0.
			_ = f.core.SetStatus(p[0])
		}
	case 2:
		f.writeCommon16(off, le.Uint16(p))
	case 4:
		f.writeCommon32(off, le.Uint32(p))
	case 8:
		if off >= VIRTIO_PCI_COMMON_Q_DESCLO && off < VIRTIO_PCI_COMMON_Q_NDATA && off%8 == 0 {
			f.writeCommon32(off, le.Uint32(p))
			f.writeCommon32(off+4, le.Uint32(p[4:]))
		}
	}
}

func (f *Function) writeCommon16(off uint64, v uint16) {
	switch off {
	case VIRTIO_PCI_COMMON_MSIX:
		f.configVector.Store(f.vectorOrNone(v))
		return
	case VIRTIO_PCI_COMMON_Q_SELECT:
		f.mu.Lock()
		f.sel.queue = v
		f.mu.Unlock()
		return
	}
	q := f.selected()
	switch off {
	case VIRTIO_PCI_COMMON_Q_SIZE:
		f.core.SetQueueSize(q, uint32(v))
	case VIRTIO_PCI_COMMON_Q_MSIX:
		if q < uint32(len(f.queueVectors)) {
			f.queueVectors[q].Store(f.vectorOrNone(v))
		}
	case VIRTIO_PCI_COMMON_Q_ENABLE:
		if v == 1 { // a driver must not write 0 (4.1.4.3.2)
			f.core.EnableQueue(q)
		}
	}
}

func (f *Function) writeCommon32(off uint64, v uint32) {
	f.mu.Lock()
	sel := f.sel
	switch off {
	case VIRTIO_PCI_COMMON_DFSELECT:
		f.sel.deviceFeature = v
	case VIRTIO_PCI_COMMON_GFSELECT:
		f.sel.driverFeature = v
	}
	f.mu.Unlock()
	if off == VIRTIO_PCI_COMMON_GF {
		f.core.SetDriverFeatures(sel.driverFeature, v)
	}
	if off >= VIRTIO_PCI_COMMON_Q_DESCLO && off <= VIRTIO_PCI_COMMON_Q_USEDHI && off%4 == 0 {
		area := virtio.QueueArea((off - VIRTIO_PCI_COMMON_Q_DESCLO) / 8)
		f.core.SetQueueArea(uint32(sel.queue), area, off%8 != 0, v)
	}
}

func (f *Function) selected() uint32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return uint32(f.sel.queue)
}

// vectorOrNone is v if there is such a vector; else the mapping has failed
// (4.1.5.1.2).
func (f *Function) vectorOrNone(v uint16) uint32 {
	if int(v) < len(f.vectors) {
		return uint32(v)
	}
	return VIRTIO_MSI_NO_VECTOR
}
