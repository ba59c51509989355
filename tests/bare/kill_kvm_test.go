package bare

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/peervisor/peervisor/kernel/bare"
	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/vmm"
)

// A test binary with childEnv set is a VMM process: it runs the flush log on the
// disk that the variable names, with the guest that childELFEnv names, until it is killed.
const (
	childEnv    = "PEERVISOR_BARE_CHILD_DISK"
	childELFEnv = "PEERVISOR_BARE_CHILD_ELF"
)

// The flush log's parameters.
const (
	logBlockBytes = 4096
	logDepth      = 8
	logSpanMiB    = 2
)

func childMain(path string) error {
	kernel, err := os.Open(os.Getenv(childELFEnv))
	if err != nil {
		return err
	}
	defer kernel.Close()
	d, err := openDisk(path, 1)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	s := spec{halves: []virtio.Device{d},
		cmdline: fmt.Sprintf("bare.test=blk-flushlog depth=%d size=%d span=%dM", logDepth, logBlockBytes, logSpanMiB)}
	cfg, err := s.config(kernel, os.Stdout)
	if err != nil {
		return err
	}
	m, err := vmm.New(cfg)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	if err := m.Start(); err != nil {
		return err
	}
	exit, err := m.Wait(context.Background())
	return errors.Join(err, fmt.Errorf("the guest ended by itself: %v", exit))
}

func TestChaosKillLosesNoAcknowledgedFlush(t *testing.T) {
	kernel := guestELF(t)
	total := uint64(0)
	chaos(t, 15, func(i int) {
		path := filepath.Join(t.TempDir(), fmt.Sprintf("disk%d.img", i))
		if err := makeFile(path, logSpanMiB); err != nil {
			t.Fatal(err)
		}
		acknowledged := killedAtRandom(t, kernel, path)
		total += acknowledged
		checkLog(t, path, acknowledged)
		_ = os.Remove(path)
	})
	if total == 0 {
		t.Error("no flush was acknowledged before any kill: nothing was tested")
	}
	t.Logf("%d acknowledged flushes", total)
}

// killedAtRandom runs a child and kills it at a random moment: a number of
// acknowledged flushes, then up to a few flushes' time. It returns the last one acknowledged.
func killedAtRandom(t *testing.T, kernel, path string) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path, childELFEnv+"="+kernel)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	after := uint64(rand.IntN(40))
	last := uint64(0)
	r := bufio.NewReader(out)
	var killer *time.Timer
	for {
		line, err := r.ReadString('\n')
		if err != nil { // a line without its end was not acknowledged to us
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
			break
		}
		var n uint64
		if _, err := fmt.Sscanf(line, "F %d", &n); err == nil {
			if n != last+1 {
				t.Errorf("flush %d follows flush %d", n, last)
			}
			last = n
		}
		if killer == nil && last >= after {
			killer = time.AfterFunc(rand.N(5*time.Millisecond), func() { _ = cmd.Process.Kill() })
		}
	}
	if killer == nil {
		t.Errorf("the child ended by itself: %s", complaint.String())
	} else {
		killer.Stop()
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return last
}

// checkLog wants in each block the last acknowledged generation that was written
// there, or a later one, in every sector of it.
func checkLog(t *testing.T, path string, acknowledged uint64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	blocks := uint64(len(b)) / logBlockBytes
	want := make([]uint64, blocks)
	for g := uint64(1); g <= acknowledged; g++ {
		for i := uint64(0); i < logDepth; i++ {
			want[((g-1)*logDepth+i)%blocks] = g
		}
	}
	const sectors = logBlockBytes / bare.SectorBytes
	for s := range blocks * sectors {
		got, ok := bare.SectorGeneration(b[s*bare.SectorBytes:], s)
		if !ok || uint64(got) < want[s/sectors] {
			t.Fatalf("sector %d holds generation %d (whole: %v), flush %d of generation %d was acknowledged",
				s, got, ok, acknowledged, want[s/sectors])
		}
	}
}
