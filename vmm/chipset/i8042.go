package chipset

// I8042 answers at the keyboard controller's ports so that a guest finds no
// keyboard, quickly, and can still pulse the reset line with command 0xFE.
//
// The status register always says "output full, input empty". A driver that
// first drains the output (Linux: i8042_flush, 16 reads) finds that it never
// ends and concludes that there is no controller, without waiting for any
// time-out; a driver that waits for "input empty" before the reset command goes on at once.
// FADT says that there is no 8042 as well, so Linux with ACPI does not even look.
type I8042 struct{ power func(PowerEvent) }

// Ports by their offset from 0x60, and what is said there.
const (
	i8042Data   = 0
	i8042Status = 4 // reads: status; writes: command

	i8042OutputFull = 1 << 0 // OBF
	i8042InputFull  = 1 << 1 // IBF: never set
	i8042System     = 1 << 2 // self-test passed
	i8042Unlocked   = 1 << 4 // keyboard not locked

	i8042PulseReset = 0xFE
)

// NewI8042 makes the controller. power is told Reset on a vCPU thread and must
// not block.
func NewI8042(power func(PowerEvent)) *I8042 { return &I8042{power: power} }

// Read implements Handler.
func (c *I8042) Read(off uint64, p []byte) {
	for i := range p {
		switch off + uint64(i) {
		case i8042Status:
			p[i] = i8042OutputFull | i8042System | i8042Unlocked
		case i8042Data:
			p[i] = 0
		default:
			p[i] = 0xFF
		}
	}
}

// Write implements Handler.
func (c *I8042) Write(off uint64, p []byte) {
	if off == i8042Status && p[0] == i8042PulseReset {
		c.power(Reset)
	}
}
