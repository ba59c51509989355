package virtio

// Stats is a snapshot of a transport half's counters. They count from the
// creation of the transport half and survive resets.
type Stats struct {
	// Name is the device's name in the machine's configuration.
	Name string `json:"name"`
	// Status is the device status register (VIRTIO_CONFIG_S_…).
	Status byte `json:"status"`
	// Resets counts completed resets; Broken the times DEVICE_NEEDS_RESET was set.
	Resets uint64 `json:"resets"`
	Broken uint64 `json:"broken"`
	// ConfigInterrupts counts notifications of configuration changes.
	ConfigInterrupts uint64 `json:"configInterrupts"`
	// Queues has one entry a virtqueue of the device, enabled or not.
	Queues []QueueStats `json:"queues"`
}

// QueueStats counts what one virtqueue did.
type QueueStats struct {
	// SizeDescs is the size that the driver chose; 0: not enabled.
	SizeDescs uint16 `json:"size"`
	// Kicks counts the driver's notifications; Wakes the times the worker got
	// up for one or more of them; PollHits the times that polling found
	// requests before the worker went to sleep.
	Kicks    uint64 `json:"kicks"`
	Wakes    uint64 `json:"wakes"`
	PollHits uint64 `json:"pollHits"`
	// Requests were taken off the ring, Completed published on it.
	Requests  uint64 `json:"requests"`
	Completed uint64 `json:"completed"`
	// InFlight is Requests not yet completed; Returned of them wait in the
	// transport half.
	InFlight int `json:"inFlight"`
	Returned int `json:"returned"`
	// ReadBytes are device-readable bytes of requests taken, WrittenBytes the
	// used lengths of requests completed.
	ReadBytes    uint64 `json:"readBytes"`
	WrittenBytes uint64 `json:"writtenBytes"`
	// Interrupts counts used buffer notifications sent.
	Interrupts uint64 `json:"interrupts"`
}
