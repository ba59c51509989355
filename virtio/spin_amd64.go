package virtio

// spin tells the processor that this is a busy-wait loop (PAUSE), which gives its
// sibling the execution units.
//
//go:noescape
func spin()
