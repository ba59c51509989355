package lab

// For tests from outside the package.

// CloseAgent ends the agent's session, as the death of this process would, but for
// the signal that QEMU gets from the kernel.
func (h *Host) CloseAgent() error { return h.client.Close() }

// PID is QEMU's.
func (h *Host) PID() int { return h.proc.cmd.Process.Pid }

// RunDir is where the host keeps its own files.
func (h *Host) RunDir() string { return h.dir.path }
