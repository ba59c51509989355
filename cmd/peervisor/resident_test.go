package main

import (
	"os"
	"testing"
)

func TestProgramRangeTakesReadOnlyMappingsOfTheProgramOnly(t *testing.T) {
	for line, want := range map[string]uintptr{
		"00400000-00bc7000 r-xp 00000000 fe:00 10   /usr/bin/my vmm":           0x7c7000,
		"00bc7000-0173f000 r--p 007c7000 fe:00 10   /usr/bin/my vmm":           0xb78000,
		"0173f000-017a9000 rw-p 0133f000 fe:00 10   /usr/bin/my vmm":           0,
		"00400000-00bc7000 r-xp 00000000 fe:00 10   /usr/bin/other":            0,
		"7fbefeba0000-7fbf06ba0000 r--p 00000000 00:01 9 ":                     0,
		"zz-00bc7000 r-xp 00000000 fe:00 10   /usr/bin/my vmm":                 0,
		"00400000-00bc7000 r-xp 00000000 fe:00 10   /usr/bin/my vmm (deleted)": 0,
		"": 0,
	} {
		if _, n, ok := programRange(line, "/usr/bin/my vmm"); n != want || ok != (want != 0) {
			t.Errorf("%q: %#x, %v; want %#x", line, n, ok, want)
		}
	}
}

// The program goes on running on pages that come back.
func TestDropProgramPages(t *testing.T) {
	dropProgramPages()
	if _, err := os.ReadFile("/proc/self/maps"); err != nil {
		t.Fatal(err)
	}
}
