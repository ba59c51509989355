package netconf

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// netlinkWait bounds the wait for the kernel's word on a change.
const netlinkWait = 5 * time.Second

// request is one rtnetlink message that wants an acknowledgement.
type request struct{ b []byte }

func newRequest(kind, flags uint16, body []byte) *request {
	b := make([]byte, unix.NLMSG_HDRLEN, 128)
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	return &request{append(b, body...)}
}

func (r *request) attribute(kind uint16, value []byte) {
	h := make([]byte, unix.SizeofRtAttr)
	binary.NativeEndian.PutUint16(h, uint16(len(h)+len(value)))
	binary.NativeEndian.PutUint16(h[2:], kind)
	r.b = append(append(r.b, h...), value...)
	for len(r.b)%unix.NLMSG_ALIGNTO != 0 {
		r.b = append(r.b, 0)
	}
}

func (r *request) uint32(kind uint16, v uint32) {
	r.attribute(kind, binary.NativeEndian.AppendUint32(nil, v))
}

// do sends the message and waits for the acknowledgement.
func (r *request) do() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	wait := unix.NsecToTimeval(int64(netlinkWait))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return err
	}
	binary.NativeEndian.PutUint32(r.b, uint32(len(r.b)))
	if err := unix.Sendto(fd, r.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < unix.NLMSG_HDRLEN+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return errNetlink
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// linkRequest sets an interface up, and its MTU unless that is 0.
func linkRequest(index, mtu int) *request {
	body := make([]byte, unix.SizeofIfInfomsg)
	body[0] = unix.AF_UNSPEC
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	binary.NativeEndian.PutUint32(body[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(body[12:], unix.IFF_UP) // change only this flag
	r := newRequest(unix.RTM_NEWLINK, 0, body)
	if mtu > 0 {
		r.uint32(unix.IFLA_MTU, uint32(mtu))
	}
	return r
}

// addressRequest gives an interface an address.
func addressRequest(index int, addr Addr, bits int) *request {
	body := make([]byte, unix.SizeofIfAddrmsg)
	body[0], body[1] = unix.AF_INET, byte(bits)
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	r := newRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
	r.attribute(unix.IFA_LOCAL, addr[:])
	r.attribute(unix.IFA_ADDRESS, addr[:])
	if bits < 31 {
		host := binary.BigEndian.Uint32(addr[:]) | (1<<(32-bits) - 1)
		r.attribute(unix.IFA_BROADCAST, binary.BigEndian.AppendUint32(nil, host))
	}
	return r
}

// routeRequest makes the default route. metric tells interfaces apart; the lowest wins.
func routeRequest(index int, router Addr, metric uint32) *request {
	body := make([]byte, unix.SizeofRtMsg)
	body[0] = unix.AF_INET
	body[4], body[5], body[6], body[7] = unix.RT_TABLE_MAIN, unix.RTPROT_DHCP, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST
	// The router need not be within the subnet of a /32.
	binary.NativeEndian.PutUint32(body[8:], unix.RTNH_F_ONLINK)
	r := newRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
	r.attribute(unix.RTA_GATEWAY, router[:])
	r.uint32(unix.RTA_OIF, uint32(index))
	r.uint32(unix.RTA_PRIORITY, metric)
	return r
}

// Up sets an interface up.
func (i Interface) Up() error { return linkRequest(i.Index, 0).do() }

// UpLoopback sets the loopback interface up; its index is 1 in every network namespace.
func UpLoopback() error { return linkRequest(1, 0).do() }

// Apply gives an interface what a lease says.
func (i Interface) Apply(l *Lease) error {
	if l.MTU > 0 {
		if err := linkRequest(i.Index, l.MTU).do(); err != nil {
			return err
		}
	}
	if err := addressRequest(i.Index, l.Address, l.PrefixBits).do(); err != nil {
		return err
	}
	if !l.Router.Is() {
		return nil
	}
	return routeRequest(i.Index, l.Router, uint32(100+i.Index)).do()
}
