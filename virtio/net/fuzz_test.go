package net_test

import (
	"testing"

	"github.com/peervisor/peervisor/virtio"
	"github.com/peervisor/peervisor/virtio/net"
)

// FuzzTransmit sends arbitrary headers and frames: each request completes, and
// what reaches the backend lies within the frame and was negotiated.
func FuzzTransmit(f *testing.F) {
	h := header()
	h.SetPartialChecksum(34, 16)
	h.SetGSO(net.VIRTIO_NET_HDR_GSO_TCPV4, 54, 1448)
	f.Add(append(append([]byte(nil), h...), frameOf(2000)...), uint64(1<<net.VIRTIO_NET_F_CSUM|1<<net.VIRTIO_NET_F_HOST_TSO4), uint16(12))
	f.Add([]byte{}, uint64(0), uint16(0))
	f.Add(append([]byte(header()), frameOf(14)...), uint64(0), uint16(3))
	f.Fuzz(func(t *testing.T, all []byte, features uint64, cut uint16) {
		features &= 1<<net.VIRTIO_NET_F_CSUM | 1<<net.VIRTIO_NET_F_HOST_TSO4 | 1<<net.VIRTIO_NET_F_HOST_TSO6 | 1<<net.VIRTIO_NET_F_HOST_ECN
		if features&(1<<net.VIRTIO_NET_F_CSUM) == 0 || features&(1<<net.VIRTIO_NET_F_HOST_TSO4|1<<net.VIRTIO_NET_F_HOST_TSO6) == 0 {
			features &= 1 << net.VIRTIO_NET_F_CSUM
		}
		r := newRig(t, features, net.Config{})
		defer r.dev.Reset()
		k := min(int(cut), len(all))
		r.dev.Submit(1, []*virtio.Request{r.ch.Request(1, [][]byte{all[:k], all[k:]}, nil)})
		r.ch.WaitCompleted(1, 1)
		for _, s := range r.be.TakeSent() {
			n := len(s.Bytes)
			if s.Header.Flags()&^net.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 || s.Header.NumBuffers() != 0 || int(s.Header.HdrLen()) > n {
				t.Errorf("header %x of %d bytes", s.Header, n)
			}
			if s.Header.Flags() != 0 {
				if features&(1<<net.VIRTIO_NET_F_CSUM) == 0 || int(s.Header.CsumStart())+int(s.Header.CsumOffset())+2 > n {
					t.Errorf("partial checksum in %x of %d bytes", s.Header, n)
				}
			}
			if s.Header.GSOType() != 0 && (s.Header.GSOSize() == 0 || s.Header.Flags() == 0) {
				t.Errorf("segments in %x", s.Header)
			}
		}
	})
}
