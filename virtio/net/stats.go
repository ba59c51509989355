package net

import "sync/atomic"

// Stats counts since New, over all activations. Tx is what the guest sent.
type Stats struct {
	TxFrames, TxBytes uint64
	RxFrames, RxBytes uint64
	// TxInvalid: header or length made no sense, or was not negotiated.
	TxInvalid uint64
	// TxDropped: the backend did not take the frame, or the link was down.
	TxDropped uint64
	// RxDropped: the link was down, the frame was longer than the negotiated MTU
	// or than one buffer of a driver that cannot merge, or the driver posted too
	// few buffers for it for a second.
	RxDropped uint64
	// RxRunts: buffers without room for a header, given back unused.
	RxRunts uint64
}

type counters struct {
	txFrames, txBytes, txInvalid, txDropped atomic.Uint64
	rxFrames, rxBytes, rxDropped, rxRunts   atomic.Uint64
}

// Stats returns the counters. It may be called from any goroutine.
func (d *Device) Stats() Stats {
	c := &d.stats
	return Stats{
		TxFrames: c.txFrames.Load(), TxBytes: c.txBytes.Load(),
		TxInvalid: c.txInvalid.Load(), TxDropped: c.txDropped.Load(),
		RxFrames: c.rxFrames.Load(), RxBytes: c.rxBytes.Load(),
		RxDropped: c.rxDropped.Load(), RxRunts: c.rxRunts.Load(),
	}
}
