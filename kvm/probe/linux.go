package probe

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kvm"
)

const (
	// patience bounds the run of the test guest, which takes microseconds.
	patience = time.Second
	// maxRuns bounds returns of KVM_RUN that decide nothing.
	maxRuns = 1000

	// Layout of the test guest: 64 KiB of RAM at 0, mapped with the 2 MiB around it.
	ramBytes  = 64 << 10
	pml4At    = 0x1000
	pdptAt    = 0x2000
	pdAt      = 0x3000
	stackTop  = 0x5000
	codeAt    = 0x6000
	handlerAt = 0x7000
	reportAt  = 0x10_0000 // not RAM: a write ends the test

	msrSTAR  = 0xC000_0081
	msrLSTAR = 0xC000_0082
	msrFMASK = 0xC000_0084
)

// CanRunLinux runs a few instructions that every ordinary kernel uses in a VM
// of its own, and says whether KVM got through them: instructions of ring 0 that a
// software KVM may be unable to emulate, and a system call from ring 3. why says in
// one sentence what failed. err is for when it cannot be found out: it wraps
// kvm.ErrNotPresent or kvm.ErrNotPermitted where that is the reason.
func CanRunLinux() (ok bool, why string, err error) {
	sys, err := kvm.Open()
	if err != nil {
		return false, "", err
	}
	defer func() { _ = sys.Close() }()
	g, err := newTestGuest(sys)
	if err != nil {
		return false, "", fmt.Errorf("probe of KVM: %w", err)
	}
	defer g.close()
	if why, err = g.ring0(); why != "" || err != nil {
		return false, why, err
	}
	if why, err = g.systemCall(); why != "" || err != nil {
		return false, why, err
	}
	return true, "", nil
}

// testGuest is a VM of one vCPU without interrupt controllers.
type testGuest struct {
	vm   *kvm.VM
	vcpu *kvm.VCPU
	ram  []byte
}

