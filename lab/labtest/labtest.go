// Package labtest gives tests a lab host. Hosts take seconds to boot, so a test
// package shares one:
//
//	var shared = labtest.New(lab.Config{Packages: []string{"nbdkit"}})
//
//	func TestMain(m *testing.M) { os.Exit(shared.Main(m)) }
//
//	func TestX(t *testing.T) { host := shared.Host(t); … }
//
// Where this machine cannot run the lab, tests are skipped with the reason, and the
// skip is written to the ledger of package testenv. With PEERVISOR_REQUIRE_LAB=1
// in the environment they fail instead. Any other error fails them in any case.
package labtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/peervisor/peervisor/internal/testenv"
	"github.com/peervisor/peervisor/kernel/agent"
	"github.com/peervisor/peervisor/lab"
)

// RequireEnv makes a lab that is not available a failure, if it is "1".
const RequireEnv = "PEERVISOR_REQUIRE_LAB"

// startTimeout bounds the first start, which may build the image.
const startTimeout = 15 * time.Minute

// maxHosts bounds how many hosts one package starts, each after the death of the one before.
const maxHosts = 4

// Shared is a lab host that is started when the first test asks for it.
type Shared struct {
	cfg lab.Config

	mu      sync.Mutex
	host    *lab.Host
	err     error // of the last start; it is not tried again
	started int
}

// New describes a shared host. An empty CacheDir is CacheDir().
func New(cfg lab.Config) *Shared { return &Shared{cfg: cfg} }

// CacheDir is where the project keeps kernels and images: PEERVISOR_CACHE, else
// /var/cache/peervisor for root and the user's cache directory for others.
func CacheDir() (string, error) {
	if dir := os.Getenv("PEERVISOR_CACHE"); dir != "" {
		return dir, nil
	}
	if os.Geteuid() == 0 {
		return "/var/cache/peervisor", nil
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "peervisor"), err
}

// Main runs the tests and closes the host. Its result is for os.Exit.
func (s *Shared) Main(m *testing.M) int {
	code := m.Run()
	if err := s.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	return code
}

// Host returns the host, and skips or fails t if there is none. A host that
// died, under an earlier test, is replaced.
func (s *Shared) Host(t testing.TB) *lab.Host {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.host != nil && !gone(s.host) {
		testenv.Ran(t, testenv.Lab)
		return s.host
	}
	if s.err == nil {
		s.host, s.err = s.startLocked(t)
	}
	Check(t, s.err)
	return s.host
}

// Check notes in the ledger that t runs if err, which is from lab.Start, is nil.
// Otherwise it skips or fails t.
func Check(t testing.TB, err error) {
	t.Helper()
	switch {
	case err == nil:
		testenv.Ran(t, testenv.Lab)
	case errors.Is(err, lab.ErrUnavailable) && os.Getenv(RequireEnv) != "1":
		testenv.Skip(t, testenv.Lab, err.Error())
	default:
		t.Fatal(err)
	}
}

func gone(h *lab.Host) bool {
	select {
	case <-h.Done():
		return true
	default:
		return false
	}
}

func (s *Shared) startLocked(t testing.TB) (*lab.Host, error) {
	if s.host != nil {
		if err := s.host.Close(); err != nil {
			return nil, err
		}
	}
	if s.started++; s.started > maxHosts {
		return nil, fmt.Errorf("lab: %d hosts died under the tests of this package", maxHosts)
	}
	return Start(t, s.cfg)
}

// Start starts a host that the caller closes. What takes long is logged.
func Start(t testing.TB, cfg lab.Config) (*lab.Host, error) {
	t.Helper()
	if cfg.CacheDir == "" {
		dir, err := CacheDir()
		if err != nil {
			return nil, err
		}
		cfg.CacheDir = dir
	}
	if cfg.Progress == nil {
		cfg.Progress = func(step string) { t.Log(step) }
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	return lab.Start(ctx, cfg)
}

// Close ends the host, if one was started.
func (s *Shared) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.host == nil {
		return nil
	}
	return s.host.Close()
}

// commandTimeout bounds Output. Nested guests boot in ten seconds, on a busy
// machine in a minute.
const commandTimeout = 5 * time.Minute

// Output runs argv and returns its standard output. Any other end than exit status
// 0 fails t, with what it wrote to standard error.
func Output(t testing.TB, host *lab.Host, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	status, err := host.Exec(ctx, agent.Command{Argv: argv, Stdout: &stdout, Stderr: &stderr})
	if err == nil && status.ExitCode() != 0 {
		err = fmt.Errorf("exit status %d", status.ExitCode())
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(argv, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}
