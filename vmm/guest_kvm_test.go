package vmm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/peervisor/peervisor/internal/testenv"
	"github.com/peervisor/peervisor/memory"
	"github.com/peervisor/peervisor/vmm/boot"
)

// The guests of these tests: a few instructions each, hand assembled, at codeAt.
// The comments are the source.
var (
	// Prints "hello" on the serial port and powers off.
	codeHello = []byte("" +
		"\xba\xf8\x03\x00\x00" + //     mov edx, 0x3f8
		"\xbe\x21\x10\x00\x00" + //     mov esi, 0x1021
		"\xb9\x06\x00\x00\x00" + //     mov ecx, 6
		"\xac" + //                  1: lodsb
		"\xee" + //                     out dx, al
		"\x49\x75\xfb" + //             dec ecx; jnz 1b
		powerOff +
		"hello\n")
	// Reads the host bridge's identity through ECAM and tells it to the test device.
	codeECAM = []byte("" +
		"\xa1\x00\x00\x00\xe0" + // mov eax, [0xe0000000]
		"\xa3\x00\x00\x10\xf0" + // mov [0xf0100000], eax
		powerOff)
	// Starts ebx application processors, waits until each has counted itself.
	codeSMP = []byte("" +
		"\xb9\x01\x00\x00\x00" + //                     mov ecx, 1
		"\x89\xc8\xc1\xe0\x18" + //                  2: mov eax, ecx; shl eax, 24
		"\xa3\x10\x03\xe0\xfe" + //                     mov [ICR high], eax
		"\xc7\x05\x00\x03\xe0\xfe\x00\x45\x00\x00" + // mov dword [ICR low], INIT
		"\xa3\x10\x03\xe0\xfe" + //                     mov [ICR high], eax
		"\xc7\x05\x00\x03\xe0\xfe\x08\x46\x00\x00" + // mov dword [ICR low], SIPI to 0x8000
		"\x41\x39\xd9\x76\xd8" + //                     inc ecx; cmp ecx, ebx; jbe 2b
		"\x38\x1d\x00\x70\x00\x00\x75\xf8" + //      3: cmp [0x7000], bl; jne 3b
		powerOff)
	// What an application processor does, in real mode at 0x8000.
	codeAP = []byte("\xf0\xfe\x06\x00\x70" + // lock inc byte [0x7000]
		"\xf4\xeb\xfd") // 4: hlt; jmp 4b
	// A string output, an input that is handed to the test device, and a loop.
	codeString = []byte("" +
		"\xbe\x14\x10\x00\x00" + // mov esi, 0x1014
		"\xb9\x06\x00\x00\x00" + // mov ecx, 6
		"\xba\xf8\x03\x00\x00" + // mov edx, 0x3f8
		"\xf3\x6e" + //             rep outsb
		"\x90\xeb\xfe" + //         nop; jmp $
		"string")
	codeSpin = []byte("\xeb\xfe") // jmp $

	// Ring 3: counts at 0x5000 and tells the test device every 65,536 rounds.
	codeCount = []byte("" +
		"\xbf\x00\x00\x10\xf0" + //             mov edi, 0xf0100000
		"\x48\xff\x04\x25\x00\x50\x00\x00" + // 5: inc qword [0x5000]
		"\x8b\x04\x25\x00\x50\x00\x00" + //     mov eax, [0x5000]
		"\xa9\xff\xff\x00\x00\x75\xea" + //     test eax, 0xffff; jnz 5b
		"\x89\x07\xeb\xe6") //                  mov [rdi], eax; jmp 5b
	// Ring 3: writes into the RAM above 4 GiB and tells the test device.
	codeHigh = []byte("" +
		"\x48\xbf\x00\x00\x00\x00\x01\x00\x00\x00" + // movabs rdi, 0x100000000
		"\xc7\x07\x78\x56\x34\x12" + //                 mov dword [rdi], 0x12345678
		"\xbf\x00\x00\x10\xf0\x89\x07\xeb\xfe") //       mov edi, 0xf0100000; mov [rdi], eax; jmp $
	codeUD2 = []byte("\x0f\x0b") // ud2, with an empty IDT: a triple fault

	codePVPanic = []byte("\xba\x05\x05\x00\x00\xb0\x01\xee\xeb\xfe") // mov edx, 0x505; mov al, 1; out dx, al; jmp $
	codeCF9     = []byte(resetBy0xCF9)
	codeI8042   = []byte("\xb0\xfe\xe6\x64\xeb\xfe") // mov al, 0xfe; out 0x64, al; jmp $
	codeOff     = []byte(powerOff)
	// A jump to where nothing is: no KVM can fetch from there.
	codeNowhere = []byte("\xb8\x00\x00\x00\xd0\xff\xe0") // mov eax, 0xd0000000; jmp eax
)

