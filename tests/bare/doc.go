// Package bare holds the tests of our machine with the bare guest on
// /dev/kvm: vmm, virtio/mmio and the device halves together, at native speed,
// with a driver of our own that verifies what it gets and can be as wrong as
// it likes. See package kernel/bare for what the guest can do.
//
// Tests named TestChaos… run for PEERVISOR_CHAOS_SECONDS where that is set, and
// a few rounds otherwise.
package bare
