// Command inlab runs one VMM on the lab host and prints, as a line of JSON, what
// its guest's serial line said and when. The benchmark ships it there; it is the same
// stopwatch for all VMMs.
//
//	inlab boot VMM ARG...    times of the two stamps of tests/bench/labguest, exits to user space
//	inlab entry VMM ARG...   time of the first one
//	inlab net VMM ARG...     rates of iperf3
//	inlab output VMM ARG...  time of the first byte on standard output
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/peervisor/peervisor/tests/bench/labguest"
)

// limit bounds one VMM's run.
const limit = 150 * time.Second

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: inlab boot|entry|net|output VMM ARG...")
		os.Exit(2)
	}
	m, err := measure(os.Args[1], os.Args[2:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(m)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "inlab:", err)
		os.Exit(1)
	}
}

func measure(mode string, argv []string) (map[string]float64, error) {
	read, ok := map[string]func(io.Reader, time.Time) (map[string]float64, error){"boot": boot, "entry": entry, "net": network, "output": output}[mode]
	if !ok {
		return nil, fmt.Errorf("no mode %q", mode)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	stderr, err := os.CreateTemp("", "inlab-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(stderr.Name())
	defer stderr.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = w, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	t0 := time.Now()
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return nil, err
	}
	kill := func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	timer := time.AfterFunc(limit, kill)
	defer timer.Stop()
	m, err := read(r, t0)
	kill()
	_ = cmd.Wait() // it was killed
	if err != nil {
		text, _ := os.ReadFile(stderr.Name())
		return nil, fmt.Errorf("%s: %w\n%.2000s", argv[0], err, text)
	}
	return m, nil
}

// boot waits for the stamps. Exits are counted on the whole host, where nothing
// else has a guest, and between the stamps.
func boot(r io.Reader, t0 time.Time) (map[string]float64, error) {
	exits, err := openExits()
	if err != nil {
		return nil, err
	}
	defer exits.close()
	m := map[string]float64{}
	var text []byte
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		at := time.Since(t0).Seconds()
		for _, b := range buf[:n] {
			switch {
			case b == labguest.EntryStamp && m["entry_s"] == 0:
				m["entry_s"] = at
				if err := exits.mark(); err != nil {
					return nil, err
				}
			case b == labguest.InitStamp && m["entry_s"] != 0:
				m["all_s"], m["init_s"] = at, at-m["entry_s"]
				m["exits"], err = exits.since()
				return m, err
			default:
				text = append(text, b)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("the guest ended after %.1f s, %v (%w): %.2000s", at, m, err, text)
		}
	}
}

func entry(r io.Reader, t0 time.Time) (map[string]float64, error) {
	in := bufio.NewReader(r)
	text, err := in.ReadString(labguest.EntryStamp)
	if err != nil {
		return nil, fmt.Errorf("no stamp (%w): %.2000s", err, text)
	}
	return map[string]float64{"entry_s": time.Since(t0).Seconds()}, nil
}

// network reads the receivers' lines of iperf3, guest to host first.
func network(r io.Reader, _ time.Time) (map[string]float64, error) {
	var rates []float64
	var text strings.Builder
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if text.Len() < 64<<10 {
			fmt.Fprintln(&text, line)
		}
		if strings.HasSuffix(line, "receiver") {
			rate, err := mbits(line)
			if err != nil {
				return nil, err
			}
			rates = append(rates, rate)
		}
		if line == "BENCH end" {
			break
		}
	}
	if len(rates) != 2 {
		return nil, fmt.Errorf("%d of 2 rates (%v): %s", len(rates), sc.Err(), text.String())
	}
	return map[string]float64{"out": rates[0], "in": rates[1]}, nil
}

// mbits finds "123 Mbits/sec" and returns bits a second.
func mbits(line string) (float64, error) {
	f := strings.Fields(line)
	for i := 1; i < len(f); i++ {
		if f[i] == "Mbits/sec" {
			var v float64
			if _, err := fmt.Sscan(f[i-1], &v); err != nil {
				return 0, fmt.Errorf("line %q: %w", line, err)
			}
			return v * 1e6, nil
		}
	}
	return 0, fmt.Errorf("line %q has no rate", line)
}

func output(r io.Reader, t0 time.Time) (map[string]float64, error) {
	var b [1]byte
	if n, err := r.Read(b[:]); n == 0 {
		return nil, errors.Join(errors.New("no output"), err)
	}
	return map[string]float64{"all_s": time.Since(t0).Seconds()}, nil
}