const (
	powerOff = "\xba\x04\x06\x00\x00" + // mov edx, 0x604
		"\xb8\x00\x34\x00\x00" + //        mov eax, S5 | SLP_EN
		"\x66\xef\xf4" //                  out dx, ax; hlt

	// mov edx, 0xcf9; mov al, 6; out dx, al; jmp $, as long as powerOff
	resetBy0xCF9 = "\xba\xf9\x0c\x00\x00\xb0\x06\xee\xeb\xfe\x90\x90\x90"

	codeAt     = 0x1000
	counterAt  = 0x5000
	apCodeAt   = 0x8000
	testDevice = 0xF010_0000
	tablesAt   = 0x1_0000 // page tables of ring-3 guests
)

// flat is how a PVH kernel starts: 32 bits, no paging, ring 0.
func flat(code []byte, ebx uint64) loader {
	return func(m *memory.Memory, _ boot.Source, _ memory.Addr) (boot.Entry, error) {
		if err := errors.Join(m.WriteAt(code, codeAt), m.WriteAt(codeAP, apCodeAt)); err != nil {
			return boot.Entry{}, err
		}
		data := boot.Segment{Selector: 0x18, Limit: 0xFFFF_FFFF, Type: 3, Present: true, DB: true, Granular: true}
		cs := data
		cs.Selector, cs.Type = 0x10, 0xB
		return boot.Entry{
			Protocol: boot.PVH, RIP: codeAt, RBX: ebx, RFLAGS: 2, CR0: 0x11,
			CS: cs, DS: data, ES: data, FS: data, GS: data, SS: data,
			TR: boot.Segment{Limit: 0x67, Type: 0xB, Present: true, System: true},
		}, nil
	}
}

// user starts in ring 3 of long mode, where this kind of test machine runs code
// natively. The first, fourth and fifth GiB are mapped.
func user(code []byte) loader {
	return func(m *memory.Memory, _ boot.Source, _ memory.Addr) (boot.Entry, error) {
		var tables [5 * 512]uint64 // PML4, PDPT, three page directories
		const pml4, pdpt, low, high, over, flags = 0, 512, 1024, 1536, 2048, 7
		tables[pml4] = tablesAt + 8*pdpt | flags
		tables[pdpt] = tablesAt + 8*low | flags
		tables[pdpt+3] = tablesAt + 8*high | flags
		tables[pdpt+4] = tablesAt + 8*over | flags
		for i := range uint64(512) {
			tables[over+i] = 4<<30 + i<<21 | 1<<7 | flags
			tables[low+i] = i<<21 | 1<<7 | flags
			tables[high+i] = 3<<30 + i<<21 | 1<<7 | flags
		}
		raw, err := binary.Append(nil, binary.LittleEndian, tables[:])
		if err = errors.Join(err, m.WriteAt(raw, tablesAt), m.WriteAt(code, codeAt)); err != nil {
			return boot.Entry{}, err
		}
		data := boot.Segment{Selector: 0x23, Limit: 0xFFFF_FFFF, Type: 3, DPL: 3, Present: true, DB: true, Granular: true}
		cs := data
		cs.Selector, cs.Type, cs.Long, cs.DB = 0x1B, 0xB, true, false
		return boot.Entry{
			Protocol: boot.Linux64, RIP: codeAt, RSP: 0x4000, RFLAGS: 2,
			CR0: 0x8000_0011, CR3: tablesAt, CR4: 0x20, EFER: 0x500,
			CS: cs, DS: data, ES: data, FS: data, GS: data, SS: data,
			TR: boot.Segment{Limit: 0x67, Type: 0xB, Present: true, System: true},
		}, nil
	}
}

// testConfig is a small machine whose kernel the loader brings along.
func testConfig() Config {
	return Config{MemoryBytes: 4 << 20, Boot: boot.Source{Kernel: strings.NewReader("")}}
}

func newTestMachine(t testing.TB, cfg Config, load loader) *Machine {
	t.Helper()
	testenv.NeedKVM(t)
	m, err := newMachine(cfg, load)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// deadline bounds every wait of a test.
func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func runToEnd(t testing.TB, m *Machine) Exit {
	t.Helper()
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	e, err := m.Wait(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// output collects serial output and tells when something came.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	came chan struct{} // capacity 1
}

func newOutput() *output { return &output{came: make(chan struct{}, 1)} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.came <- struct{}{}:
	default:
	}
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// bell is a device that tells the test of each write.
type bell struct{ rang chan uint32 } // capacity 1

func (b bell) Read(_ uint64, p []byte) { clear(p) }

func (b bell) Write(_ uint64, p []byte) {
	var v [8]byte
	copy(v[:], p)
	select {
	case b.rang <- binary.LittleEndian.Uint32(v[:]):
	default:
	}
}

func addBell(t testing.TB, m *Machine) bell {
	t.Helper()
	b := bell{make(chan uint32, 1)}
	if err := m.mmio.Add("bell", testDevice, 0x1000, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b bell) wait(t testing.TB) uint32 {
	t.Helper()
	select {
	case v := <-b.rang:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("the guest does not ring")
		return 0
	}
}

// again throws away an old ring and waits for a new one.
func (b bell) again(t testing.TB) {
	t.Helper()
	select {
	case <-b.rang:
	default:
	}
	b.wait(t)
}
