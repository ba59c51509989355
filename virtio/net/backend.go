package net

// Offload is a set of things that one side leaves to the other. Tx bits are
// about frames that the guest sends, Rx bits about those that it receives.
type Offload uint32

// The offloads, with the feature bit that negotiates each.
const (
	// TxChecksum: sent frames may have partial checksums (VIRTIO_NET_F_CSUM).
	TxChecksum Offload = 1 << iota
	// TxTSO4, TxTSO6: sent frames may stand for many TCP segments
	// (VIRTIO_NET_F_HOST_TSO4, 6), also with ECN (VIRTIO_NET_F_HOST_ECN).
	TxTSO4
	TxTSO6
	TxECN
	// RxChecksum and the others: likewise for received ones (VIRTIO_NET_F_GUEST_…).
	RxChecksum
	RxTSO4
	RxTSO6
	RxECN
)

// Backend is what a network device is plugged into: a tap, a user-mode stack,
// a segment elsewhere. It outlives activations, and its owner closes it.
type Backend interface {
	// Offloads is what the backend can take and give. It does not change.
	Offloads() Offload
	// Attach begins an activation with what the driver negotiated, a subset of
	// Offloads. At most one Conn is open at a time. It does not block.
	Attach(negotiated Offload) (Conn, error)
}

// Conn carries frames between one activation of the device and its backend.
//
// Send is called by one goroutine at a time, Recv and Wait by another one;
// Close may be called while any of them runs.
type Conn interface {
	// Send passes one frame on. h is the device's copy, checked against the
	// length and the negotiated offloads; frame is guest memory that may change
	// meanwhile: what a backend decides by, it copies first. Both are borrowed for
	// the call. It does not block: a frame that cannot be taken now is dropped,
	// and the error says why. The frame has at most MaxFrameBytes.
	Send(h Header, frame [][]byte) error

	// Recv fills room with the header and bytes of the next frame and returns how
	// many bytes that were, 0 if there is no frame now. room always holds
	// HeaderBytes + MaxFrameBytes and is borrowed for the call; its slices may be
	// split anywhere. num_buffers is left to the caller. Recv does not block. An
	// error other than net.ErrClosed means that the backend is broken for good.
	Recv(room [][]byte) (n int, err error)

	// Wait blocks until Recv may have a frame; a spurious return is allowed. It
	// returns net.ErrClosed (of the standard library) once the Conn is closed.
	Wait() error

	// Close ends the activation and makes Wait return. Frames that were not
	// received are dropped. A second Close does nothing.
	Close() error
}
