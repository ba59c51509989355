package kvm

// Numbers of linux/kvm.h (Linux 6.1 and later) for x86, in its spelling.

// KVM_API_VERSION is the only version there has been since Linux 2.6.22.
const KVM_API_VERSION = 12

const kvmio = 0xAE // KVMIO: the ioctl type of all of /dev/kvm

// Directions and fields of an ioctl number (asm-generic/ioctl.h).
const (
	iocNone      = 0
	iocWrite     = 1
	iocRead      = 2
	iocTypeShift = 8
	iocSizeShift = 16
	iocDirShift  = 30
)

func io(nr uintptr) uintptr        { return iocNone<<iocDirShift | kvmio<<iocTypeShift | nr }
func ior(nr, size uintptr) uintptr { return iocRead<<iocDirShift | size<<iocSizeShift | io(nr) }
func iow(nr, size uintptr) uintptr { return iocWrite<<iocDirShift | size<<iocSizeShift | io(nr) }
func iowr(nr, size uintptr) uintptr {
	return (iocRead|iocWrite)<<iocDirShift | size<<iocSizeShift | io(nr)
}

// Cap is a KVM capability: the argument of KVM_CHECK_EXTENSION.
type Cap int

// Capabilities that this project asks for.
const (
	KVM_CAP_IRQCHIP                   Cap = 0
	KVM_CAP_USER_MEMORY               Cap = 3
	KVM_CAP_SET_TSS_ADDR              Cap = 4
	KVM_CAP_EXT_CPUID                 Cap = 7
	KVM_CAP_CLOCKSOURCE               Cap = 8
	KVM_CAP_NR_VCPUS                  Cap = 9
	KVM_CAP_NR_MEMSLOTS               Cap = 10
	KVM_CAP_MP_STATE                  Cap = 14
	KVM_CAP_IRQ_ROUTING               Cap = 25
	KVM_CAP_IRQFD                     Cap = 32
	KVM_CAP_PIT2                      Cap = 33
	KVM_CAP_IOEVENTFD                 Cap = 36
	KVM_CAP_SET_IDENTITY_MAP_ADDR     Cap = 37
	KVM_CAP_ADJUST_CLOCK              Cap = 39
	KVM_CAP_VCPU_EVENTS               Cap = 41
	KVM_CAP_DEBUGREGS                 Cap = 50
	KVM_CAP_XSAVE                     Cap = 55
	KVM_CAP_XCRS                      Cap = 56
	KVM_CAP_TSC_CONTROL               Cap = 60
	KVM_CAP_GET_TSC_KHZ               Cap = 61
	KVM_CAP_MAX_VCPUS                 Cap = 66
	KVM_CAP_TSC_DEADLINE_TIMER        Cap = 72
	KVM_CAP_KVMCLOCK_CTRL             Cap = 76
	KVM_CAP_SIGNAL_MSI                Cap = 77
	KVM_CAP_READONLY_MEM              Cap = 81
	KVM_CAP_IRQFD_RESAMPLE            Cap = 82
	KVM_CAP_CHECK_EXTENSION_VM        Cap = 105
	KVM_CAP_SPLIT_IRQCHIP             Cap = 121
	KVM_CAP_IOEVENTFD_ANY_LENGTH      Cap = 122
	KVM_CAP_MAX_VCPU_ID               Cap = 128
	KVM_CAP_X2APIC_API                Cap = 129
	KVM_CAP_IMMEDIATE_EXIT            Cap = 136
	KVM_CAP_NESTED_STATE              Cap = 157
	KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 Cap = 168
	KVM_CAP_DIRTY_LOG_RING            Cap = 192
	KVM_CAP_SREGS2                    Cap = 200
	KVM_CAP_EXIT_ON_EMULATION_FAILURE Cap = 204
	KVM_CAP_XSAVE2                    Cap = 208
	KVM_CAP_VM_TSC_CONTROL            Cap = 214
	KVM_CAP_DIRTY_LOG_RING_ACQ_REL    Cap = 223
	KVM_CAP_GUEST_MEMFD               Cap = 234
)

// KVM_DIRTY_LOG_* are the arguments of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
const (
	KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1 << 0
	KVM_DIRTY_LOG_INITIALLY_SET         = 1 << 1
)

// Flags of a memory slot.
const (
	KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
	KVM_MEM_READONLY        = 1 << 1
)

// ExitReason is kvm_run.exit_reason.
type ExitReason uint32

