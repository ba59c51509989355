package session_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kernel/agent"
	"github.com/peervisor/peervisor/kernel/init/session"
)

// testBound is how long a single test may take before it is stuck.
const testBound = 60 * time.Second

// rig is a guest engine as an ordinary process, and the host's client, over
// pipes and a socket pair.
type rig struct {
	t      *testing.T
	ctx    context.Context
	client *agent.Client
	engine *session.Engine
	served chan session.Action
	// guest is the guest's end of the control port, for tests that break it.
	guest *os.File
}

func socketPair(t *testing.T) (host, guest *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest")
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

func newRig(t *testing.T, opts agent.Options) *rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testBound)
	hostCtl, guestCtl := socketPair(t)
	guestIn, hostIn := pipe(t)
	hostOut, guestOut := pipe(t)
	hostErr, guestErr := pipe(t)
	r := &rig{t: t, ctx: ctx, served: make(chan session.Action, 1), guest: guestCtl}
	r.engine = session.New(session.Config{Ctl: guestCtl, Stdin: guestIn, Stdout: guestOut, Stderr: guestErr,
		Reaper: session.NewReaper(false), Kernel: "test"})
	go func() {
		action, _ := r.engine.Serve()
		for _, f := range []*os.File{guestCtl, guestIn, guestOut, guestErr} {
			f.Close()
		}
		r.served <- action
	}()
	r.client = agent.New(agent.Ports{Ctl: hostCtl, Stdin: hostIn, Stdout: hostOut, Stderr: hostErr}, opts)
	t.Cleanup(func() {
		_ = r.client.Close()
		select {
		case <-r.served:
		case <-time.After(testBound):
			t.Error("the engine did not see that the host is gone")
		}
		cancel()
	})
	return r
}

// run runs a command to its end.
func (r *rig) run(cmd agent.Command) agent.Status {
	r.t.Helper()
	p, err := r.client.Run(r.ctx, cmd)
	if err != nil {
		r.t.Fatalf("run %q: %v", cmd.Argv, err)
	}
	status, err := p.Wait()
	if err != nil {
		r.t.Fatalf("wait for %q: %v", cmd.Argv, err)
	}
	return status
}

// sh runs a shell script and returns its output.
func (r *rig) sh(script string, stdin io.Reader) (stdout, stderr string, status agent.Status) {
	r.t.Helper()
	var o, e bytes.Buffer
	status = r.run(agent.Command{Argv: []string{"sh", "-c", script}, Stdin: stdin, Stdout: &o, Stderr: &e})
	if status.StdoutBytes != uint64(o.Len()) || status.StderrBytes != uint64(e.Len()) {
		r.t.Errorf("counts %d and %d, got %d and %d bytes", status.StdoutBytes, status.StderrBytes, o.Len(), e.Len())
	}
	return o.String(), e.String(), status
}
