package chipset

import "sync/atomic"

// Reset control register (Intel ICH9, 13.7.5). FADT's reset register is this
// port with value ResetValue.
const (
	resetSystem = 1 << 1 // SYS_RST: a hard reset, not only the processor's
	resetCPU    = 1 << 2 // RST_CPU: its change from 0 to 1 resets
	resetFull   = 1 << 3 // FULL_RST: power cycle

	ResetValue = resetCPU | resetSystem
)

// ResetControl is the register at port 0xCF9.
type ResetControl struct {
	value atomic.Uint32
	power func(PowerEvent)
}

// NewResetControl makes the register. power is told Reset on a vCPU thread and
// must not block.
func NewResetControl(power func(PowerEvent)) *ResetControl { return &ResetControl{power: power} }

// Read implements Handler.
func (r *ResetControl) Read(_ uint64, p []byte) {
	fillFF(p)
	p[0] = byte(r.value.Load())
}

// Write implements Handler.
func (r *ResetControl) Write(_ uint64, p []byte) {
	v := uint32(p[0]) & (resetSystem | resetCPU | resetFull)
	old := r.value.Swap(v)
	if v&resetCPU != 0 && old&resetCPU == 0 {
		r.power(Reset)
	}
}