// Exit reasons that x86 has.
const (
	KVM_EXIT_UNKNOWN         ExitReason = 0
	KVM_EXIT_EXCEPTION       ExitReason = 1
	KVM_EXIT_IO              ExitReason = 2
	KVM_EXIT_HYPERCALL       ExitReason = 3
	KVM_EXIT_DEBUG           ExitReason = 4
	KVM_EXIT_HLT             ExitReason = 5
	KVM_EXIT_MMIO            ExitReason = 6
	KVM_EXIT_IRQ_WINDOW_OPEN ExitReason = 7
	KVM_EXIT_SHUTDOWN        ExitReason = 8
	KVM_EXIT_FAIL_ENTRY      ExitReason = 9
	KVM_EXIT_INTR            ExitReason = 10
	KVM_EXIT_SET_TPR         ExitReason = 11
	KVM_EXIT_TPR_ACCESS      ExitReason = 12
	KVM_EXIT_NMI             ExitReason = 16
	KVM_EXIT_INTERNAL_ERROR  ExitReason = 17
	KVM_EXIT_SYSTEM_EVENT    ExitReason = 24
	KVM_EXIT_IOAPIC_EOI      ExitReason = 26
	KVM_EXIT_X86_RDMSR       ExitReason = 29
	KVM_EXIT_X86_WRMSR       ExitReason = 30
	KVM_EXIT_DIRTY_RING_FULL ExitReason = 31
	KVM_EXIT_X86_BUS_LOCK    ExitReason = 33
	KVM_EXIT_NOTIFY          ExitReason = 37
	KVM_EXIT_MEMORY_FAULT    ExitReason = 39

	// ExitReasons is one more than the largest reason that has a name here.
	ExitReasons = 40
)

var exitNames = [ExitReasons]string{
	KVM_EXIT_UNKNOWN: "unknown", KVM_EXIT_EXCEPTION: "exception", KVM_EXIT_IO: "io", KVM_EXIT_HYPERCALL: "hypercall",
	KVM_EXIT_DEBUG: "debug", KVM_EXIT_HLT: "hlt", KVM_EXIT_MMIO: "mmio", KVM_EXIT_IRQ_WINDOW_OPEN: "irq-window",
	KVM_EXIT_SHUTDOWN: "shutdown", KVM_EXIT_FAIL_ENTRY: "fail-entry", KVM_EXIT_INTR: "intr", KVM_EXIT_SET_TPR: "set-tpr",
	KVM_EXIT_TPR_ACCESS: "tpr-access", KVM_EXIT_NMI: "nmi", KVM_EXIT_INTERNAL_ERROR: "internal-error",
	KVM_EXIT_SYSTEM_EVENT: "system-event", KVM_EXIT_IOAPIC_EOI: "ioapic-eoi", KVM_EXIT_X86_RDMSR: "rdmsr",
	KVM_EXIT_X86_WRMSR: "wrmsr", KVM_EXIT_DIRTY_RING_FULL: "dirty-ring-full", KVM_EXIT_X86_BUS_LOCK: "bus-lock",
	KVM_EXIT_NOTIFY: "notify", KVM_EXIT_MEMORY_FAULT: "memory-fault",
}

// Suberrors of KVM_EXIT_INTERNAL_ERROR.
const (
	KVM_INTERNAL_ERROR_EMULATION              = 1
	KVM_INTERNAL_ERROR_SIMUL_EX               = 2
	KVM_INTERNAL_ERROR_DELIVERY_EV            = 3
	KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4

	// KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES says that the
	// instruction's bytes are there.
	KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1 << 0
)

// Types of KVM_EXIT_SYSTEM_EVENT.
const (
	KVM_SYSTEM_EVENT_SHUTDOWN = 1
	KVM_SYSTEM_EVENT_RESET    = 2
	KVM_SYSTEM_EVENT_CRASH    = 3
)

// Values of kvm_mp_state.
const (
	KVM_MP_STATE_RUNNABLE      = 0
	KVM_MP_STATE_UNINITIALIZED = 1
	KVM_MP_STATE_INIT_RECEIVED = 2
	KVM_MP_STATE_HALTED        = 3
	KVM_MP_STATE_SIPI_RECEIVED = 4
)

// Interrupt controllers of GetIRQChip and of irqchip routes.
const (
	KVM_IRQCHIP_PIC_MASTER = 0
	KVM_IRQCHIP_PIC_SLAVE  = 1
	KVM_IRQCHIP_IOAPIC     = 2
)

// KVM_PIT_SPEAKER_DUMMY lets the in-kernel PIT answer port 0x61.
const KVM_PIT_SPEAKER_DUMMY = 1

const (
	kvmIRQRoutingIRQChip = 1 // KVM_IRQ_ROUTING_IRQCHIP
	kvmIRQRoutingMSI     = 2 // KVM_IRQ_ROUTING_MSI

	kvmIRQFDFlagDeassign = 1 << 0 // KVM_IRQFD_FLAG_DEASSIGN
	kvmIRQFDFlagResample = 1 << 1 // KVM_IRQFD_FLAG_RESAMPLE

	kvmIOEventFDFlagDatamatch = 1 << 0 // KVM_IOEVENTFD_FLAG_DATAMATCH
	kvmIOEventFDFlagPIO       = 1 << 1 // KVM_IOEVENTFD_FLAG_PIO
	kvmIOEventFDFlagDeassign  = 1 << 2 // KVM_IOEVENTFD_FLAG_DEASSIGN
)

// Bounds of the kernel.
const (
	// KVM_MAX_IRQ_ROUTES is the largest GSI plus one, and the length of a routing table.
	KVM_MAX_IRQ_ROUTES = 4096
	maxMSRs            = 256  // MAX_IO_MSRS in arch/x86/kvm/x86.c
	maxCPUIDEntries    = 1024 // ours; KVM_MAX_CPUID_ENTRIES is 256 today
)
