package chipset

import "time"

// rtcTicksPerSecond is the resolution in which the RTC keeps track of what has
// happened: its time base of 32,768 Hz.
const rtcTicksPerSecond = 32768

// rtcTicks counts the periods of the time base since 1970 at t.
func rtcTicks(t time.Time) int64 {
	return t.Unix()*rtcTicksPerSecond + int64(t.Nanosecond())*rtcTicksPerSecond/int64(time.Second)
}

// encode turns a number of at most two decimal digits into what a register
// holds: binary or BCD by DM.
func (r *RTC) encode(v int) byte {
	if r.regs[rtcRegB]&rtcBinary != 0 {
		return byte(v)
	}
	return byte(v/10<<4 | v%10)
}

func (r *RTC) decode(b byte) int {
	if r.regs[rtcRegB]&rtcBinary != 0 {
		return int(b)
	}
	return int(b>>4)*10 + int(b&0xF)
}

const rtcPM = 0x80 // top bit of the hours in 12-hour mode

func (r *RTC) encodeHour(h int) byte {
	if r.regs[rtcRegB]&rtc24Hour != 0 {
		return r.encode(h)
	}
	b := r.encode((h+11)%12 + 1)
	if h >= 12 {
		b |= rtcPM
	}
	return b
}

func (r *RTC) decodeHour(b byte) int {
	if r.regs[rtcRegB]&rtc24Hour != 0 {
		return r.decode(b)
	}
	h := r.decode(b&^rtcPM) % 12
	if b&rtcPM != 0 {
		h += 12
	}
	return h
}

// latch writes t into the time registers.
func (r *RTC) latch(t time.Time) {
	t = t.UTC()
	r.regs[rtcSeconds] = r.encode(t.Second())
	r.regs[rtcMinutes] = r.encode(t.Minute())
	r.regs[rtcHours] = r.encodeHour(t.Hour())
	r.regs[rtcWeekday] = r.encode(int(t.Weekday()) + 1)
	r.regs[rtcDay] = r.encode(t.Day())
	r.regs[rtcMonth] = r.encode(int(t.Month()))
	r.regs[rtcYear] = r.encode(t.Year() % 100)
	r.regs[RTCCentury] = r.encode(t.Year() / 100 % 100)
}

// latched is the time that the registers hold, in whole seconds. Values that no
// calendar has carry over, as time.Date has it; any bytes give some time.
func (r *RTC) latched() time.Time {
	year := r.decode(r.regs[RTCCentury])*100 + r.decode(r.regs[rtcYear])
	return time.Date(year, time.Month(r.decode(r.regs[rtcMonth])), r.decode(r.regs[rtcDay]),
		r.decodeHour(r.regs[rtcHours]), r.decode(r.regs[rtcMinutes]), r.decode(r.regs[rtcSeconds]), 0, time.UTC)
}

// rtcAny: an alarm register from here up matches everything (MC146818A, "don't care").
const rtcAny = 0xC0

// nextAlarm is the number of seconds from t, 1 to 86,400, to the next second
// that the alarm registers match; 0: none ever does.
func (r *RTC) nextAlarm(t time.Time) int64 {
	matches := func(reg byte, value int, decode func(byte) int) bool { return reg >= rtcAny || decode(reg) == value }
	hour, minute, second := r.regs[rtcHoursAlarm], r.regs[rtcMinutesAlarm], r.regs[rtcSecondsAlarm]
	const day = 86400
	t = t.UTC()
	base := t.Hour()*3600 + t.Minute()*60 + t.Second()
	for n := 1; n <= day; {
		s := (base + n) % day
		switch {
		case !matches(hour, s/3600, r.decodeHour):
			n += 3600 - s%3600
		case !matches(minute, s/60%60, r.decode):
			n += 60 - s%60
		case !matches(second, s%60, r.decode):
			n++
		default:
			return int64(n)
		}
	}
	return 0
}
