package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kernel/agent"
)

// process is QEMU. It lives no longer than the process that started it.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it was reaped
	err  error         // set before done is closed; never nil without a reason
	kill func()
}

// startProcess starts a program that gets SIGKILL when this process dies. files
// become its descriptors from 3 on and stay the caller's.
//
// The kernel sends that signal when the *thread* that forked ends, so a goroutine
// keeps its thread until the child is gone. Go's fork closes the gap between fork and
// prctl: a child whose parent died meanwhile kills itself.
func startProcess(program string, args []string, files []*os.File, output *os.File, env []string) (*process, error) {
	cmd := exec.Command(program, args...)
	cmd.ExtraFiles = files
	cmd.Stdout, cmd.Stderr = output, output
	cmd.Env = env
	// A session of its own: Ctrl-C on our terminal is the command's in the lab.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	p.kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // it fails only if there is nothing to kill
		<-p.done
	})
	return p, nil
}

// portPair is a socket pair: one end here, the other for QEMU.
type portPair struct{ ours, theirs *os.File }

// openPorts makes a socket pair for each of the agent's ports. The chardevs of QEMU
// are connected from the start: no path, no listener, nothing to wait for.
func openPorts() (pairs []portPair, err error) {
	for _, name := range agentPorts {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			closePorts(pairs)
			return nil, fmt.Errorf("make port %s: %w", name, err)
		}
		// Non-blocking before NewFile, so that Close ends a read that waits.
		if err := unix.SetNonblock(fds[0], true); err != nil {
			_, _ = unix.Close(fds[0]), unix.Close(fds[1])
			closePorts(pairs)
			return nil, fmt.Errorf("make port %s: %w", name, err)
		}
		pairs = append(pairs, portPair{os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)})
	}
	return pairs, nil
}

func closePorts(pairs []portPair) {
	for _, p := range pairs {
		_, _ = p.ours.Close(), p.theirs.Close() // nothing is buffered in them
	}
}

// clientPorts are our ends, in the order of agentPorts.
func clientPorts(pairs []portPair) agent.Ports {
	return agent.Ports{Ctl: pairs[0].ours, Stdin: pairs[1].ours, Stdout: pairs[2].ours, Stderr: pairs[3].ours, Log: pairs[4].ours}
}

// Bounds of what an error repeats of a log.
const (
	tailBytes = 16 << 10
	tailLines = 12
)

// tail is what an error message repeats of a log: from a kernel's panic on if there is
// one, else the last lines. Colours and carriage returns of a console are taken out.
func tail(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > tailBytes {
		if _, err := f.Seek(-tailBytes, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, tailBytes))
	if err != nil {
		return ""
	}
	return excerpt(string(b))
}

func excerpt(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || r == 0x7F {
			return -1
		}
		return r
	}, text)
	lines := strings.Split(strings.TrimSpace(text), "\n")
	from := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, "Kernel panic") })
	if from < 0 {
		from = max(0, len(lines)-tailLines)
	}
	return strings.Join(lines[from:min(len(lines), from+tailLines)], "\n")
}

// lastWords is what the logs in dir say about the end of a lab host.
func lastWords(dir string) string {
	var b strings.Builder
	for _, name := range []string{qemuLog, serialLog} {
		if text := tail(filepath.Join(dir, name)); text != "" {
			fmt.Fprintf(&b, "\n-- %s:\n%s", name, text)
		}
	}
	if b.Len() == 0 {
		return " (it said nothing)"
	}
	return b.String()
}

// died describes how QEMU ended.
func (p *process) died() error {
	var exit *exec.ExitError
	switch {
	case p.err == nil:
		return errors.New("it powered off")
	case errors.As(p.err, &exit):
		return fmt.Errorf("QEMU ended: %s", exit.ProcessState)
	}
	return p.err
}

// wait returns when the process ended or ctx did.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
