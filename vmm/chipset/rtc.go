package chipset

import (
	"sync"
	"time"
)

// Registers of the MC146818A. 0x0E to 0x7F are memory, one of which is the
// century by the convention that FADT tells.
const (
	rtcSeconds      = 0x00
	rtcSecondsAlarm = 0x01
	rtcMinutes      = 0x02
	rtcMinutesAlarm = 0x03
	rtcHours        = 0x04
	rtcHoursAlarm   = 0x05
	rtcWeekday      = 0x06 // 1 is Sunday
	rtcDay          = 0x07
	rtcMonth        = 0x08
	rtcYear         = 0x09
	rtcRegA         = 0x0A
	rtcRegB         = 0x0B
	rtcRegC         = 0x0C
	rtcRegD         = 0x0D

	// RTCCentury is the index of the century byte, for FADT.
	RTCCentury = 0x32

	rtcBytes = 128
)

const (
	rtcUpdating  = 1 << 7 // A: UIP, read-only
	rtcDivider   = 7 << 4 // A: DV
	rtcDivNormal = 2 << 4 // DV for a time base of 32,768 Hz
	rtcDivReset  = 6 << 4 // DV 11x: dividers held in reset
	rtcRate      = 0x0F   // A: RS

	rtcSet    = 1 << 7 // B: SET, updates are inhibited
	rtcBinary = 1 << 2 // B: DM
	rtc24Hour = 1 << 1 // B: 24/12

	rtcIRQ      = 1 << 7 // C: IRQF
	rtcPeriodic = 1 << 6 // C: PF, and its enable PIE in B
	rtcAlarm    = 1 << 5 // C: AF, AIE
	rtcUpdate   = 1 << 4 // C: UF, UIE
	rtcEvents   = rtcPeriodic | rtcAlarm | rtcUpdate

	rtcValid = 1 << 7 // D: VRT, the battery is good
)

const (
	// rtcUpdateTime is how long before a new second UIP is set: 244 us of warning
	// and 1984 us of update (MC146818A, table 4).
	rtcUpdateTime = (244 + 1984) * time.Microsecond
	// rtcFirstUpdate is when the first update follows after the dividers were
	// released from reset.
	rtcFirstUpdate = time.Second / 2
	// rtcMaxSleep bounds how late an alarm can be after the host's clock was set.
	rtcMaxSleep = time.Minute
)

// RTCConfig configures an RTC.
type RTCConfig struct {
	// IRQ is its interrupt pin. Nil: not connected.
	IRQ Line
	// Clock gives the time, shown to the guest as UTC. Nil: the host's.
	Clock Clock
}

// RTC is the MC146818A real-time clock with 114 bytes of CMOS memory.
//
// It shows the clock's wall time plus a difference, which changes when the guest
// sets it. Nothing ticks: registers and flags are worked out when they are read, and a
// timer runs only while the guest has an interrupt enabled that is not yet pending.
//
//	              SET or DV=11x
//	running ─────────────────────► halted: the time registers are memory
//	   ▲                             │
//	   └── SET=0 and DV not 11x ─────┘  time goes on from what they hold
type RTC struct {
	clock Clock
	irq   pin
	timer oneShot

	mu     sync.Mutex
	index  byte
	regs   [rtcBytes]byte // time registers are stale while running
	set    time.Time      // guest time at the moment setAt of the clock; a pair,
	setAt  time.Time      // because a Duration does not span all years that registers can hold
	halted bool
	seen   time.Time // guest time up to which the flags in C are worked out
}

// NewRTC makes the clock. Close ends it.
func NewRTC(cfg RTCConfig) *RTC {
	if cfg.Clock == nil {
		cfg.Clock = SystemClock()
	}
	r := &RTC{clock: cfg.Clock, irq: pin{line: cfg.IRQ}}
	r.timer = oneShot{clock: cfg.Clock, f: r.expired}
	r.regs[rtcRegA] = rtcDivNormal | 6 // 1024 Hz, as PC firmware leaves it
	r.regs[rtcRegB] = rtc24Hour
	r.regs[rtcRegD] = rtcValid
	r.setAt = r.wall()
	r.set = r.setAt
	r.seen = r.now()
	return r
}

// wall is the clock's time without its monotonic reading: the guest's hardware
// clock follows the host's wall clock.
func (r *RTC) wall() time.Time { return r.clock.Now().Round(0).UTC() }

// now is the guest's time while running.
func (r *RTC) now() time.Time { return r.set.Add(r.wall().Sub(r.setAt)) }

// SetMemory writes one byte of CMOS memory, 0x0E to 0x7F, before the guest runs.
func (r *RTC) SetMemory(index int, v byte) {
	if index > rtcRegD && index < rtcBytes {
		r.mu.Lock()
		r.regs[index] = v
		r.mu.Unlock()
	}
}

// Read implements Handler. The index port reads as unclaimed, as on a PC.
func (r *RTC) Read(off uint64, p []byte) {
	fillFF(p)
	if i := 1 - int(off); off <= 1 && i < len(p) {
		r.mu.Lock()
		p[i] = r.readLocked()
		r.mu.Unlock()
		r.irq.sync()
	}
}

// Write implements Handler.
func (r *RTC) Write(off uint64, p []byte) {
	r.mu.Lock()
	for i, v := range p {
		switch off + uint64(i) {
		case 0:
			r.index = v & (rtcBytes - 1) // bit 7 masks NMI
		case 1:
			r.writeLocked(v)
		}
	}
	r.mu.Unlock()
	r.irq.sync()
}

func isTimeRegister(index byte) bool {
	switch index {
	case rtcSeconds, rtcMinutes, rtcHours, rtcWeekday, rtcDay, rtcMonth, rtcYear, RTCCentury:
		return true
	}
	return false
}

