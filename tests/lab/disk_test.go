package lab_test

import (
	"strconv"
	"strings"
	"testing"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// TestFileSystem: a guest writes a file system with checksums; another boot reads it
// back, and e2fsck finds it clean.
func TestFileSystem(t *testing.T) {
	mustSh(t, `truncate -s 512M /tmp/fs.img; mkfs.ext4 -q /tmp/fs.img
		peervisor run --rm --net none --cpus 2 --disk path=/tmp/fs.img,id=data -- sh -ec '
			mount -t ext4 /dev/vda /mnt; cd /mnt
			for i in 1 2 3 4 5 6 7 8; do head -c 8388608 /dev/urandom > f$i; done
			mkdir d; for i in $(seq 200); do echo $i > d/$i; done
			sha256sum f* > SUMS; sync; rm d/1*; cd /; umount /mnt' >&2
		e2fsck -fn /tmp/fs.img >&2`)
	out := mustSh(t, `peervisor run --rm --net none --disk /tmp/fs.img,readonly -- sh -ec '
			mount -t ext4 -o ro /dev/vda /mnt; cd /mnt; sha256sum -c SUMS; ls d | wc -l; cat /sys/block/vda/ro' 2>&1
		rm /tmp/fs.img`)
	if strings.Count(out, ": OK") != 8 || !strings.Contains(out, "\n89\n1\n") {
		t.Errorf("read back:\n%s", out)
	}
}

// TestDiskKinds: serial numbers, snapshot, read-only, direct, several queues, discard.
func TestDiskKinds(t *testing.T) {
	out := mustSh(t, `cd /root; head -c 67108864 /dev/urandom > base.img; sum=$(sha256sum < base.img); truncate -s 64M sparse.img
		peervisor run --rm --net none --cpus 2 --disk base.img,snapshot,serial=SNAP --disk path=base.img,readonly,id=ro --disk sparse.img,direct,queues=2 -- sh -c '
			cat /sys/block/vda/serial; echo; cat /sys/block/vdb/serial; echo; ls /sys/block/vdc/mq | wc -l
			dd if=/dev/zero of=/dev/vda bs=1M count=64 conv=fsync 2>/dev/null && echo snapshot written
			dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync 2>/dev/null || echo read-only refused
			dd if=/dev/urandom of=/dev/vdc bs=1M count=8 oflag=direct 2>/dev/null && blkdiscard -f /dev/vdc && echo discarded
			head -c 8388608 /dev/vdc | tr -d "\000" | wc -c'
		[ "$sum" = "$(sha256sum < base.img)" ] && echo base unchanged
		du -k sparse.img | cut -f1; rm base.img sparse.img`)
	expect(t, "disks", out, "SNAP", "ro\n", "2\n", "snapshot written", "read-only refused", "base unchanged")
}

// TestDiskLocked: a disk that a guest writes to is refused to a second guest, in one line, with 125.
func TestDiskLocked(t *testing.T) {
	removed(t, "holder")
	mustSh(t, `truncate -s 16M /tmp/l.img; peervisor run -d --name holder --net none --disk /tmp/l.img -- sleep 1000 >&2`)
	for _, flags := range []string{"/tmp/l.img", "/tmp/l.img,readonly", "/tmp/l.img,snapshot"} {
		r := sh(t, "peervisor run --rm --net none --disk "+flags+" -- true")
		if r.code != 125 || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "/tmp/l.img") {
			t.Errorf("%s: exit status %d, %q", flags, r.code, r.stderr)
		}
	}
	if r := sh(t, "peervisor ps -aq"); strings.TrimSpace(r.stdout) != "holder" {
		t.Errorf("left behind: %q", r.stdout)
	}
}
