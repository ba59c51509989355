package bare

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Result is the guest's last word: the JSON line. Fields that a test does not
// speak of are zero.
type Result struct {
	// Test is the test's name, "fault" after an exception in the guest, "fail"
	// after an error that ended it early (see Why).
	Test string `json:"test"`
	OK   bool   `json:"ok"`
	Why  string `json:"why"`

	Op         string `json:"op"`
	Ops        uint64 `json:"ops"`
	Bytes      uint64 `json:"bytes"`
	NS         uint64 `json:"ns"`
	Errors     uint64 `json:"errors"`
	Mismatches uint64 `json:"mismatches"`
	Flushes    uint64 `json:"flushes"`
	Kicks      uint64 `json:"kicks"` // notifications of the device
	Waits      uint64 `json:"waits"` // times it slept for an interrupt
	IRQs       uint64 `json:"irqs"`
	P50NS      uint64 `json:"p50_ns"`
	P99NS      uint64 `json:"p99_ns"`
	P999NS     uint64 `json:"p999_ns"`
	MaxNS      uint64 `json:"max_ns"`

	Resets     uint64 `json:"resets"`
	Cut        uint64 `json:"cut"` // requests that a reset took back
	Batches    uint64 `json:"batches"`
	Cases      uint64 `json:"cases"`
	Answered   uint64 `json:"answered"`
	NeedsReset uint64 `json:"needs_reset"`
	Silent     uint64 `json:"silent"`
	Dead       uint64 `json:"dead"`
	Disturbed  uint64 `json:"disturbed"`
	Frames     uint64 `json:"frames"`
	Others     uint64 `json:"others"`
	Bad        uint64 `json:"bad"`
	Stuck      uint64 `json:"stuck"`
	Requests   uint64 `json:"requests"`
	Ones       uint64 `json:"ones"`
	Passes     uint64 `json:"passes"`
	CPUs       uint64 `json:"cpus"`
	Ran        uint64 `json:"ran"`
	Devices    uint64 `json:"devices"`
	TSCkHz     uint64 `json:"tsc_khz"`
	RAMEnd     uint64 `json:"ram_end"`

	Vector  uint64 `json:"vector"`
	Error   uint64 `json:"error"`
	RIP     uint64 `json:"rip"`
	CS      uint64 `json:"cs"`
	Address uint64 `json:"address"`

	// Line is the JSON line itself.
	Line string `json:"-"`
}

// Rate is operations a second.
func (r Result) Rate() float64 { return float64(r.Ops) / r.Elapsed().Seconds() }

// BytesPerSecond is the throughput.
func (r Result) BytesPerSecond() float64 { return float64(r.Bytes) / r.Elapsed().Seconds() }

// Elapsed is the time that the guest measured.
func (r Result) Elapsed() time.Duration { return time.Duration(r.NS) }

// maxLineBytes bounds a line of the guest's output.
const maxLineBytes = 64 << 10

// ErrNoResult is returned by ReadResult where the output ends without a result.
var ErrNoResult = errors.New("the bare guest's output ended without a result")

// ReadResult reads the guest's serial output up to the result. Each line before
// it goes to line, which may be nil, without its newline; the entry stamp comes as "B".
// A result that is not OK is no error.
func ReadResult(r io.Reader, line func(string)) (Result, error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 4096), maxLineBytes)
	for sc.Scan() {
		text := strings.TrimRight(sc.Text(), "\r")
		if !strings.HasPrefix(text, "{") {
			if line != nil {
				line(text)
			}
			continue
		}
		res := Result{Line: text}
		if err := json.Unmarshal([]byte(text), &res); err != nil {
			return Result{}, fmt.Errorf("parse result %q: %w", text, err)
		}
		return res, nil
	}
	if err := sc.Err(); err != nil {
		return Result{}, fmt.Errorf("read bare guest's output: %w", err)
	}
	return Result{}, ErrNoResult
}

// Check returns nil if the guest was content, and else what it said.
func (r Result) Check() error {
	if r.OK {
		return nil
	}
	return fmt.Errorf("bare guest's test %s: %s", r.Test, r.Line)
}
