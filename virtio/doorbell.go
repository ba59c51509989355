package virtio

// Doorbell is where a driver notifies one queue: a write of LenBytes at
// OffsetBytes of the transport's register window. The machine connects it to
// FD by KVM_IOEVENTFD, so that a notification costs no exit to user space; a
// write that arrives as an exit nevertheless does the same.
type Doorbell struct {
	// OffsetBytes is from the start of the BAR or the register page.
	OffsetBytes uint64
	// LenBytes is the length of the write that rings: 2 for PCI, 4 for MMIO.
	LenBytes int
	// Match says that only a write of Value rings (KVM_IOEVENTFD_FLAG_DATAMATCH).
	Match bool
	Value uint32
	// FD is the queue's eventfd, non-blocking, owned by the transport half.
	FD int
}
