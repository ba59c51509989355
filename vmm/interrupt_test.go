package vmm

import (
	"encoding/binary"
	"errors"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kvm"
)

// fakeRoutes is the kernel's routing table.
type fakeRoutes struct {
	routes  []kvm.Route
	sets    int
	fds     map[uint32]int
	fail    error
	failIRQ error
}

func (f *fakeRoutes) SetRoutes(r []kvm.Route) error {
	f.sets++
	if f.fail != nil {
		return f.fail
	}
	f.routes = append([]kvm.Route(nil), r...)
	return nil
}

func (f *fakeRoutes) AssignIRQFD(fd int, gsi uint32) error {
	if f.failIRQ != nil {
		return f.failIRQ
	}
	if f.fds == nil {
		f.fds = map[uint32]int{}
	}
	f.fds[gsi] = fd
	return nil
}

func (f *fakeRoutes) DeassignIRQFD(int, uint32) error { return nil }

func (f *fakeRoutes) fired(t *testing.T, gsi uint32) uint64 {
	t.Helper()
	var b [8]byte
	if _, err := unix.Read(f.fds[gsi], b[:]); err == unix.EAGAIN {
		return 0
	} else if err != nil {
		t.Fatal(err)
	}
	return binary.NativeEndian.Uint64(b[:])
}

func newTestMSIX(t *testing.T, n int) (*msix, *fakeRoutes) {
	t.Helper()
	f := &fakeRoutes{}
	r, err := newRouter(f)
	if err != nil {
		t.Fatal(err)
	}
	x := &msix{router: r, vectors: make([]vector, n)}
	t.Cleanup(x.close)
	return x, f
}

func TestPinRoutes(t *testing.T) {
	f := &fakeRoutes{}
	if _, err := newRouter(f); err != nil {
		t.Fatal(err)
	}
	if len(f.routes) != 23+15 {
		t.Fatalf("%d pin routes", len(f.routes))
	}
	chips := map[[3]uint32]bool{}
	for _, e := range f.routes {
		chips[[3]uint32{e.GSI, e.Chip, e.Pin}] = true
		if e.GSI == 2 {
			t.Errorf("GSI 2 leads to %+v", e)
		}
	}
	for _, want := range [][3]uint32{
		{0, kvm.KVM_IRQCHIP_IOAPIC, 2}, {0, kvm.KVM_IRQCHIP_PIC_MASTER, 0}, // the PIT
		{23, kvm.KVM_IRQCHIP_IOAPIC, 23}, {4, kvm.KVM_IRQCHIP_PIC_MASTER, 4}, {9, kvm.KVM_IRQCHIP_PIC_SLAVE, 1},
	} {
		if !chips[want] {
			t.Errorf("no route %v", want)
		}
	}
	f.fail = syscall.EINVAL
	if _, err := newRouter(f); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("got %v", err)
	}
}

func TestMSIXVectors(t *testing.T) {
	x, f := newTestMSIX(t, 2)
	// Never set: the signal is kept.
	if err := x.Signal(1); err != nil {
		t.Fatal(err)
	}
	if err := x.SetVector(1, 0xFEE0_1000, 0x41); err != nil {
		t.Fatal(err)
	}
	if got := f.routes[len(f.routes)-1]; got != (kvm.Route{GSI: 24, MSI: true, Addr: 0xFEE0_1000, Data: 0x41}) {
		t.Errorf("route %+v", got)
	}
	if n := f.fired(t, 24); n != 1 {
		t.Errorf("the kept signal fired %d times", n)
	}
	if err := x.Signal(1); err != nil {
		t.Fatal(err)
	}
	if n := f.fired(t, 24); n != 1 {
		t.Errorf("fired %d times", n)
	}
	if err := x.MaskVector(1); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := x.Signal(1); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.fired(t, 24); n != 0 {
		t.Errorf("masked, fired %d times", n)
	}
	// The same message again: the kernel is not asked.
	sets := f.sets
	if err := x.SetVector(1, 0xFEE0_1000, 0x41); err != nil {
		t.Fatal(err)
	}
	if n := f.fired(t, 24); n != 1 || f.sets != sets {
		t.Errorf("unmasked, fired %d times with %d calls", n, f.sets-sets)
	}
	// Another vector has its own GSI; a changed one keeps its.
	if err := x.SetVector(0, 0xFEE0_0000, 0x42); err != nil {
		t.Fatal(err)
	}
	if err := x.SetVector(1, 0xFEE0_2000, 0x43); err != nil {
		t.Fatal(err)
	}
	n := len(f.routes)
	if f.routes[n-2].Data != 0x43 || f.routes[n-2].GSI != 24 || f.routes[n-1].GSI != 25 {
		t.Errorf("routes %+v", f.routes[n-2:])
	}
	for _, i := range []int{-1, 2} {
		if x.SetVector(i, 0, 0) == nil || x.MaskVector(i) == nil || x.Signal(i) == nil {
			t.Errorf("vector %d exists", i)
		}
	}
}

// An address that the kernel refuses harms its own vector only.
func TestRefusedRouteDoesNotPoisonTheTable(t *testing.T) {
	x, f := newTestMSIX(t, 2)
	if err := x.SetVector(0, 0xFEE0_0000, 0x41); err != nil {
		t.Fatal(err)
	}
	f.fail = syscall.EINVAL
	if err := x.SetVector(0, 1<<63, 0x41); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("got %v", err)
	}
	if err := x.SetVector(1, 1<<63, 0x41); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("got %v", err)
	}
	f.fail = nil
	if err := x.SetVector(1, 0xFEE0_0000, 0x42); err != nil {
		t.Fatal(err)
	}
	for _, r := range f.routes {
		if r.Addr == 1<<63 {
			t.Error("the refused route is in the table")
		}
	}
	// The failed vector is masked, and works again when it is set well.
	if err := x.Signal(0); err != nil {
		t.Fatal(err)
	}
	if err := x.SetVector(0, 0xFEE0_0000, 0x44); err != nil {
		t.Fatal(err)
	}
	if n := f.fired(t, 24); n != 1 {
		t.Errorf("fired %d times", n)
	}
}

func TestIRQFDFailure(t *testing.T) {
	x, f := newTestMSIX(t, 1)
	f.failIRQ = syscall.EMFILE
	if err := x.SetVector(0, 0xFEE0_0000, 1); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("got %v", err)
	}
	if _, err := newEdgeLine(f, 16); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("got %v", err)
	}
}

func TestRoutesAreBounded(t *testing.T) {
	f := &fakeRoutes{}
	r, err := newRouter(f)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; n <= kvm.KVM_MAX_IRQ_ROUTES; n++ {
		if _, err := r.set(0, 0xFEE0_0000, uint32(n)+1); errors.Is(err, errNoGSI) {
			break
		}
	}
	if n != kvm.KVM_MAX_IRQ_ROUTES-r.pins {
		t.Errorf("%d routes", n)
	}
}
