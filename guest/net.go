package guest

import (
	"fmt"
	"log/slog"

	"github.com/peervisor/peervisor/network"
)

// newUserNet makes the user-mode network of one device.
func newUserNet(n *NetSpec, log *slog.Logger) (*network.User, error) {
	cfg := network.UserConfig{MTU: n.MTU, HostAccess: n.HostAccess, Restrict: n.Restrict, Log: log.With("device", n.ID)}
	for _, s := range n.HostFwd {
		f, err := network.ParseHostForward(s)
		if err != nil {
			return nil, fmt.Errorf("--net %s: %w", n.ID, err)
		}
		cfg.Forwards = append(cfg.Forwards, f)
	}
	u, err := network.NewUser(cfg)
	if err != nil {
		return nil, fmt.Errorf("--net %s: %w", n.ID, err)
	}
	return u, nil
}

// newTap opens or makes the tap of one device.
func newTap(n *NetSpec) (*network.Tap, error) {
	t, err := network.OpenTap(network.TapConfig{Name: n.Tap, Bridge: n.Bridge, MTU: n.MTU})
	if err != nil {
		return nil, fmt.Errorf("--net %s: %w", n.ID, err)
	}
	return t, nil
}
