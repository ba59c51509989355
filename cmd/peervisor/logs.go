package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/guest"
)

func logsCommand() *cli.Command {
	return &cli.Command{
		Name: "logs", Usage: "print what a guest's kernel and console said", ArgsUsage: "NAME",
		Description: "The kernel's messages, the serial line, and the output of a detached guest's command, in the order in which they came.\n" +
			"The last 8 to 16 MiB are kept.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on until the guest ends"},
			&cli.BoolFlag{Name: "vmm", Usage: "the VMM's own log instead, as lines of JSON"},
		},
		Action: logsAction,
	}
}

func logsAction(c *cli.Context) error {
	name, err := oneName(c)
	if err != nil {
		return err
	}
	store, err := guest.DefaultStore()
	if err != nil {
		return err
	}
	g, err := store.Get(name)
	if err != nil {
		return err
	}
	path := filepath.Join(g.Dir, "console.log")
	if c.Bool("vmm") {
		path = filepath.Join(g.Dir, "vmm.log")
	}
	if err := copyFile(os.Stdout, path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if c.Bool("follow") && g.State.Status.Live() {
		return follow(store, name, path)
	}
	if err := copyFile(os.Stdout, path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// follow prints a log as it grows, over turn-overs, until the guest is gone.
func follow(store *guest.Store, name, path string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("follow log: %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	// The folder's events cover writes, turn-overs and the guest's last state.json.
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return fmt.Errorf("follow log: %w", err)
	}
	gone := make(chan struct{})
	go func() {
		_ = store.WaitGone(name) // then there is nothing more to come
		close(gone)
		_ = events.Close() // ends the read below
	}()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, 64<<10)
	for {
		if _, err := io.Copy(os.Stdout, f); err != nil {
			return err
		}
		if replaced(f, path) {
			next, err := os.Open(path)
			if err == nil {
				_, _ = io.Copy(os.Stdout, f) // what came between the copy and the turn-over
				_ = f.Close()
				f = next
				continue
			}
		}
		select {
		case <-gone:
			_, err := io.Copy(os.Stdout, f)
			return err
		default:
		}
		if _, err := events.Read(buf); err != nil && !errors.Is(err, os.ErrClosed) {
			return fmt.Errorf("follow log: %w", err)
		}
	}
}

func replaced(f *os.File, path string) bool {
	a, err1 := f.Stat()
	b, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && !os.SameFile(a, b)
}
