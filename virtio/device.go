package virtio

// Info is what a device half offers. It does not change while the half is
// attached to a transport half; at DRIVER_OK all of it is frozen.
type Info struct {
	// ID is the device type (virtio 1.2, section 5).
	ID DeviceID
	// Features are the offered bits of the device type: 0..23 and 50..63. The
	// transport half owns bits 24..49 and refuses a half that sets one of them.
	Features uint64
	// Queues declares every virtqueue, in the order of the specification. At most
	// MaxQueues.
	Queues []QueueInfo
	// Config is the initial device configuration space, little-endian. Its length
	// never changes; at most MaxConfigBytes. The transport half copies and caches it.
	Config []byte
	// NeedsMemory says that the half wants guest memory beyond its requests
	// (balloon, mem, iommu); SharedMemory that it maps host memory into the guest
	// (pmem, DAX). Both stay with the guest and cannot be remote.
	NeedsMemory, SharedMemory bool
}

// QueueInfo declares one virtqueue of a device half.
type QueueInfo struct {
	// MaxSize is the largest queue size in descriptors: a power of two, 1..32768.
	MaxSize uint16
	// Replay says what a session may do with a request whose completion was lost.
	Replay ReplayClass
	// Failure says what the guest is shown when a request cannot be served and
	// the policy is "error".
	Failure Failure
}

// ReplayClass is how requests of a queue behave when sent again after a broken
// connection. See docs/device-contract.md.
type ReplayClass uint8

const (
	// ReplayRetain: not repeatable; the server remembers the completion until
	// it is acknowledged. The zero value, because it is always safe.
	ReplayRetain ReplayClass = iota
	// ReplayReexecute: doing it twice equals doing it once (reads, writes at offsets).
	ReplayReexecute
	// ReplayStream: part of a byte or frame stream; retained like ReplayRetain while
	// the server lives, at most once and counted after it restarted.
	ReplayStream
)

// FailureForm is the shape of a failed request on the wire to the driver.
type FailureForm uint8

const (
	// FailNeedsReset: the device sets DEVICE_NEEDS_RESET. The zero value.
	FailNeedsReset FailureForm = iota
	// FailStatus: Failure.Status is written to the last device-writable byte.
	FailStatus
	// FailDrop: the request completes with used length 0.
	FailDrop
)

// Failure is a FailureForm with its status byte, which only FailStatus uses.
type Failure struct {
	Form   FailureForm
	Status byte
}

// Bounds that every transport half and session enforces on a device half.
const (
	MaxQueues      = 1024
	MaxConfigBytes = 4096
	MaxQueueSize   = 32768
)

// Device is a device half: the part of a virtio device that sits with the
// peripheral. Its other side is a transport half in this process or a session
// that carries requests to one elsewhere; the half cannot tell which.
//
//	         Activate                Quiesce(q)
//	idle ───────────────► active ───────────────► active, q given back
//	 ▲                     │  ▲                        │
//	 └──────── Reset ──────┘  └──── Submit(q) ─────────┘
//
// The owner that made the half closes it after its last transport half has let
// go; Device has no Close. Calls for one queue are never concurrent with each
// other; calls for different queues may be; Activate and Reset are concurrent
// with nothing.
type Device interface {
	// Info describes the half. It does not block.
	Info() Info

	// Activate starts the half after DRIVER_OK. From now on it may use
	// a.Channel. It does not block for longer than opening local resources takes.
	// An error leaves the half idle and the device in DEVICE_NEEDS_RESET.
	Activate(a Activation) error

	// WriteConfig applies a driver's write of p at off to the configuration space.
	// The transport half has checked that it lies inside. The half answers with
	// Channel.ConfigChanged when the visible bytes change otherwise than written.
	// Called between Activate and Reset, and before Activate while the driver
	// negotiates. It does not block on a peripheral.
	WriteConfig(off int, p []byte)

	// Submit hands over requests of one queue, oldest first. The half ends each
	// one exactly once, by Complete or Return on the channel, during the call or
	// at any later time from any goroutine. reqs is borrowed for the call; the
	// requests are the half's until it ends them. Submit may do the work inline
	// when it is short, and must not wait for a peripheral that may never answer.
	Submit(queue int, reqs []*Request)

	// Quiesce asks the half to end all requests of the queue that it holds:
	// those in work by completing them, those posted for later (receive buffers)
	// by Channel.Return. It does not wait. The queue is drained when the last one
	// ended. A later Submit takes up work again.
	Quiesce(queue int)

	// Reset takes everything back: when it returns, the half is idle, uses no
	// request and no channel any more, and what it had not completed has either
	// happened or never will. It waits for operations under way. Reset of an idle
	// half does nothing.
	Reset()
}

// Activation is what a driver and the transport half agreed on.
type Activation struct {
	// Features is the negotiated set, transport bits included.
	Features uint64
	// QueueSizes has the size of each queue in descriptors; 0: the driver did
	// not enable it, and no request of it will come.
	QueueSizes []uint16
	// Channel leads back to the transport half. Valid until Reset returns.
	Channel Channel
}

// Channel is the way back from a device half: implemented by the transport
// half, and by a session's server side. All methods may be called from any
// goroutine, hold no lock of the caller's, and do not block for long.
type Channel interface {
	// Complete ends requests of one queue, in order, with the used lengths that
	// were set by SetUsed. They become visible to the driver together, by one
	// store of the used index: this is how one frame spreads over several
	// mergeable receive buffers. reqs is borrowed for the call; the requests are
	// the channel's again.
	Complete(reqs []*Request)
	// Return gives back requests unused: the driver sees nothing, and the
	// transport half hands them in again when the queue goes on.
	Return(reqs []*Request)
	// ConfigChanged pushes new configuration space (of unchanged length, copied)
	// and notifies the driver.
	ConfigChanged(config []byte)
	// NeedsReset reports that the half cannot go on: the driver sees
	// DEVICE_NEEDS_RESET, and reason goes to the log.
	NeedsReset(reason error)
}
