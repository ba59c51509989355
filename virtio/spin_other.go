//go:build !amd64

package virtio

// spin is a hint to the processor that this port does not have.
func spin() {}
