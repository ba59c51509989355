package lab_test

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestDetachedLife walks a detached guest through every command.
func TestDetachedLife(t *testing.T) {
	removed(t, "life")
	if out := mustSh(t, `peervisor run --detach --name life --net none -- sh -c 'i=0; while :; do i=$((i+1)); echo tick $i; sleep 1; done'`); out != "life\n" {
		t.Errorf("run --detach printed %q", out)
	}
	out := mustSh(t, "peervisor ps; peervisor ps --json; peervisor inspect life")
	expect(t, "ps and inspect", out, "running", `"status": "running"`, `"boots": 1`, `"exits"`, `"interrupts"`)
	var list []map[string]any
	if err := json.Unmarshal([]byte(mustSh(t, "peervisor ps --json")), &list); err != nil || len(list) != 1 {
		t.Errorf("ps --json: %v, %d guests", err, len(list))
	}
	mustSh(t, "until peervisor logs life | grep -q 'tick 2'; do sleep 0.2; done")

	// Paused, it says nothing; resumed, it goes on where it was.
	out = mustSh(t, `peervisor pause life >&2; peervisor pause life >&2; peervisor ps
		a=$(peervisor logs life | grep -c tick); sleep 3; b=$(peervisor logs life | grep -c tick); echo "while paused: $((b-a))"
		peervisor resume life >&2; until [ $(peervisor logs life | grep -c tick) -gt $b ]; do sleep 0.2; done; echo goes on`)
	expect(t, "pause", out, "paused", "while paused: 0", "goes on")
	if r := sh(t, "peervisor run --name life -- true"); r.code != 125 || !strings.Contains(r.stderr, "taken") {
		t.Errorf("second guest of one name: %d, %q", r.code, r.stderr)
	}
	if r := sh(t, "peervisor rm life"); r.code == 0 || !strings.Contains(r.stderr, "stop it first") {
		t.Errorf("rm of a running guest: %d, %q", r.code, r.stderr)
	}

	out = mustSh(t, `(peervisor logs -f life | grep -c tick > /tmp/follow) & (peervisor wait life > /tmp/waited) &
		peervisor stop --timeout 60s life; wait; cat /tmp/waited; peervisor ps -a; peervisor inspect life`)
	// The command got SIGTERM, as docker stop does it.
	expect(t, "stop", out, "143", "exited", `"reason": "command"`, `"exits"`)
	out = mustSh(t, "peervisor rm life; peervisor ps -aq")
	if out != "life\n" {
		t.Errorf("rm: %q", out)
	}
}

// TestKill: a killed guest leaves its reason. (A guest whose process is killed is
// tested on this machine's KVM, in cmd/peervisor: QEMU's emulation of nested SVM does not
// survive many of those.)
func TestKill(t *testing.T) {
	removed(t, "victim")
	mustSh(t, "peervisor run -d --name victim --net none -- sleep 1000 >&2; peervisor kill victim >&2; peervisor wait victim >&2")
	expect(t, "kill", mustSh(t, "peervisor ps -a"), "exited", "122", "killed")
}

// TestDetachedSurvivesItsLauncher: the launcher's session ends, the guest does not.
func TestDetachedSurvivesItsLauncher(t *testing.T) {
	removed(t, "orphan")
	mustSh(t, `setsid sh -c 'peervisor run -d --name orphan --net none -- sleep 1000 > /dev/null'`)
	expect(t, "ps", mustSh(t, "sleep 1; peervisor ps"), "orphan", "running")
	mustSh(t, "peervisor rm -f orphan")
}
