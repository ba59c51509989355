package kernel

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
)

//go:embed all:assets
var assets embed.FS

// Init returns the init program that was built into this binary.
func Init() ([]byte, error) {
	b, err := assets.ReadFile("assets/init")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("kernel init: this binary was built without the guest's init: build it with `make build`")
	}
	if err != nil {
		return nil, fmt.Errorf("kernel init: %w", err)
	}
	return b, nil
}
