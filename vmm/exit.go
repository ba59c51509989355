package vmm

import "fmt"

// State is where a Machine is in its life.
//
//	           Start             Pause
//	StateNew ────────► Running ────────► Paused
//	   │                │  ▲                │
//	   │                │  └──── Resume ────┘
//	   │                │ guest ended,      │
//	   │ Close          │ or Close kills    │ Close
//	   │                ▼                   │
//	   │             Stopped ◄──────────────┤
//	   │                │ Close             │
//	   └────────────────┴────► Closed ◄─────┘
type State int32

// The states. vCPUs run in StateRunning only; devices work in StateRunning and
// until Close in StateStopped.
const (
	StateNew State = iota
	StateRunning
	StatePaused
	StateStopped
	StateClosed
)

// String is the state in lower case.
func (s State) String() string {
	switch s {
	case StateNew:
		return "new"
	case StateRunning:
		return "running"
	case StatePaused:
		return "paused"
	case StateStopped:
		return "stopped"
	case StateClosed:
		return "closed"
	}
	return fmt.Sprintf("state(%d)", int32(s))
}

// MarshalText is String, for JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *State) UnmarshalText(b []byte) error {
	for v := StateNew; v <= StateClosed; v++ {
		if v.String() == string(b) {
			*s = v
			return nil
		}
	}
	return fmt.Errorf("machine state %q: there is no such state", b)
}

// Reason says why a machine ended.
type Reason int32

const (
	// ReasonNone: it has not ended. The zero value.
	ReasonNone Reason = iota
	// ReasonPowerOff: the guest entered ACPI S5.
	ReasonPowerOff
	// ReasonReset: the guest asked for a reset: reset register, keyboard
	// controller. The owner makes a new Machine around the same device halves.
	ReasonReset
	// ReasonPanic: the guest's kernel panicked, as seen by pvpanic or on the serial port.
	ReasonPanic
	// ReasonTripleFault: a vCPU triple faulted. Some kernels reset this way.
	ReasonTripleFault
	// ReasonKilled: Close ended it.
	ReasonKilled
	// ReasonFault: KVM could not go on: an instruction that it cannot emulate, a
	// failed entry, a failed KVM_RUN. Detail has what is known.
	ReasonFault
)

// String is the reason in lower case with dashes.
func (r Reason) String() string {
	switch r {
	case ReasonNone:
		return "none"
	case ReasonPowerOff:
		return "power-off"
	case ReasonReset:
		return "reset"
	case ReasonPanic:
		return "panic"
	case ReasonTripleFault:
		return "triple-fault"
	case ReasonKilled:
		return "killed"
	case ReasonFault:
		return "fault"
	}
	return fmt.Sprintf("reason(%d)", int32(r))
}

// MarshalText is String, for JSON.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (r *Reason) UnmarshalText(b []byte) error {
	for v := ReasonNone; v <= ReasonFault; v++ {
		if v.String() == string(b) {
			*r = v
			return nil
		}
	}
	return fmt.Errorf("reason %q: there is no such reason", b)
}

// Exit is how a machine ended.
type Exit struct {
	Reason Reason
	// Detail is one line for a person: the panic's text, the instruction that
	// could not be emulated. It may hold text that the guest chose, with control
	// characters replaced; at most 1024 bytes.
	Detail string
}

// String is the reason, and the detail where there is one.
func (e Exit) String() string {
	if e.Detail == "" {
		return e.Reason.String()
	}
	return e.Reason.String() + ": " + e.Detail
}
