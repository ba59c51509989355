package lab_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/peervisor/peervisor/kernel/agent"
)

// TestStreamsAreSeparate: standard output and error do not mix, kernel messages
// stay out of both and are in the logs.
func TestStreamsAreSeparate(t *testing.T) {
	removed(t, "streams")
	r := sh(t, `peervisor run --name streams --net none -- sh -c 'echo out; echo err >&2; echo KERNEL-WORD > /dev/kmsg; sleep 1'`)
	if r.code != 0 || r.stdout != "out\n" || r.stderr != "err\n" {
		t.Errorf("%d, %q, %q", r.code, r.stdout, r.stderr)
	}
	logs := mustSh(t, "peervisor logs streams")
	expect(t, "logs", logs, "Linux version", "KERNEL-WORD", "virtio")
}

// TestCatGivesBackAGiB: random bytes through `run -- cat` come back equal: 1 GiB when
// PEERVISOR_CHAOS_SECONDS asks for the long form, 64 MiB else.
func TestCatGivesBackAGiB(t *testing.T) {
	size := int64(64 << 20)
	if os.Getenv("PEERVISOR_CHAOS_SECONDS") != "" {
		size = 1 << 30
	}
	// The bytes are made and compared on the lab host: what is tested is the guest's way.
	out := mustSh(t, `head -c `+itoa(size)+` /dev/urandom > /tmp/big
		sha256sum < /tmp/big
		peervisor run --rm --net none -- cat < /tmp/big | sha256sum
		rm /tmp/big`)
	a, b := out[:64], out[68:132]
	if a != b || len(a) != 64 {
		t.Errorf("sent %s, got %s", a, b)
	}
}

// TestStreamsFromThisMachine: the bytes also pass the lab's own agent ports, both ways.
func TestStreamsFromThisMachine(t *testing.T) {
	const size = 32 << 20
	src := rand.NewChaCha8([32]byte{7})
	sent, got := sha256.New(), sha256.New()
	c := &counted{Writer: got}
	r := run(t, agent.Command{Argv: []string{"peervisor", "run", "--rm", "--net", "none", "--", "cat"},
		Stdin: io.TeeReader(io.LimitReader(src, size), sent), Stdout: c})
	if r.code != 0 || c.n != size || hex.EncodeToString(sent.Sum(nil)) != hex.EncodeToString(got.Sum(nil)) {
		t.Errorf("exit status %d, %d of %d bytes; %s", r.code, c.n, size, r.stderr)
	}
}

// TestReaderThatLeaves: a command whose output nobody reads any more gets SIGPIPE.
func TestReaderThatLeaves(t *testing.T) {
	r := sh(t, `bash -c 'peervisor run --rm --net none -- yes | head -1; echo ${PIPESTATUS[0]}'`)
	if r.stdout != "y\n141\n" {
		t.Errorf("%q, %q", r.stdout, r.stderr)
	}
}

// TestSignals: SIGTERM and SIGINT to run reach the command.
func TestSignals(t *testing.T) {
	r := sh(t, `peervisor run --rm --net none -- sh -c 'trap "echo got; exit 9" TERM; echo ready; while :; do sleep 1; done' > /tmp/sig.out & p=$!
		until grep -q ready /tmp/sig.out; do sleep 0.2; done
		kill -TERM $p; wait $p; echo $?; cat /tmp/sig.out`)
	if r.stdout != "9\nready\ngot\n" {
		t.Errorf("%q %q", r.stdout, r.stderr)
	}
	r = sh(t, `peervisor run --rm --net none -- sh -c 'echo ready; sleep 1000' > /tmp/sig.out & p=$!
		until grep -q ready /tmp/sig.out; do sleep 0.2; done
		kill -INT $p; wait $p; echo $?`)
	if r.stdout != "130\n" {
		t.Errorf("%q %q", r.stdout, r.stderr)
	}
}
