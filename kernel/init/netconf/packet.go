package netconf

import (
	"encoding/binary"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ipHeaderBytes  = 20
	udpHeaderBytes = 8
	ipUDP          = 17
	maxPacketBytes = 2048 // above what optMaxSize asks for
)

// PacketConn is a Conn on a packet socket. Without an address the kernel's UDP
// would not take answers that are sent to the offered address; a packet socket does.
type PacketConn struct {
	fd    int
	index int
	buf   [maxPacketBytes]byte
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// Listen opens a PacketConn on an interface.
func Listen(index int) (*PacketConn, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_IP)))
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: index}); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &PacketConn{fd: fd, index: index}, nil
}

// Close ends it. Not while Receive waits.
func (c *PacketConn) Close() error { return unix.Close(c.fd) }

// Send broadcasts a message from 0.0.0.0.
func (c *PacketConn) Send(message []byte) error {
	to := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: c.index, Halen: 6}
	copy(to.Addr[:], []byte{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF})
	return unix.Sendto(c.fd, wrap(message), 0, to)
}

// Receive waits for the next DHCP message to a client.
func (c *PacketConn) Receive(deadline time.Time) ([]byte, error) {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return nil, ErrNoAnswer
		}
		fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
		// Rounded up, so that it does not spin through the last millisecond.
		if _, err := unix.Poll(fds, int(left/time.Millisecond)+1); err != nil && err != unix.EINTR {
			return nil, err
		}
		n, _, err := unix.Recvfrom(c.fd, c.buf[:], 0)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
			continue
		case err != nil:
			return nil, err
		}
		if message := unwrap(c.buf[:n]); message != nil {
			return message, nil
		}
	}
}

// wrap puts IP and UDP headers before a message. The UDP checksum is left out,
// which IPv4 allows.
func wrap(message []byte) []byte {
	b := make([]byte, ipHeaderBytes+udpHeaderBytes, ipHeaderBytes+udpHeaderBytes+len(message))
	total := len(message) + len(b)
	b[0] = 4<<4 | ipHeaderBytes/4
	binary.BigEndian.PutUint16(b[2:], uint16(total))
	b[8], b[9] = 64, ipUDP
	copy(b[16:20], []byte{255, 255, 255, 255})
	binary.BigEndian.PutUint16(b[10:], checksum(b[:ipHeaderBytes]))
	udp := b[ipHeaderBytes:]
	binary.BigEndian.PutUint16(udp[0:], clientPort)
	binary.BigEndian.PutUint16(udp[2:], serverPort)
	binary.BigEndian.PutUint16(udp[4:], uint16(total-ipHeaderBytes))
	return append(b, message...)
}

// unwrap returns the message in an IP packet to a DHCP client, or nil. The UDP
// checksum is not looked at: the host may leave it to be filled in by hardware
// that is not there. The transaction's number guards as well.
func unwrap(b []byte) []byte {
	if len(b) < ipHeaderBytes || b[0]>>4 != 4 || b[9] != ipUDP {
		return nil
	}
	header, total := int(b[0]&0xF)*4, int(binary.BigEndian.Uint16(b[2:]))
	fragment := binary.BigEndian.Uint16(b[6:])&0x3FFF != 0
	if fragment || header < ipHeaderBytes || total > len(b) || total < header+udpHeaderBytes {
		return nil
	}
	udp := b[header:total]
	if binary.BigEndian.Uint16(udp[0:]) != serverPort || binary.BigEndian.Uint16(udp[2:]) != clientPort {
		return nil
	}
	return udp[udpHeaderBytes:]
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xFFFF {
		sum = sum>>16 + sum&0xFFFF
	}
	return ^uint16(sum)
}

var errNetlink = errors.New("netlink: unexpected answer")
