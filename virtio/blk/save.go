package blk

import (
	"errors"
	"fmt"
)

// State of a disk: the modelled device has nothing but its cache mode, as the
// storage holds the rest and a drained queue has no requests.
//
//	offset  bytes
//	0       1      writeback, 0 or 1
const (
	// StateVersion is the version of what SaveState returns.
	StateVersion = 1
	stateBytes   = 1
)

// SaveState returns the state of a half whose queues are drained.
func (d *Device) SaveState() ([]byte, error) {
	p := make([]byte, stateBytes)
	if d.writeback.Load() {
		p[0] = 1
	}
	return p, nil
}

// RestoreState takes over a saved state. It is called before Activate.
func (d *Device) RestoreState(version int, p []byte) error {
	if version != StateVersion || len(p) != stateBytes || p[0] > 1 {
		return fmt.Errorf("restore disk: version %d with %d bytes: %w", version, len(p), errState)
	}
	d.writeback.Store(p[0] == 1)
	return nil
}

var errState = errors.New("saved state of a disk is damaged")
