package guest

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"math/big"
	"net"
)

var (
	adjectives = []string{"amber", "brisk", "calm", "clear", "eager", "fair", "gentle", "keen", "light", "lucid", "mellow", "noble", "plain", "quick", "quiet", "ready", "sharp", "steady", "swift", "warm"}
	animals    = []string{"badger", "crane", "dolphin", "falcon", "finch", "fox", "gull", "hare", "heron", "ibis", "lark", "lynx", "marten", "otter", "owl", "plover", "raven", "seal", "stoat", "swan", "tern", "vole", "wren"}
)

// newName makes up a name that is easy to type; newNames that collide are the
// caller's to retry.
func newName() string {
	return pick(adjectives) + "-" + pick(animals) + "-" + fmt.Sprintf("%03x", randInt(4096))
}

func pick(list []string) string { return list[randInt(len(list))] }

func randInt(n int) int {
	// crypto/rand does not fail on Linux.
	v, err := rand.Int(rand.Reader, big.NewInt(int64(n)))
	if err != nil {
		return 0
	}
	return int(v.Int64())
}

// newUUID makes a random (version 4) UUID.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0F | 0x40
	b[8] = b[8]&0x3F | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// newMAC derives a locally administered unicast address from the guest's UUID
// and the device's place, so that it is the same at every start.
func newMAC(uuid string, i int) string {
	h := sha256.Sum256([]byte(fmt.Sprintf("mac %s %d", uuid, i)))
	return net.HardwareAddr{0x52, 0x54, 0x00, h[0], h[1], h[2]}.String()
}
