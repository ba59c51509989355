package lab

import (
	"context"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestProcessOutlivesThreads: the signal at the parent's death goes by the thread
// that forked, so that thread must not end before the process does.
func TestProcessOutlivesThreads(t *testing.T) {
	p, err := startProcess("sleep", []string{"600"}, nil, nil, os.Environ())
	if err != nil {
		t.Fatal(err)
	}
	defer p.kill()
	// Threads end when a goroutine that has locked one does.
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(runtime.LockOSThread)
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if p.wait(ctx) == nil {
		t.Fatalf("the process ended by itself: %v", p.died())
	}
	p.kill()
	p.kill()
	if err := p.died(); !strings.Contains(err.Error(), "killed") {
		t.Error(err)
	}
}

func TestProcessThatCannotStart(t *testing.T) {
	if _, err := startProcess("/no/such/program", nil, nil, nil, nil); err == nil {
		t.Error("it started")
	}
}

func TestProcessEnds(t *testing.T) {
	for program, want := range map[string]string{"true": "powered off", "false": "exit status 1"} {
		p, err := startProcess(program, nil, nil, nil, os.Environ())
		if err != nil {
			t.Fatal(err)
		}
		<-p.done
		if err := p.died(); !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", program, err)
		}
		p.kill()
	}
}

func TestPorts(t *testing.T) {
	pairs, err := openPorts()
	if err != nil {
		t.Fatal(err)
	}
	defer closePorts(pairs)
	read := make(chan error, 1)
	go func() {
		_, err := pairs[0].ours.Read(make([]byte, 1))
		read <- err
	}()
	if err := pairs[0].ours.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err == nil {
		t.Error("a read that waited for a byte returned one from a closed port")
	}
}

func TestExcerpt(t *testing.T) {
	many := strings.Repeat("line\n", 100)
	if got := excerpt(many); strings.Count(got, "\n") != tailLines-1 {
		t.Errorf("%d lines", strings.Count(got, "\n")+1)
	}
	if got := excerpt("\x1b[31mred\x1b[0m\r\n\n"); got != "[31mred[0m" {
		t.Errorf("%q", got)
	}
	got := excerpt(many + "[1] Kernel panic - not syncing: x\n" + many)
	if !strings.HasPrefix(got, "[1] Kernel panic") || strings.Count(got, "\n") != tailLines-1 {
		t.Errorf("%q", got)
	}
}