func (r *RTC) readLocked() byte {
	switch {
	case r.index == rtcRegA:
		return r.regs[rtcRegA] | r.updatingLocked()
	case r.index == rtcRegC:
		r.collectLocked()
		flags := r.regs[rtcRegC]
		r.regs[rtcRegC] = 0
		r.evaluateLocked()
		return flags
	case isTimeRegister(r.index) && !r.halted:
		r.latch(r.now())
	}
	return r.regs[r.index]
}

func (r *RTC) updatingLocked() byte {
	if !r.halted && time.Duration(r.now().Nanosecond()) >= time.Second-rtcUpdateTime {
		return rtcUpdating
	}
	return 0
}

func (r *RTC) writeLocked(v byte) {
	r.collectLocked()
	switch {
	case r.index == rtcRegC || r.index == rtcRegD: // read-only
	case r.index == rtcRegA:
		r.haltLocked(v&(rtcDivReset) == rtcDivReset || r.regs[rtcRegB]&rtcSet != 0, rtcFirstUpdate)
		r.regs[rtcRegA] = v &^ rtcUpdating
	case r.index == rtcRegB:
		r.writeControlLocked(v)
	case isTimeRegister(r.index) && !r.halted:
		now := r.now()
		r.latch(now)
		r.regs[r.index] = v
		r.startLocked(time.Duration(now.Nanosecond()))
	default:
		r.regs[r.index] = v
	}
	r.evaluateLocked()
}

func (r *RTC) writeControlLocked(v byte) {
	if v&rtcSet != 0 {
		v &^= rtcUpdate // SET clears UIE
	}
	halt := v&rtcSet != 0 || r.regs[rtcRegA]&rtcDivReset == rtcDivReset
	if halt {
		r.haltLocked(true, 0) // the registers keep the form of the old mode
	}
	r.regs[rtcRegB] = v
	if !halt {
		r.haltLocked(false, time.Duration(r.clock.Now().Nanosecond()))
	}
}

// haltLocked moves between running and halted. fraction is how far into its
// second the time is when it starts.
func (r *RTC) haltLocked(halt bool, fraction time.Duration) {
	switch {
	case halt && !r.halted:
		r.latch(r.now())
		r.halted = true
	case !halt && r.halted:
		r.startLocked(fraction)
	}
}

// startLocked makes the registers' content the time.
func (r *RTC) startLocked(fraction time.Duration) {
	r.halted = false
	r.set, r.setAt = r.latched().Add(fraction), r.wall()
	r.seen = r.now()
}

// collectLocked sets the flags of what has happened since the last time.
func (r *RTC) collectLocked() {
	if r.halted {
		return
	}
	now := r.now()
	from, to := rtcTicks(r.seen), rtcTicks(now)
	if to <= from { // the host's clock may have been set back
		r.seen = now
		return
	}
	if period := r.periodTicks(); period != 0 && to/period != from/period {
		r.regs[rtcRegC] |= rtcPeriodic
	}
	if passed := now.Unix() - r.seen.Unix(); passed > 0 {
		r.regs[rtcRegC] |= rtcUpdate
		if next := r.nextAlarm(r.seen); next != 0 && next <= passed {
			r.regs[rtcRegC] |= rtcAlarm
		}
	}
	r.seen = now
}

// periodTicks is the period of PF in ticks of the time base; 0: never.
func (r *RTC) periodTicks() int64 {
	switch rs := r.regs[rtcRegA] & rtcRate; rs {
	case 0:
		return 0
	case 1, 2:
		return 1 << (rs + 6) // 3.9 and 7.8 ms
	default:
		return 1 << (rs - 1)
	}
}

// evaluateLocked sets IRQF and the pin, and plans the next event that interrupts.
func (r *RTC) evaluateLocked() {
	enabled := r.regs[rtcRegB] & rtcEvents
	if r.regs[rtcRegC]&enabled != 0 {
		r.regs[rtcRegC] |= rtcIRQ
	} else {
		r.regs[rtcRegC] &^= rtcIRQ
	}
	pending := r.regs[rtcRegC]&rtcIRQ != 0
	r.irq.want(pending)
	if d, ok := r.untilEventLocked(enabled); ok && !pending {
		r.timer.arm(d)
	} else {
		r.timer.disarm()
	}
}

// untilEventLocked is the time to the first enabled event, at most rtcMaxSleep.
func (r *RTC) untilEventLocked(enabled byte) (time.Duration, bool) {
	if r.halted || enabled == 0 {
		return 0, false
	}
	now := r.now()
	wait := rtcMaxSleep
	nextSecond := time.Second - time.Duration(now.Nanosecond())
	if enabled&rtcUpdate != 0 {
		wait = min(wait, nextSecond)
	}
	if enabled&rtcAlarm != 0 {
		if n := r.nextAlarm(now); n != 0 {
			wait = min(wait, nextSecond+time.Duration(n-1)*time.Second)
		}
	}
	if period := r.periodTicks(); enabled&rtcPeriodic != 0 && period != 0 {
		left := period - rtcTicks(now)%period // at most 2^14
		wait = min(wait, time.Duration(left)*time.Second/rtcTicksPerSecond+1)
	}
	return wait, true
}

func (r *RTC) expired() {
	r.mu.Lock()
	r.collectLocked()
	r.evaluateLocked()
	r.mu.Unlock()
	r.irq.sync()
}

// Err is the first error of the interrupt line.
func (r *RTC) Err() error { return r.irq.firstErr() }

// Close stops the timer and waits for a call of it under way.
func (r *RTC) Close() error {
	r.timer.close()
	return nil
}
