package lab_test

import (
	"strings"
	"testing"
)

// toolsImage makes /tmp/tools.img on the lab host: an ext4 with iperf3 and its libraries, for guests.
const toolsImage = `if [ ! -e /tmp/tools.img ]; then
	rm -rf /tmp/tools; mkdir -p /tmp/tools/bin
	for b in iperf3 e2fsck; do p=$(command -v $b); cp $p /tmp/tools/bin
		for l in $(LD_TRACE_LOADED_OBJECTS=1 $p | grep -o '/[^ ]*'); do mkdir -p /tmp/tools$(dirname $l); cp -L $l /tmp/tools$l; done; done
	mke2fs -q -t ext4 -d /tmp/tools /tmp/tools.img 64M; rm -rf /tmp/tools; fi
`

// inTools is the prefix of a command in a guest that runs from the tools disk.
const inTools = `mount -t ext4 -o ro /dev/vda /mnt; for d in lib lib64 usr/lib; do [ -e /mnt/$d ] && mkdir -p /$d && cp -a /mnt/$d/. /$d/; done; cp /mnt/bin/* /bin/; `

// fetch is a shell function that prints what a URL gives.
const fetch = `fetch() { python3 -c 'import urllib.request,sys; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1],timeout=20).read())' "$1"; }
`

// TestUserNetwork: DHCP, DNS, TCP both ways, and what is refused, with no privileges needed.
func TestUserNetwork(t *testing.T) {
	out := mustSh(t, `peervisor run --rm -- sh -c '
		ip addr show dev eth0; ip route; cat /etc/resolv.conf; ping -c 1 -W 5 10.0.2.2'`)
	expect(t, "DHCP", out, "10.0.2.15/24", "default via 10.0.2.2", "nameserver 10.0.2.3", "1 packets received")
}

// TestHostForward: a port of the host leads to a server in the guest.
func TestHostForward(t *testing.T) {
	removed(t, "web")
	out := mustSh(t, fetch+`peervisor run -d --name web --net user,hostfwd=tcp:127.0.0.1:8098-:80 -- sh -c 'mkdir /www; echo in the guest > /www/a; httpd -f -h /www' >&2
		for i in $(seq 30); do fetch http://127.0.0.1:8098/a 2>/dev/null && break; sleep 0.3; done`)
	if out != "in the guest\n" {
		t.Errorf("through the forward: %q", out)
	}
	r := sh(t, "peervisor run --rm --net user,hostfwd=tcp:127.0.0.1:8098-:80 -- true")
	if r.code != 125 || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "8098") {
		t.Errorf("port taken: %d, %q", r.code, r.stderr)
	}
}

// TestDNS: names are resolved by the host's resolver.
func TestDNS(t *testing.T) {
	out := mustSh(t, `mkdir -p /tmp/dns; cat > /tmp/dns.py <<'X'
import socket
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(("127.0.0.1",53))
while True:
    q,a=s.recvfrom(2048)
    s.sendto(q[:2]+b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00"+q[12:q.index(b"\0",12)+5]+b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x0a\x09\x08\x07",a)
X
		cp /etc/resolv.conf /tmp/resolv.old 2>/dev/null || :; echo nameserver 127.0.0.1 > /etc/resolv.conf
		(python3 /tmp/dns.py & echo $! > /tmp/dns.pid)
		peervisor run --rm -- nslookup -type=a example.test || :
		kill $(cat /tmp/dns.pid)`)
	expect(t, "nslookup", out, "10.9.8.7")
}

// TestIperf3: bulk TCP both ways through the user network.
func TestIperf3(t *testing.T) {
	out := mustSh(t, toolsImage+`iperf3 -s -B 127.0.0.1 -p 5299 -D -I /tmp/iperf.pid
		peervisor run --rm --disk /tmp/tools.img,readonly -- sh -c '`+inTools+`timeout 20 iperf3 -c 10.0.2.2 -p 5299 -t 1 >/dev/null 2>&1 || echo refused'
		peervisor run --rm --cpus 2 --disk /tmp/tools.img,readonly --net user,hostaccess -- sh -c '`+inTools+`
			iperf3 -c 10.0.2.2 -p 5299 -t 3 && iperf3 -c 10.0.2.2 -p 5299 -t 3 -R'
		kill $(tr -d "\000" < /tmp/iperf.pid)`)
	// Without hostaccess the host's loopback is out of reach.
	expect(t, "iperf3 without hostaccess", out, "refused")
	if n := strings.Count(out, "receiver"); n != 2 {
		t.Errorf("%d of 2 runs:\n%s", n, out)
	}
	t.Log(out)
}

// TestTap: a guest on a bridge of the host, both ways.
func TestTap(t *testing.T) {
	removed(t, "tapped")
	out := mustSh(t, fetch+`ip link add br7 type bridge; ip addr add 10.77.0.1/24 dev br7; ip link set br7 up
		peervisor run -d --name tapped --append peervisor.net=off --net tap=pv7,bridge=br7,mac=52:54:00:aa:bb:cc -- sh -c '
			ip addr add 10.77.0.2/24 dev eth0; ip link set eth0 up; mkdir /www; head -c 4000000 /dev/zero | tr "\000" x > /www/a; httpd -h /www; ping -c 3 10.77.0.1; echo done; sleep 1000' >&2
		until peervisor logs tapped | grep -q '^done'; do sleep 0.3; done; peervisor logs tapped | grep received
		ping -c 2 10.77.0.2 | grep received; fetch http://10.77.0.2/a | wc -c
		peervisor rm -f tapped >&2; ip link show pv7 2>&1 || :; ip link del br7`)
	expect(t, "tap", out, "3 packets transmitted, 3 packets received", "2 received", "4000000", "does not exist")
}
