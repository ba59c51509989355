package vmm

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kvm"
)

// kickSignal interrupts KVM_RUN. Go's runtime uses SIGURG for preemption and
// takes one that it did not send for a spurious one.
const kickSignal = unix.SIGURG

// processor is what a vCPU's thread needs of kvm.VCPU.
type processor interface {
	Run() (kvm.ExitReason, syscall.Errno)
	SetImmediateExit(on bool)
	IO() kvm.PortAccess
	MMIO() kvm.MMIOAccess
	InternalError() kvm.InternalError
	FailEntry() (reason uint64, cpu uint32)
	SystemEvent() uint32
	Regs(*kvm.Regs) error
	NotePaused() error
	Close() error
}

// board is what a vCPU's thread needs of the machine around it.
type board interface {
	portAccess(port uint64, out bool, p []byte)
	memoryAccess(addr uint64, write bool, p []byte)
	countExit(kvm.ExitReason)
	entering(id int)
	finish(Exit)
}

// vcpu is one virtual processor and its thread.
type vcpu struct {
	id    int
	board board
	gate  *gate
	calls chan func()   // run on the thread, while held
	gone  chan struct{} // closed when the thread has left

	// mu keeps the processor open and the thread alive while they are kicked.
	mu  sync.Mutex
	cpu processor // nil before the thread made it and after it closed it
	tid int
}

func newVCPU(id int, b board, g *gate) *vcpu {
	return &vcpu{id: id, board: b, gate: g, calls: make(chan func()), gone: make(chan struct{})}
}

// run is the vCPU's life. create makes the processor on the thread; its error
// goes to ready, on which one value is always sent.
func (c *vcpu) run(create func() (processor, error), ready chan<- error) {
	defer close(c.gone)
	// Never unlocked: the thread, which carries kicks, ends with this goroutine.
	runtime.LockOSThread()
	cpu, err := create()
	if err != nil {
		ready <- err
		return
	}
	c.mu.Lock()
	c.cpu, c.tid = cpu, unix.Gettid()
	c.mu.Unlock()
	ready <- nil

	for first := true; c.gate.passOnThread(c.calls); first = false {
		if first {
			c.board.entering(c.id)
		} else {
			// The guest's watchdogs forgive the pause. A guest without kvmclock is
			// told nothing, which is all that this error says.
			_ = cpu.NotePaused()
		}
		c.guestOnThread(cpu)
	}

	c.mu.Lock()
	c.cpu = nil
	c.mu.Unlock()
	_ = cpu.Close() // closing a descriptor of an own device loses nothing
}

// kick makes the vCPU leave the guest and look at the gate.
func (c *vcpu) kick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cpu == nil {
		return
	}
	// In this order: a thread that the signal finds outside KVM_RUN sees the flag at
	// its entry. An error means that the thread is gone, which mu excludes.
	c.cpu.SetImmediateExit(true)
	_ = unix.Tgkill(os.Getpid(), c.tid, kickSignal)
}

// call runs f on the vCPU's thread while the vCPU is held, and waits for it.
// It returns false if the vCPU has left.
func (c *vcpu) call(f func(processor)) bool {
	done := make(chan struct{})
	select {
	case c.calls <- func() { f(c.cpu); close(done) }:
		<-done
		return true
	case <-c.gone:
		return false
	}
}

// guestOnThread runs the guest until the gate wants otherwise. Requests are
// looked at only after KVM_RUN returned EINTR: then the access of the last exit is
// complete, and the processor's state can be taken.
func (c *vcpu) guestOnThread(cpu processor) {
	for {
		reason, errno := cpu.Run()
		c.board.countExit(reason)
		switch errno {
		case 0:
		case syscall.EINTR:
			// Cleared before the phase is read: a kick after that stays visible.
			cpu.SetImmediateExit(false)
			if c.gate.phase() != phaseRun {
				return
			}
			continue
		case syscall.EAGAIN:
			continue
		default:
			c.board.finish(c.fault(cpu, fmt.Sprintf("KVM_RUN: %v", errno)))
			return
		}
		switch reason {
		case kvm.KVM_EXIT_IO:
			c.portsOnThread(cpu)
		case kvm.KVM_EXIT_MMIO:
			a := cpu.MMIO()
			c.board.memoryAccess(a.Addr, a.Write, a.Data)
		case kvm.KVM_EXIT_INTR, kvm.KVM_EXIT_IRQ_WINDOW_OPEN, kvm.KVM_EXIT_NMI:
		default:
			// After these KVM_RUN must not be called again.
			c.board.finish(c.ending(cpu, reason))
			return
		}
	}
}

// portsOnThread does the one or, for a string instruction, several accesses of
// an exit.
func (c *vcpu) portsOnThread(cpu processor) {
	a := cpu.IO()
	if a.Size <= 0 {
		return
	}
	for d := a.Data; len(d) >= a.Size; d = d[a.Size:] {
		c.board.portAccess(uint64(a.Port), a.Out, d[:a.Size:a.Size])
	}
}

// ending says how an exit that is no access ends the machine.
func (c *vcpu) ending(cpu processor, reason kvm.ExitReason) Exit {
	switch reason {
	case kvm.KVM_EXIT_SHUTDOWN:
		return Exit{Reason: ReasonTripleFault, Detail: fmt.Sprintf("vCPU %d%s", c.id, whereIs(cpu))}
	case kvm.KVM_EXIT_INTERNAL_ERROR:
		e := cpu.InternalError()
		text := fmt.Sprintf("KVM internal error, suberror %d (%s)", e.Suberror, kvm.SuberrorText(e.Suberror))
		if len(e.Instruction) > 0 {
			text += fmt.Sprintf(", instruction bytes % x", e.Instruction)
		}
		if len(e.Data) > 0 {
			text += fmt.Sprintf(", data %#x", e.Data)
		}
		return c.fault(cpu, text)
	case kvm.KVM_EXIT_FAIL_ENTRY:
		code, host := cpu.FailEntry()
		return c.fault(cpu, fmt.Sprintf("the host's processor %d refused to enter the guest, code %#x", host, code))
	case kvm.KVM_EXIT_SYSTEM_EVENT:
		switch event := cpu.SystemEvent(); event {
		case kvm.KVM_SYSTEM_EVENT_SHUTDOWN:
			return Exit{Reason: ReasonPowerOff}
		case kvm.KVM_SYSTEM_EVENT_RESET:
			return Exit{Reason: ReasonReset}
		case kvm.KVM_SYSTEM_EVENT_CRASH:
			return Exit{Reason: ReasonPanic, Detail: "reported to KVM"}
		default:
			return c.fault(cpu, fmt.Sprintf("system event %d", event))
		}
	}
	return c.fault(cpu, fmt.Sprintf("unexpected exit %v", reason))
}

func (c *vcpu) fault(cpu processor, text string) Exit {
	return Exit{Reason: ReasonFault, Detail: fmt.Sprintf("vCPU %d: %s%s", c.id, text, whereIs(cpu))}
}

// whereIs is the guest's instruction pointer, or nothing where it cannot be read.
func whereIs(cpu processor) string {
	var r kvm.Regs
	if err := cpu.Regs(&r); err != nil {
		return ""
	}
	return fmt.Sprintf(", at RIP %#x", r.RIP)
}