func newTestGuest(sys *kvm.System) (*testGuest, error) {
	g := &testGuest{}
	err := g.setUp(sys)
	if err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

func (g *testGuest) setUp(sys *kvm.System) error {
	var err error
	if g.vm, err = sys.CreateVM(); err != nil {
		return err
	}
	if g.ram, err = unix.Mmap(-1, 0, ramBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS); err != nil {
		return fmt.Errorf("map %d bytes: %w", ramBytes, err)
	}
	const present, writable, user, large = 1, 2, 4, 1 << 7
	binary.LittleEndian.PutUint64(g.ram[pml4At:], pdptAt|present|writable|user)
	binary.LittleEndian.PutUint64(g.ram[pdptAt:], pdAt|present|writable|user)
	binary.LittleEndian.PutUint64(g.ram[pdAt:], 0|present|writable|user|large)
	// Intel processors want both before the first vCPU, anywhere outside RAM.
	if err := g.vm.SetTSSAddr(0xFFFB_D000); err != nil {
		return err
	}
	if err := g.vm.SetIdentityMapAddr(0xFFFB_C000); err != nil {
		return err
	}
	if err := g.vm.SetMemoryRegion(0, 0, 0, ramBytes, hostAddr(g.ram)); err != nil {
		return err
	}
	if g.vcpu, err = g.vm.CreateVCPU(0); err != nil {
		return err
	}
	cpuid, err := sys.SupportedCPUID()
	if err != nil {
		return err
	}
	return g.vcpu.SetCPUID(cpuid)
}

func (g *testGuest) close() {
	// Closing own descriptors and mappings: there is nothing to learn from errors.
	if g.vcpu != nil {
		_ = g.vcpu.Close()
	}
	if g.vm != nil {
		_ = g.vm.Close()
	}
	if g.ram != nil {
		_ = unix.Munmap(g.ram)
	}
}

// enter sets the vCPU to 64-bit mode at codeAt in ring 0 or 3.
func (g *testGuest) enter(ring uint8, cr4 uint64) error {
	var s kvm.Sregs
	if err := g.vcpu.Sregs(&s); err != nil {
		return err
	}
	data := kvm.Segment{Selector: 0x10 | uint16(ring), Limit: 0xFFFF_FFFF, Typ: 3, Present: 1, DPL: ring, DB: 1, S: 1, G: 1}
	cs := data
	cs.Selector, cs.Typ, cs.L, cs.DB = 0x08|uint16(ring), 0xB, 1, 0
	s.CS, s.DS, s.ES, s.FS, s.GS, s.SS = cs, data, data, data, data, data
	s.IDT = kvm.Descriptor{} // any exception is a triple fault
	s.CR0, s.CR3, s.CR4, s.EFER = 0x8000_0011, pml4At, 0x20|cr4, 0x501
	if err := g.vcpu.SetSregs(&s); err != nil {
		return err
	}
	return g.vcpu.SetRegs(&kvm.Regs{RIP: codeAt, RSP: stackTop, RDI: reportAt, RFLAGS: 2})
}

// report ends the code: a write to RDI, where no RAM is.
var report = []byte{0x88, 0x07} // mov [rdi], al

// ring0 runs instructions that kernels use in ring 0 and that a KVM which
// emulates ring 0 in software is known to fail at.
func (g *testGuest) ring0() (why string, err error) {
	const osxsave = 1 << 18
	var code []byte
	var cr4 uint64
	// What the processor has, not what KVM says: on a software KVM the guest's
	// CPUID may be the processor's own.
	if cpu.X86.HasPOPCNT {
		code = append(code, 0xF3, 0x0F, 0xB8, 0xC1) // popcnt eax, ecx
	}
	if cpu.X86.HasOSXSAVE {
		cr4 = osxsave
		code = append(code, 0x31, 0xC9, 0x0F, 0x01, 0xD0) // xor ecx, ecx; xgetbv
	}
	copy(g.ram[codeAt:], append(code, report...))
	if err := g.enter(0, cr4); err != nil {
		return "", fmt.Errorf("probe of KVM: enter ring 0: %w", err)
	}
	why, err = g.run()
	if why != "" {
		why = "in ring 0 " + why
	}
	return why, err
}

// systemCall makes one from ring 3 and sees whether it arrives in ring 0.
func (g *testGuest) systemCall() (why string, err error) {
	n, err := g.vcpu.SetMSRs([]kvm.MSR{{Index: msrSTAR, Data: 0x08 << 32}, {Index: msrLSTAR, Data: handlerAt}, {Index: msrFMASK, Data: 0x700}})
	if err != nil {
		return "", fmt.Errorf("probe of KVM: %w", err)
	}
	if n < 3 {
		return "the registers of SYSCALL cannot be set", nil
	}
	copy(g.ram[codeAt:], []byte{0x0F, 0x05})                             // syscall
	copy(g.ram[handlerAt:], append([]byte{0x0F, 0x20, 0xC0}, report...)) // mov rax, cr0: ring 0 only
	if err := g.enter(3, 0); err != nil {
		return "", fmt.Errorf("probe of KVM: enter ring 3: %w", err)
	}
	why, err = g.run()
	if why != "" {
		why = "a SYSCALL from ring 3 does not arrive in ring 0: " + why
	}
	return why, err
}

// run lets the guest go up to its report: why is empty then.
func (g *testGuest) run() (why string, err error) {
	// The thread is the target of the signal that bounds the run.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer g.bound()()
	for range maxRuns {
		reason, errno := g.vcpu.Run()
		switch {
		case errno == syscall.EAGAIN:
			continue
		case errno == syscall.EINTR:
			if g.timedOut() {
				return fmt.Sprintf("KVM did not finish a few instructions within %v", patience), nil
			}
			continue
		case errno != 0:
			return fmt.Sprintf("KVM_RUN failed: %v", errno), nil
		}
		switch reason {
		case kvm.KVM_EXIT_MMIO:
			if a := g.vcpu.MMIO(); a.Write && a.Addr == reportAt {
				return "", nil
			}
		case kvm.KVM_EXIT_INTERNAL_ERROR:
			e := g.vcpu.InternalError()
			return fmt.Sprintf("KVM stopped with internal error %d (%s), instruction bytes % x", e.Suberror, kvm.SuberrorText(e.Suberror), e.Instruction), nil
		case kvm.KVM_EXIT_SHUTDOWN:
			return "the test code triple faulted", nil
		}
		return fmt.Sprintf("KVM stopped with exit %v", reason), nil
	}
	return "KVM_RUN returns without an end", nil
}

// bound interrupts a run that hangs. The returned function ends the watch, and
// waits for an interruption under way.
func (g *testGuest) bound() (stop func()) {
	var mu sync.Mutex
	over := false
	pid, tid := unix.Getpid(), unix.Gettid()
	t := time.AfterFunc(patience, func() {
		mu.Lock()
		defer mu.Unlock()
		if !over {
			g.vcpu.SetImmediateExit(true)
			_ = unix.Tgkill(pid, tid, unix.SIGURG) // the thread is there: it waits in stop
		}
	})
	return func() {
		t.Stop()
		mu.Lock()
		over = true
		mu.Unlock()
	}
}

// timedOut tells the interruption by bound from Go's own signals.
func (g *testGuest) timedOut() bool { return g.vcpu.ImmediateExit() }
