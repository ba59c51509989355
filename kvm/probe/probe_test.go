package probe

import (
	"fmt"
	"strings"
	"testing"

	"github.com/peervisor/peervisor/kvm"
)

func TestFindingsAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range Examine() {
		if f.ID == "" || f.What == "" || f.Meaning == "" || seen[f.ID] {
			t.Errorf("incomplete or double: %+v", f)
		}
		if !f.OK && f.Needed && f.WhatToDo == "" {
			t.Errorf("needed, missing and no advice: %+v", f)
		}
		if strings.Contains(f.What+f.Meaning+f.WhatToDo, "\n") {
			t.Errorf("more than a line: %+v", f)
		}
		seen[f.ID] = true
		t.Logf("%-17s ok=%-5v %s", f.ID, f.OK, f.What)
	}
}

func TestOpenFindings(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("open: %w", kvm.ErrNotPresent), "firmware"},
		{fmt.Errorf("open: %w", kvm.ErrNotPermitted), "group kvm"},
	} {
		if f := openFinding(c.err); f.OK || !strings.Contains(f.WhatToDo, c.want) {
			t.Errorf("%v: %+v", c.err, f)
		}
	}
}
