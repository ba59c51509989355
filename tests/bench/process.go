package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/peervisor/peervisor/kernel/bare"
)

// Guest is what a Launcher is asked to run.
type Guest struct {
	Kernel, Append string
	MemMiB         int
	CPUs           int // 0: 1
	Disk           string
	Queues         int // of the disk; 0: 1
}

// Launcher makes the command line of a VMM process that runs g with its serial
// port on standard output.
type Launcher func(g Guest) []string

// Machine launches tests/bench/machine, built at path.
func Machine(path string) Launcher {
	return func(g Guest) []string {
		args := []string{path, "-kernel", g.Kernel, "-append", g.Append, "-memory", fmt.Sprint(g.MemMiB),
			"-cpus", fmt.Sprint(max(g.CPUs, 1)), "-queues", fmt.Sprint(max(g.Queues, 1))}
		if g.Disk != "" {
			args = append(args, "-disk", g.Disk)
		}
		return args
	}
}

// Run launches `peervisor run` of the binary at path: in the foreground, with no
// devices but a serial line and the disk.
func Run(path string) Launcher {
	return func(g Guest) []string {
		args := []string{path, "run", "--rm", "--kernel", g.Kernel, "--memory", fmt.Sprintf("%dM", g.MemMiB), "--cpus", fmt.Sprint(max(g.CPUs, 1)),
			"--net", "none", "--rng", "none", "--console", "none", "--serial", "stdio"}
		if g.Disk == "" {
			return append(args, "--append", g.Append)
		}
		return append(args, "--transport", "mmio", "--disk", fmt.Sprintf("%s,queues=%d", g.Disk, max(g.Queues, 1)),
			"--append", g.Append+" virtio_mmio.device=4K@0xf0000000:16") // the first place of docs/machine-v1.md
	}
}

// QEMU launches QEMU's microvm. aio is the disk's ("threads", "io_uring"); with
// iothread the disk has a thread of its own.
func QEMU(aio string, iothread bool) Launcher {
	return func(g Guest) []string {
		args := []string{"qemu-system-x86_64", "-M", "microvm,accel=kvm,isa-serial=on,rtc=off,acpi=off,pit=off",
			"-cpu", "max,-arch-capabilities", "-m", fmt.Sprint(g.MemMiB), "-smp", fmt.Sprint(max(g.CPUs, 1)),
			"-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
			"-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-global", "virtio-mmio.force-legacy=false",
			"-kernel", g.Kernel, "-append", g.Append}
		if g.Disk == "" {
			return args
		}
		device := fmt.Sprintf("virtio-blk-device,drive=d,num-queues=%d", max(g.Queues, 1))
		if iothread {
			args = append(args, "-object", "iothread,id=io")
			device += ",iothread=io"
		}
		return append(args, "-drive", "id=d,file="+g.Disk+",format=raw,if=none,cache=writeback,aio="+aio, "-device", device)
	}
}

// Template launches what argv says, with {kernel}, {append}, {memory}, {cpus},
// {disk} and {queues} filled in. Words that name a disk are left out where there is none.
func Template(argv []string) Launcher {
	return func(g Guest) []string {
		r := strings.NewReplacer("{kernel}", g.Kernel, "{append}", g.Append, "{memory}", fmt.Sprint(g.MemMiB),
			"{cpus}", fmt.Sprint(max(g.CPUs, 1)), "{disk}", g.Disk, "{queues}", fmt.Sprint(max(g.Queues, 1)))
		var out []string
		for _, w := range argv {
			if g.Disk == "" && strings.Contains(w, "{disk}") {
				continue
			}
			out = append(out, r.Replace(w))
		}
		return out
	}
}

// Process is a running VMM with the bare guest in it.
type Process struct {
	// Entry is from before fork and exec to the arrival of the guest's first byte.
	Entry time.Duration

	cmd    *exec.Cmd
	out    *os.File
	text   *bufio.Reader
	errors bytes.Buffer
}

// maxErrorBytes bounds what is kept of a VMM's standard error.
const maxErrorBytes = 64 << 10

// Start launches argv and waits for the guest's first byte. ctx kills it.
func Start(ctx context.Context, argv []string) (*Process, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	p := &Process{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), out: r}
	p.cmd.Stdout = w
	p.cmd.Stderr = &limited{&p.errors}
	t0 := time.Now()
	err = p.cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	var first [1]byte
	_, err = r.Read(first[:])
	p.Entry = time.Since(t0)
	if err != nil || first[0] != 'B' {
		p.Kill()
		return nil, fmt.Errorf("start %s: no entry stamp from the guest, but %q (%v); %s", argv[0], first, err, p.errors.Bytes())
	}
	p.text = bufio.NewReader(r)
	return p, nil
}

type limited struct{ b *bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.b.Write(p[:min(len(p), maxErrorBytes-l.b.Len())])
	return len(p), nil
}

// PID is the process's ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Result reads the guest's result and waits for the end of the process. CPU is
// the time that the process used in all, guest included.
func (p *Process) Result() (res bare.Result, cpu time.Duration, err error) {
	res, err = bare.ReadResult(p.text, nil)
	if err == nil {
		_, _ = io.Copy(io.Discard, p.text)
	} else {
		_ = p.cmd.Process.Kill()
	}
	waitErr := p.wait()
	if err == nil {
		err = res.Check()
	}
	if err != nil {
		return res, 0, fmt.Errorf("%w (%v; %s)", err, waitErr, p.errors.Bytes())
	}
	s := p.cmd.ProcessState
	return res, s.UserTime() + s.SystemTime(), nil
}

// Kill ends the process and waits for it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	_ = p.wait()
}

func (p *Process) wait() error {
	err := p.cmd.Wait()
	_ = p.out.Close()
	return err
}
