package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/peervisor/peervisor/guest"
)

// Descriptors that a guest process inherits.
const (
	lockFD  = 3 // the guest's lock file, locked
	readyFD = 4 // where it reports its start, as lines of report
)

// report is a line of the guest process to its launcher.
type report struct {
	Step  string `json:"step,omitempty"`
	Error string `json:"error,omitempty"`
	OK    bool   `json:"ok,omitempty"`
}

// launch starts the guest of dir in a process of its own and returns when it runs.
func launch(dir *guest.Dir, owned bool) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("launch guest: %w", err)
	}
	defer r.Close()
	stderr, err := os.OpenFile(filepath.Join(dir.Path(), "stderr.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return errors.Join(fmt.Errorf("launch guest: %w", err), w.Close())
	}
	defer stderr.Close()
	args := []string{"guest-process"}
	if owned {
		args = append(args, "--owned")
	}
	cmd := exec.Command("/proc/self/exe", append(args, dir.Config().Name)...)
	cmd.Args[0] = os.Args[0]
	cmd.Stderr = stderr
	cmd.ExtraFiles = []*os.File{dir.Lock(), w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("launch guest: %w", err)
	}
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(sigs)
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-sigs:
			_ = cmd.Process.Kill()
		case <-done:
		}
	}()
	if err := awaitStart(r); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // its status says no more than err
		return err
	}
	return cmd.Process.Release()
}

// awaitStart follows a guest process's reports until it runs or failed.
func awaitStart(r *os.File) error {
	p := newProgress(os.Stderr)
	defer p.end()
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		var rep report
		if err := json.Unmarshal(sc.Bytes(), &rep); err != nil {
			return fmt.Errorf("launch guest: its process said %q", sc.Text())
		}
		switch {
		case rep.OK:
			return nil
		case rep.Error != "":
			return errors.New(rep.Error)
		default:
			p.step(rep.Step)
		}
	}
	return errors.New("launch guest: its process ended before the guest ran (interrupted?)")
}

// reporter is the guest process's side. A launcher that is gone is no error.
type reporter struct {
	mu  sync.Mutex
	f   *os.File
	enc *json.Encoder
}

func newReporter(f *os.File) *reporter { return &reporter{f: f, enc: json.NewEncoder(f)} }

func (r *reporter) step(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.enc.Encode(report{Step: s})
}

func (r *reporter) ok() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.enc.Encode(report{OK: true})
	_ = r.f.Close()
}

func (r *reporter) fail(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.enc.Encode(report{Error: err.Error()})
	_ = r.f.Close()
	return err
}
