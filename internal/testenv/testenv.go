// Package testenv decides what a test may count on: KVM, a KVM that runs an
// ordinary kernel, the lab, privilege. A test that cannot run is skipped with the
// reason, and both are written to a ledger, so that a run in which every KVM
// test or every lab test was skipped can be told from a good one.
package testenv

import (
	"fmt"
	"os"
	"sync"
	"testing"
)

// LedgerEnv names the file that outcomes are appended to: a line "kind ran|skipped test: reason".
const LedgerEnv = "PEERVISOR_TEST_LEDGER"

// Kinds of resources in the ledger.
const (
	KVM = "kvm"
	Lab = "lab"
)

var mu sync.Mutex

// Ran notes that a test of this kind runs.
func Ran(t testing.TB, kind string) { note(t, kind, "ran", "") }

// Skip notes that a test of this kind cannot run, and skips it.
func Skip(t testing.TB, kind, reason string) {
	t.Helper()
	note(t, kind, "skipped", reason)
	t.Skipf("%s: %s", kind, reason)
}

func note(t testing.TB, kind, what, reason string) {
	path := os.Getenv(LedgerEnv)
	if path == "" {
		return
	}
	mu.Lock()
	defer mu.Unlock()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Errorf("test ledger: %v", err)
		return
	}
	_, err = fmt.Fprintf(f, "%s %s %s %s\n", kind, what, t.Name(), reason)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		t.Errorf("test ledger: %v", err)
	}
}

// NeedKVM skips the test where /dev/kvm cannot be opened.
func NeedKVM(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		Skip(t, KVM, err.Error())
	}
	_ = f.Close()
	Ran(t, KVM)
}

// NeedRoot skips the test without root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}
