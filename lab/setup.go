package lab

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/peervisor/peervisor/kernel/agent"
)

// p9Options for all shares. msize is the largest message that QEMU's 9p takes over
// virtio without splitting.
const p9Options = "trans=virtio,version=9p2000.L,msize=512000"

// setUp mounts the shares. One shell that is its own mount program: each process
// costs an emulated CPU 50 ms.
func (h *Host) setUp(ctx context.Context) error {
	var stderr bytes.Buffer
	status, err := h.Exec(ctx, agent.Command{
		Argv:   []string{"/bin/busybox", "sh", "-c", setUpScript(h.cfg.Shares)},
		Stderr: &stderr,
	})
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	if status.ExitCode() != 0 {
		return fmt.Errorf("set up: exit status %d: %s", status.ExitCode(), strings.TrimSpace(stderr.String()))
	}
	return nil
}

func setUpScript(shares []Share) string {
	var b strings.Builder
	b.WriteString("set -e\n")
	for i, s := range shares {
		options := p9Options + ",cache=mmap"
		if s.Cached {
			options = p9Options + ",cache=loose"
		}
		if s.ReadOnly {
			options += ",ro"
		}
		fmt.Fprintf(&b, "busybox mkdir -p '%s'\nbusybox mount -t 9p -o %s %s '%s'\n", s.Target, options, shareTag(i), s.Target)
	}
	return b.String()
}
