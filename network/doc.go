// Package network plugs a virtio network device into something: a tap on this
// machine (OpenTap), or a network of its own in this process that needs no
// privileges (NewUser). Both are backends of package virtio/net.
//
// It knows frames, and the protocols that the user network speaks; it knows no
// queues and no guest memory beyond the slices that a call lends it.
//
// # The user network
//
// A gVisor TCP/IP stack is the guest's gateway on a private IPv4 network. It
// answers ARP, DHCP and DNS, and ends every TCP connection, UDP flow and ping of
// the guest in an ordinary socket of this process (network address translation).
// Connections in the other direction exist only where a HostForward says so.
//
//	guest ── virtio/net ── userConn ── link ── gVisor ┬─ tcp: forwarder ── splice ── host socket
//	                                                  ├─ udp: flows ────────────────  host socket
//	                                                  ├─ icmp: pings ────────────── host ping socket
//	                                                  └─ gateway: dhcp, dns
//
// On this path nothing is lost between two memories, so nobody sums what nobody
// needs: checksums stay partial in both directions, and TCP moves in segments of
// up to 64 KiB where the driver negotiated it.
//
// # What the guest can reach
//
// The user network must not be a way into this machine. Each destination is
// judged when a connection or flow is made, by its address alone, so that names
// cannot trick it (policy.go). Without UserConfig.HostAccess these are refused:
// the gateway's ports, every address of this machine (asked of the kernel's
// routing table each time), link-local addresses with their metadata services.
// Always refused: 127.0.0.0/8, 0.0.0.0/8, multicast, broadcast and reserved ones.
// The DNS forwarder talks to the machine's resolvers, also those on its loopback.
//
// # Bounds
//
// Every table has a size (UserConfig.MaxTCP, MaxUDP, MaxPing), every queue a length,
// every connection fixed buffers. What exceeds them is refused or dropped, and counted.
//
// # Locks
//
// link.mu and flows.mu are leaves: nothing is called with one of them held, but for
// the reference counts of packets.
package network
