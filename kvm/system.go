package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// DevicePath is where the kernel offers KVM.
const DevicePath = "/dev/kvm"

// Errors of Open that callers tell apart.
var (
	// ErrNotPresent: this machine has no /dev/kvm, or nothing behind it.
	ErrNotPresent = errors.New("KVM is not present")
	// ErrNotPermitted: this user may not open /dev/kvm.
	ErrNotPermitted = errors.New("KVM is not permitted")
)

// System is an open /dev/kvm.
type System struct {
	fd       descriptor
	runBytes int // KVM_GET_VCPU_MMAP_SIZE
}

// Open opens /dev/kvm and checks its API version.
func Open() (*System, error) { return OpenPath(DevicePath) }

// OpenPath is Open for a device node elsewhere.
func OpenPath(path string) (*System, error) {
	fd, err := openRetry(path)
	if err != nil {
		return nil, openError(path, err)
	}
	s := &System{}
	s.fd.v.Store(int32(fd))
	v, err := s.fd.do("KVM_GET_API_VERSION", io(0x00), 0)
	if err == nil && v != KVM_API_VERSION {
		err = fmt.Errorf("API version %d, expected %d", v, KVM_API_VERSION)
	}
	if err == nil {
		s.runBytes, err = s.fd.do("KVM_GET_VCPU_MMAP_SIZE", io(0x04), 0)
	}
	if err == nil && (s.runBytes < 4096 || s.runBytes > 1<<20) {
		err = fmt.Errorf("KVM_GET_VCPU_MMAP_SIZE: %d bytes", s.runBytes)
	}
	if err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("%s: %w: is it a KVM device?", path, err)
	}
	return s, nil
}

func openRetry(path string) (int, error) {
	for range maxInterrupted {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
	return -1, unix.EINTR
}

func openError(path string, err error) error {
	switch err {
	case syscall.ENOENT, syscall.ENODEV, syscall.ENXIO, syscall.ENOTDIR:
		return fmt.Errorf("open %s: %w (%w): enable virtualization in the firmware or in the hypervisor around this machine, and load kvm_intel or kvm_amd", path, ErrNotPresent, err)
	case syscall.EACCES, syscall.EPERM:
		return fmt.Errorf("open %s: %w (%w): add this user to group kvm (usermod -aG kvm USER, then log in again), or pass the device into this container", path, ErrNotPermitted, err)
	}
	return fmt.Errorf("open %s: %w", path, err)
}

// Close closes /dev/kvm. VMs made from it live on.
func (s *System) Close() error { return s.fd.close() }

// CheckExtension is 0 where the capability is absent, and its value otherwise.
func (s *System) CheckExtension(c Cap) (int, error) {
	return s.fd.do("KVM_CHECK_EXTENSION", io(0x03), uintptr(c))
}

// SupportedCPUID lists what KVM can show a guest on this host.
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	return getCPUID(&s.fd, "KVM_GET_SUPPORTED_CPUID", 0x05)
}

// EmulatedCPUID lists the features that KVM emulates, at a price.
func (s *System) EmulatedCPUID() ([]CPUIDEntry, error) {
	return getCPUID(&s.fd, "KVM_GET_EMULATED_CPUID", 0x09)
}

// MSRIndexList lists the MSRs that a guest's state consists of.
func (s *System) MSRIndexList() ([]uint32, error) { return s.msrList("KVM_GET_MSR_INDEX_LIST", 0x02) }

// MSRFeatureIndexList lists the MSRs that describe the host's features.
func (s *System) MSRFeatureIndexList() ([]uint32, error) {
	return s.msrList("KVM_GET_MSR_FEATURE_INDEX_LIST", 0x0a)
}

const maxMSRIndices = 4096

func (s *System) msrList(name string, nr uintptr) ([]uint32, error) {
	for n := 256; n <= maxMSRIndices; n *= 2 {
		b := make([]byte, 4+4*n)
		binary.LittleEndian.PutUint32(b, uint32(n))
		_, err := s.fd.buffer(name, iowr(nr, 4), b)
		if errors.Is(err, syscall.E2BIG) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out := make([]uint32, min(n, int(binary.LittleEndian.Uint32(b))))
		for i := range out {
			out[i] = binary.LittleEndian.Uint32(b[4+4*i:])
		}
		return out, nil
	}
	return nil, fmt.Errorf("%s: more than %d entries", name, maxMSRIndices)
}

// CreateVM makes a VM without memory, vCPUs or interrupt controllers.
func (s *System) CreateVM() (*VM, error) {
	fd, err := s.fd.do("KVM_CREATE_VM", io(0x01), 0)
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd) // KVM sets O_CLOEXEC itself; older ones did not
	vm := &VM{runBytes: s.runBytes}
	vm.fd.v.Store(int32(fd))
	return vm, nil
}

// CPUIDEntry is struct kvm_cpuid_entry2 without its padding.
type CPUIDEntry struct {
	Function, Index, Flags uint32
	EAX, EBX, ECX, EDX     uint32
}

// KVM_CPUID_FLAG_SIGNIFCANT_INDEX marks an entry of a function that has
// subleaves (the kernel's spelling).
const KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1

const (
	cpuidHeaderBytes = 8  // struct kvm_cpuid2: nent, padding
	cpuidEntryBytes  = 40 // struct kvm_cpuid_entry2: 7 words, 3 words of padding
)

func getCPUID(d *descriptor, name string, nr uintptr) ([]CPUIDEntry, error) {
	for n := 128; n <= maxCPUIDEntries; n *= 2 {
		b := make([]byte, cpuidHeaderBytes+cpuidEntryBytes*n)
		binary.LittleEndian.PutUint32(b, uint32(n))
		_, err := d.buffer(name, iowr(nr, cpuidHeaderBytes), b)
		if errors.Is(err, syscall.E2BIG) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out := make([]CPUIDEntry, min(n, int(binary.LittleEndian.Uint32(b))))
		for i := range out {
			e := b[cpuidHeaderBytes+cpuidEntryBytes*i:]
			le := binary.LittleEndian
			out[i] = CPUIDEntry{
				Function: le.Uint32(e), Index: le.Uint32(e[4:]), Flags: le.Uint32(e[8:]),
				EAX: le.Uint32(e[12:]), EBX: le.Uint32(e[16:]), ECX: le.Uint32(e[20:]), EDX: le.Uint32(e[24:]),
			}
		}
		return out, nil
	}
	return nil, fmt.Errorf("%s: more than %d entries", name, maxCPUIDEntries)
}

func encodeCPUID(entries []CPUIDEntry) []byte {
	b := make([]byte, cpuidHeaderBytes+cpuidEntryBytes*len(entries))
	le := binary.LittleEndian
	le.PutUint32(b, uint32(len(entries)))
	for i, e := range entries {
		p := b[cpuidHeaderBytes+cpuidEntryBytes*i:]
		for j, v := range [...]uint32{e.Function, e.Index, e.Flags, e.EAX, e.EBX, e.ECX, e.EDX} {
			le.PutUint32(p[4*j:], v)
		}
	}
	return b
}
