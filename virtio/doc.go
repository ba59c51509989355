// Package virtio is the sentences of the specification "Virtual I/O Device
// (VIRTIO) Version 1.2" that all devices share: requests, split queues, feature
// negotiation, status and lifecycle. Modern devices only.
//
// It holds both sides of the contract between the halves of a device
// (docs/device-contract.md): Device, Channel and Request on one hand, and Core, the
// transport half without its registers, on the other. The registers are in
// virtio/pci and virtio/mmio; device types are folders of their own (blk, net,
// console, rng) that import this package and nothing else of the project.
//
// It is not a device, knows no KVM and no network, and writes guest memory only by
// package memory.
//
// # Ownership
//
// Guest memory belongs to package memory; a Request borrows slices of it from Submit
// until it ends. Core borrows its Device and its Memory until Close returned. A queue's
// requests are pooled: one for each entry of its descriptor table.
//
// # Goroutines
//
// Each enabled queue has one worker, which takes chains off the available ring and
// calls Submit; completions come from any goroutine. All workers are joined by
// Reset, Pause (parked) and Close.
//
// # Lock order
//
// Core.mu, then an activation's half or gate.mu, then one queue's mu or Core.state,
// which are leaves. Device.Activate and WriteConfig are called with Core.mu held, and
// nothing else of Device with any lock.
package virtio
