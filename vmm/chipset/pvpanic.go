package chipset

// Events of the pvpanic port (QEMU docs/specs/pvpanic.rst): a read gives the
// bits that a write may have.
const (
	PVPANIC_PANICKED     = 1 << 0
	PVPANIC_CRASH_LOADED = 1 << 1
)

// PVPanic is the port by which a guest's kernel reports that it panicked.
type PVPanic struct{ power func(PowerEvent) }

// NewPVPanic makes the port. power is told Panic or CrashLoaded on a vCPU
// thread and must not block.
func NewPVPanic(power func(PowerEvent)) *PVPanic { return &PVPanic{power: power} }

// Read implements Handler.
func (v *PVPanic) Read(_ uint64, p []byte) {
	fillFF(p)
	p[0] = PVPANIC_PANICKED | PVPANIC_CRASH_LOADED
}

// Write implements Handler. A guest that says both goes on into its crash kernel.
func (v *PVPanic) Write(_ uint64, p []byte) {
	switch {
	case p[0]&PVPANIC_CRASH_LOADED != 0:
		v.power(CrashLoaded)
	case p[0]&PVPANIC_PANICKED != 0:
		v.power(Panic)
	}
}
