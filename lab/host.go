package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/peervisor/peervisor/kernel"
	"github.com/peervisor/peervisor/kernel/agent"
)

// closeGrace bounds how long Close waits for QEMU to go after SIGKILL: it is over
// when the kernel has taken down its memory.
const closeGrace = 30 * time.Second

// Host is one lab host that runs. All methods may be called from any goroutine.
type Host struct {
	cfg     Config
	dir     *runDirectory
	logDir  string // serial.log and the others
	proc    *process
	client  *agent.Client
	files   []io.Closer
	busy    chan struct{} // holds a token while a command runs
	hello   agent.Hello
	bootDur time.Duration

	closeOnce sync.Once
	closeErr  error
}

// Start boots a lab host and returns when it takes commands. What is missing in
// the cache is fetched and built before; that takes a minute, once. ctx bounds Start
// only: the host lives until Close.
func Start(ctx context.Context, cfg Config) (*Host, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	h, err := start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start lab host: %w", err)
	}
	return h, nil
}

func start(ctx context.Context, cfg Config) (*Host, error) {
	qemu, err := findTool(qemuProgram)
	if err != nil {
		return nil, err
	}
	parts, err := prepare(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer parts.root.Close()
	h := &Host{cfg: cfg, busy: make(chan struct{}, 1)}
	if h.dir, err = newRunDirectory(ctx, filepath.Join(cfg.CacheDir, "lab", runDir)); err != nil {
		return nil, err
	}
	if err := h.launch(qemu, parts); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	if err := h.awaitBoot(ctx); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// parts are what Start takes from the cache.
type parts struct {
	root           *os.File
	kernel, initrd string
}

func prepare(ctx context.Context, cfg Config) (parts, error) {
	s := &store{dir: filepath.Join(cfg.CacheDir, "lab"), cacheDir: cfg.CacheDir, progress: cfg.Progress}
	img, err := s.get(ctx, request{Recipe: recipe, Packages: cfg.Packages, Kernel: cfg.KernelPackage})
	if err != nil {
		return parts{}, err
	}
	initrd, err := kernel.Initramfs(ctx, cfg.CacheDir, kernel.InitramfsOptions{
		Kernel: img.kernel,
		// What the root and the shares are on; what has no device that would ask for it.
		Modules: []string{"virtio_pci", "virtio_blk", "virtio_console", "ext4", "9p", "9pnet_virtio"},
		Preload: []string{"crc32c_generic", "crc32c_intel", "kvm-amd", "tun"},
	})
	if err != nil {
		return parts{}, errors.Join(err, img.root.Close())
	}
	return parts{root: img.root, kernel: img.kernel.VmlinuxPath, initrd: initrd}, nil
}

// launch starts QEMU and the agent's client.
func (h *Host) launch(qemu string, p parts) error {
	h.logDir = h.dir.path
	if h.cfg.ResultDir != "" {
		if err := os.MkdirAll(h.cfg.ResultDir, 0o755); err != nil {
			return fmt.Errorf("make result directory: %w", err)
		}
		h.logDir = h.cfg.ResultDir
	}
	filesDir := filepath.Join(h.dir.path, filesName)
	if err := os.Mkdir(filesDir, 0o755); err != nil {
		return err
	}
	if err := copyFiles(filesDir, h.cfg.Files); err != nil {
		return err
	}
	shares := append([]Share{{Source: filesDir, Target: FilesDir, ReadOnly: true, Cached: true}}, h.cfg.Shares...)
	h.cfg.Shares = shares
	output, err := os.Create(filepath.Join(h.logDir, qemuLog))
	if err != nil {
		return err
	}
	defer output.Close() // QEMU has its own
	kernelOut, err := os.Create(filepath.Join(h.logDir, kernelLog))
	if err != nil {
		return err
	}
	h.files = append(h.files, kernelOut)
	pairs, err := openPorts()
	if err != nil {
		return err
	}
	spec := machineSpec{name: h.cfg.Name, cpus: h.cfg.CPUs, memoryMiB: h.cfg.MemoryMiB, kernel: p.kernel, initrd: p.initrd,
		serialLog: filepath.Join(h.logDir, serialLog), shares: shares}
	inherit := []*os.File{p.root}
	for _, pair := range pairs {
		inherit = append(inherit, pair.theirs)
	}
	// The overlay of the root is an unlinked file in TMPDIR.
	env := append(os.Environ(), "TMPDIR="+h.dir.path)
	h.proc, err = startProcess(qemu, spec.arguments(), inherit, output, env)
	if err != nil {
		closePorts(pairs)
		return fmt.Errorf("run %s: %w", qemuProgram, err)
	}
	for _, pair := range pairs {
		_ = pair.theirs.Close() // QEMU has its own; when that goes, reads here end
	}
	h.client = agent.New(clientPorts(pairs), agent.Options{Log: kernelOut, Notice: h.notice})
	return nil
}

func (h *Host) notice(message string) {
	h.cfg.Log.Warn("lab host", slog.String("host", h.cfg.Name), slog.String("notice", message))
}

// awaitBoot waits for the agent and mounts the shares.
func (h *Host) awaitBoot(ctx context.Context) error {
	h.cfg.Progress("boot the lab host")
	begin := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, h.cfg.BootTimeout,
		fmt.Errorf("it was not up after %v", h.cfg.BootTimeout))
	defer cancel()
	hello, err := h.client.Hello(ctx)
	if err != nil {
		return h.explain(ctx, err)
	}
	h.hello = hello
	if err := h.setUp(ctx); err != nil {
		return err
	}
	h.bootDur = time.Since(begin)
	return nil
}

// Run starts a command, when the one before has ended. The caller waits for it
// with Wait, to which the same applies as to Exec. The process can be signalled and
// its terminal resized.
//
// The environment is Env(), then cmd.Env.
func (h *Host) Run(ctx context.Context, cmd agent.Command) (*Process, error) {
	select {
	case h.busy <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("run in lab host: %w", context.Cause(ctx))
	}
	cmd.Env = slices.Concat(h.Env(), cmd.Env)
	proc, err := h.client.Run(ctx, cmd)
	if err != nil {
		<-h.busy
		return nil, h.explain(ctx, err)
	}
	return &Process{host: h, proc: proc, ctx: ctx}, nil
}

// Exec runs a command in the lab host, after the one that runs now, and returns how
// it ended. Output and status come through exactly. A command that cannot be started
// is an *agent.StartError; a host that died meanwhile is an agent.ErrGuestGone with
// its last words. When ctx ends the command is killed.
func (h *Host) Exec(ctx context.Context, cmd agent.Command) (agent.Status, error) {
	p, err := h.Run(ctx, cmd)
	if err != nil {
		return agent.Status{}, err
	}
	return p.Wait()
}

// Env is the environment that commands have.
func (h *Host) Env() []string {
	return []string{
		"PATH=" + FilesDir + "/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LANG=C.UTF-8", "TERM=linux",
		"PEERVISOR_CACHE=" + h.cfg.CacheDir,
	}
}

// explain adds to an error of the agent what is known about the host's end.
func (h *Host) explain(ctx context.Context, err error) error {
	var start *agent.StartError
	if errors.As(err, &start) {
		return err
	}
	if errors.Is(err, agent.ErrGuestGone) {
		// The ports close a moment before QEMU is reaped.
		wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeGrace)
		defer cancel()
		if h.proc.wait(wctx) == nil {
			return fmt.Errorf("%w: %w%s", err, h.proc.died(), lastWords(h.logDir))
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w%s", err, lastWords(h.logDir))
	}
	return err
}

// Process is a command that runs in a lab host. Somebody has to call Wait, or the
// next command never starts.
type Process struct {
	host    *Host
	proc    *agent.Process
	ctx     context.Context // of Run, which bounds the command
	release sync.Once
}

// Signal sends a signal to the command's process group.
func (p *Process) Signal(sig syscall.Signal) error { return p.proc.Signal(sig) }

// Resize sets the size of the command's terminal.
func (p *Process) Resize(rows, cols uint16) error { return p.proc.Resize(rows, cols) }

// Wait returns when the command ended and all its output was written.
func (p *Process) Wait() (agent.Status, error) {
	status, err := p.proc.Wait()
	p.release.Do(func() { <-p.host.busy })
	if err != nil {
		return status, p.host.explain(p.ctx, err)
	}
	return status, nil
}

// Done is closed when the host is gone.
func (h *Host) Done() <-chan struct{} { return h.proc.done }

// Kernel is the lab host's uname -r.
func (h *Host) Kernel() string { return h.hello.Kernel }

// BootTime is how long it took from QEMU's start to taking commands.
func (h *Host) BootTime() time.Duration { return h.bootDur }

// LogDir is where serial.log, kernel.log and qemu.log are while the host lives, and
// with Config.ResultDir also afterwards.
func (h *Host) LogDir() string { return h.logDir }

// Close ends the lab host at once, with all that runs in it. A command that runs
// returns with an error. Calling it again does nothing.
func (h *Host) Close() error {
	h.closeOnce.Do(func() {
		var errs []error
		if h.proc != nil {
			h.proc.kill()
		}
		if h.client != nil {
			errs = append(errs, h.client.Close())
		}
		for _, f := range h.files {
			errs = append(errs, f.Close())
		}
		if h.dir != nil {
			errs = append(errs, h.dir.remove())
		}
		if err := errors.Join(errs...); err != nil {
			h.closeErr = fmt.Errorf("close lab host: %w", err)
		}
	})
	return h.closeErr
}
