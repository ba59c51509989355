package probe

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/peervisor/peervisor/internal/testenv"
	"github.com/peervisor/peervisor/kvm"
)

func TestCanRunLinux(t *testing.T) {
	testenv.NeedKVM(t)
	before := time.Now()
	ok, why, err := CanRunLinux()
	took := time.Since(before)
	if err != nil {
		t.Fatal(err)
	}
	if ok != (why == "") || strings.Contains(why, "\n") {
		t.Errorf("%v with reason %q", ok, why)
	}
	// /sys/module/kvm_pvm is a software KVM, of which the answer is known.
	if _, err := os.Stat("/sys/module/kvm_pvm"); err == nil && ok {
		t.Error("PVM is said to run Linux")
	}
	t.Logf("%v %s, in %v", ok, why, took)
	if took > time.Second {
		t.Errorf("it took %v", took)
	}
}

// Both halves of the test run to their own end whatever the other says.
func TestSystemCallHalf(t *testing.T) {
	testenv.NeedKVM(t)
	sys, err := kvm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sys.Close() }()
	g, err := newTestGuest(sys)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	why, err := g.systemCall()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("system call: %q", why)
	// The report alone, without anything that a software KVM fails at, must arrive.
	copy(g.ram[codeAt:], report)
	if err := g.enter(0, 0); err != nil {
		t.Fatal(err)
	}
	if why, err := g.run(); why != "" || err != nil {
		t.Errorf("a plain write: %q, %v", why, err)
	}
}

func TestRunThatHangsIsInterrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a whole time-out")
	}
	testenv.NeedKVM(t)
	sys, err := kvm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sys.Close() }()
	g, err := newTestGuest(sys)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	copy(g.ram[codeAt:], []byte{0xEB, 0xFE}) // jmp $
	if err := g.enter(3, 0); err != nil {
		t.Fatal(err)
	}
	if why, err := g.run(); !strings.Contains(why, "did not finish") || err != nil {
		t.Errorf("%q, %v", why, err)
	}
}
