package kernel

import (
	"fmt"
	"io"
	"os"

	"github.com/peervisor/peervisor/vmm/boot"
)

// writeVmlinux unpacks the ELF kernel that is in a bzImage.
func writeVmlinux(vmlinuz, to string) error {
	f, err := os.Open(vmlinuz)
	if err != nil {
		return fmt.Errorf("unpack vmlinuz: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("unpack vmlinuz: %w", err)
	}
	vmlinux, _, err := boot.Unpack(f, info.Size())
	if err != nil {
		return fmt.Errorf("unpack vmlinuz: %w", err)
	}
	defer vmlinux.Close()
	if err := writeFile(to, io.LimitReader(vmlinux, maxVmlinuxBytes)); err != nil {
		return fmt.Errorf("unpack vmlinuz: %w", err)
	}
	return nil
}

// maxVmlinuxBytes bounds an unpacked kernel; Debian's have about 60 MiB.
const maxVmlinuxBytes = 1 << 30
