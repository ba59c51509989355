package chipset

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"time"
)

// PM1 event, control and timer registers (ACPI 6.4, 4.8.3), by their offset
// from PMPort. FADT points at them.
const (
	PM1StatusOffset  = 0 // 16 bits, write 1 to clear
	PM1EnableOffset  = 2 // 16 bits
	PM1ControlOffset = 4 // 16 bits
	PMTimerOffset    = 8 // 32 bits, read-only

	PM1EventBytes   = 4
	PM1ControlBytes = 2
	PMTimerBytes    = 4

	// PMTimerHz is the timer's frequency (ACPI 6.4, 4.8.2.1).
	PMTimerHz = 3_579_545

	pm1TimerStatus  = 1 << 0  // TMR_STS, TMR_EN
	pm1Global       = 1 << 5  // GBL_EN
	pm1PowerButton  = 1 << 8  // PWRBTN_STS, PWRBTN_EN
	pm1SleepButton  = 1 << 9  // SLPBTN_EN
	pm1RTC          = 1 << 10 // RTC_EN
	pm1EnableMask   = pm1TimerStatus | pm1Global | pm1PowerButton | pm1SleepButton | pm1RTC
	pm1SCIEnable    = 1 << 0 // SCI_EN: always 1, there is no SMI_CMD to change it
	pm1BusMaster    = 1 << 1 // BM_RLD
	pm1SleepShift   = 10
	pm1SleepMask    = 7 << pm1SleepShift // SLP_TYP
	pm1SleepEnable  = 1 << 13            // SLP_EN: write-only
	pm1ControlStays = pm1BusMaster | pm1SleepMask

	// SleepTypeS5 is the value of SLP_TYP that \_S5 in the DSDT names.
	SleepTypeS5 = 5

	// pmTimerHalf is half the timer's round: its top bit changes, and TMR_STS
	// becomes set, every 2^31 ticks (TMR_VAL_EXT is set), which is 600 s.
	pmTimerHalf = 1 << 31
)

// PMConfig configures a PM.
type PMConfig struct {
	// SCI is the system control interrupt, level triggered, active high. Nil: not connected.
	SCI Line
	// Clock gives the time of the PM timer. Nil: the host's.
	Clock Clock
	// Power is told PowerOff, on a vCPU thread, and must not block. Required.
	Power func(PowerEvent)
}

// PM is the fixed ACPI hardware: PM1a event and control blocks, PM timer and
// power button.
type PM struct {
	power func(PowerEvent)
	clock Clock
	start time.Time
	sci   pin
	timer oneShot

	mu      sync.Mutex
	status  uint16 // without TMR_STS, which follows from half
	enable  uint16
	control uint16 // pm1ControlStays only
	half    uint64 // the half round of the timer in which TMR_STS was cleared last
}

// NewPM makes the device; its timer counts from now. Close ends it.
func NewPM(cfg PMConfig) *PM {
	if cfg.Clock == nil {
		cfg.Clock = SystemClock()
	}
	m := &PM{power: cfg.Power, clock: cfg.Clock, start: cfg.Clock.Now(), sci: pin{line: cfg.SCI}}
	m.timer = oneShot{clock: cfg.Clock, f: m.expired}
	return m
}

// ticksAt is the timer's value, not yet cut to 32 bits.
func (m *PM) ticksAt(now time.Time) uint64 {
	elapsed := max(now.Sub(m.start), 0)
	hi, lo := bits.Mul64(uint64(elapsed), PMTimerHz)
	ticks, _ := bits.Div64(hi, lo, uint64(time.Second)) // hi < 2^22 < 10^9
	return ticks
}

func (m *PM) statusLocked(ticks uint64) uint16 {
	if ticks/pmTimerHalf != m.half {
		return m.status | pm1TimerStatus
	}
	return m.status
}

// evaluateLocked sets the interrupt and plans the next look at the timer.
func (m *PM) evaluateLocked() {
	ticks := m.ticksAt(m.clock.Now())
	pending := m.statusLocked(ticks) & m.enable
	m.sci.want(pending != 0)
	if m.enable&pm1TimerStatus == 0 || pending&pm1TimerStatus != 0 {
		m.timer.disarm()
		return
	}
	left := pmTimerHalf - ticks%pmTimerHalf
	m.timer.arm(time.Duration(left * uint64(time.Second) / PMTimerHz)) // < 2^31 x 10^9
}

func (m *PM) expired() {
	m.mu.Lock()
	m.evaluateLocked()
	m.mu.Unlock()
	m.sci.sync()
}

// PowerButton presses the power button: the guest sees its status bit, and an
// interrupt if it has enabled the event.
func (m *PM) PowerButton() {
	m.mu.Lock()
	m.status |= pm1PowerButton
	m.evaluateLocked()
	m.mu.Unlock()
	m.sci.sync()
}

// Read implements Handler.
func (m *PM) Read(off uint64, p []byte) {
	m.mu.Lock()
	ticks := m.ticksAt(m.clock.Now())
	var regs [PMBytes]byte
	binary.LittleEndian.PutUint16(regs[PM1StatusOffset:], m.statusLocked(ticks))
	binary.LittleEndian.PutUint16(regs[PM1EnableOffset:], m.enable)
	binary.LittleEndian.PutUint16(regs[PM1ControlOffset:], m.control|pm1SCIEnable)
	binary.LittleEndian.PutUint32(regs[PMTimerOffset:], uint32(ticks))
	m.mu.Unlock()
	copy(p, regs[min(off, PMBytes):])
}

// Write implements Handler. Each byte of the access goes to its register; the
// write takes effect as a whole.
func (m *PM) Write(off uint64, p []byte) {
	var value, mask [PMBytes]byte
	for i := range p {
		if at := off + uint64(i); at < PMBytes {
			value[at], mask[at] = p[i], 0xFF
		}
	}
	reg := func(b *[PMBytes]byte, at int) uint16 { return binary.LittleEndian.Uint16(b[at:]) }

	m.mu.Lock()
	if cleared := reg(&value, PM1StatusOffset); cleared != 0 {
		m.status &^= cleared
		if cleared&pm1TimerStatus != 0 {
			m.half = m.ticksAt(m.clock.Now()) / pmTimerHalf
		}
	}
	merge := func(old uint16, at int) uint16 { return old&^reg(&mask, at) | reg(&value, at) }
	m.enable = merge(m.enable, PM1EnableOffset) & pm1EnableMask
	control := merge(m.control, PM1ControlOffset)
	m.control = control & pm1ControlStays
	m.evaluateLocked()
	m.mu.Unlock()
	m.sci.sync()

	if reg(&value, PM1ControlOffset)&pm1SleepEnable != 0 && control&pm1SleepMask == SleepTypeS5<<pm1SleepShift {
		m.power(PowerOff)
	}
}

// Err is the first error of the SCI line.
func (m *PM) Err() error { return m.sci.firstErr() }

// Close stops the timer and waits for a call of it under way.
func (m *PM) Close() error {
	m.timer.close()
	return nil
}
