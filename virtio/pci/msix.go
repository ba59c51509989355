package pci

import "sync"

// vector is one entry of the MSI-X table with its pending bit.
//
//	 Signal: sent                      Signal: pending bit set
//	┌────────────┐  mask, function mask ┌──────────────┐
//	│    live    │ ───────────────────► │    masked    │ ◄── after reset
//	└────────────┘ ◄─────────────────── └──────────────┘
//	      unmask: SetVector, then what is pending is sent
//
// With MSI-X disabled nothing is sent and nothing is pending.
type vector struct {
	// mu is a leaf lock. It is held while the interrupt is sent, so that none
	// is on its way once a write that masks it has returned.
	mu      sync.Mutex
	addr    uint64
	data    uint32
	masked  bool
	pending bool
	live    bool
}

func (f *Function) initVectors() {
	for i := range f.vectors {
		v := &f.vectors[i]
		v.mu.Lock()
		v.addr, v.data, v.masked, v.pending = 0, 0, true, false
		v.mu.Unlock()
	}
}

// updateVectorsLocked takes over the enable and function mask bits of the
// capability. f.mu is held.
func (f *Function) updateVectorsLocked() {
	flags := le.Uint16(f.config[firstCap+PCI_MSIX_FLAGS:])
	f.msixOn.Store(flags&PCI_MSIX_FLAGS_ENABLE != 0)
	for i := range f.vectors {
		v := &f.vectors[i]
		v.mu.Lock()
		f.settleLocked(i, v, flags, false)
		v.mu.Unlock()
	}
}

// settleLocked makes vector i live or not, as the masks say; moved: its address
// or data changed. f.mu and v.mu are held.
func (f *Function) settleLocked(i int, v *vector, flags uint16, moved bool) {
	want := flags&(PCI_MSIX_FLAGS_ENABLE|PCI_MSIX_FLAGS_MASKALL) == PCI_MSIX_FLAGS_ENABLE && !v.masked
	if flags&PCI_MSIX_FLAGS_ENABLE == 0 {
		v.pending = false
	}
	var err error
	switch {
	case want && (!v.live || moved):
		// A vector whose route is refused stays masked, and remembers its interrupts.
		err = f.msix.SetVector(i, v.addr, v.data)
		if v.live = err == nil; v.live {
			if v.pending {
				v.pending = false
				err = f.msix.Signal(i)
			}
		}
	case !want && v.live:
		v.live = false
		err = f.msix.MaskVector(i)
	}
	if err != nil && f.log != nil {
		f.log.Warn("virtio pci device", "device", f.name, "vector", i, "err", err)
	}
}

// signal sends vector i, or remembers it.
func (f *Function) signal(i uint32) error {
	if i >= uint32(len(f.vectors)) { // NO_VECTOR
		return nil
	}
	v := &f.vectors[i]
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.live {
		return f.msix.Signal(int(i))
	}
	v.pending = f.msixOn.Load()
	return nil
}

// readTable reads the MSI-X table by 32 or 64 bits.
func (f *Function) readTable(off uint64, p []byte) {
	if (len(p) != 4 && len(p) != 8) || off%uint64(len(p)) != 0 {
		return
	}
	v := &f.vectors[off/PCI_MSIX_ENTRY_SIZE]
	var b [PCI_MSIX_ENTRY_SIZE]byte
	v.mu.Lock()
	le.PutUint64(b[PCI_MSIX_ENTRY_LOWER_ADDR:], v.addr)
	le.PutUint32(b[PCI_MSIX_ENTRY_DATA:], v.data)
	if v.masked {
		b[PCI_MSIX_ENTRY_VECTOR_CTRL] = PCI_MSIX_ENTRY_CTRL_MASK
	}
	v.mu.Unlock()
	copy(p, b[off%PCI_MSIX_ENTRY_SIZE:])
}

// writeTable writes the MSI-X table by 32 or 64 bits.
func (f *Function) writeTable(off uint64, p []byte) {
	if (len(p) != 4 && len(p) != 8) || off%uint64(len(p)) != 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	i := int(off / PCI_MSIX_ENTRY_SIZE)
	v := &f.vectors[i]
	v.mu.Lock()
	defer v.mu.Unlock()
	addr, data := v.addr, v.data
	for at := off % PCI_MSIX_ENTRY_SIZE; len(p) > 0; at, p = at+4, p[4:] {
		w := le.Uint32(p)
		switch at {
		case PCI_MSIX_ENTRY_LOWER_ADDR:
			v.addr = v.addr&^0xFFFF_FFFF | uint64(w&^3) // bits 0 and 1 are 0
		case PCI_MSIX_ENTRY_UPPER_ADDR:
			v.addr = v.addr&0xFFFF_FFFF | uint64(w)<<32
		case PCI_MSIX_ENTRY_DATA:
			v.data = w
		case PCI_MSIX_ENTRY_VECTOR_CTRL:
			v.masked = w&PCI_MSIX_ENTRY_CTRL_MASK != 0
		}
	}
	f.settleLocked(i, v, le.Uint16(f.config[firstCap+PCI_MSIX_FLAGS:]), addr != v.addr || data != v.data)
}

// readPending reads the pending bit array.
func (f *Function) readPending(off uint64, p []byte) {
	for i := range p {
		for bit := range 8 {
			n := (off+uint64(i))*8 + uint64(bit)
			if n >= uint64(len(f.vectors)) {
				return
			}
			v := &f.vectors[n]
			v.mu.Lock()
			if v.pending {
				p[i] |= 1 << bit
			}
			v.mu.Unlock()
		}
	}
}

// notifier is the Function as virtio.Core sees it. It takes no lock but a
// vector's.
type notifier struct{ f *Function }

// QueueInterrupt sends the queue's vector; with MSI-X disabled it sets the ISR bit, and
// as the function has no INTx pin, the driver has to look.
func (n notifier) QueueInterrupt(queue int) error {
	if !n.f.msixOn.Load() {
		n.f.isr.Or(VIRTIO_PCI_ISR_QUEUE)
		return nil
	}
	return n.f.signal(n.f.queueVectors[queue].Load())
}

// ConfigInterrupt sets the ISR bit first (4.1.4.5.1).
func (n notifier) ConfigInterrupt() error {
	n.f.isr.Or(VIRTIO_PCI_ISR_CONFIG)
	if !n.f.msixOn.Load() {
		return nil
	}
	return n.f.signal(n.f.configVector.Load())
}

// ResetDone unmaps all events from vectors (4.1.5.1.2) and forgets what was
// pending. The MSI-X table is PCI's and stays.
func (n notifier) ResetDone() {
	n.f.isr.Store(0)
	n.f.configVector.Store(VIRTIO_MSI_NO_VECTOR)
	for i := range n.f.queueVectors {
		n.f.queueVectors[i].Store(VIRTIO_MSI_NO_VECTOR)
	}
	for i := range n.f.vectors {
		v := &n.f.vectors[i]
		v.mu.Lock()
		v.pending = false
		v.mu.Unlock()
	}
}
