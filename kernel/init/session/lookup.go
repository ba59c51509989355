package session

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/peervisor/peervisor/kernel/agent/control"
)

// defaultPath is where a command is looked for if its environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// startError is why a command did not start, and the code for that.
type startError struct {
	code    int
	message string
}

func (e *startError) Error() string { return e.message }

func notFound(name, why string) error {
	return &startError{control.CodeNotFound, quote(name) + ": " + why}
}

func notRunnable(name, why string) error {
	return &startError{control.CodeNotRunnable, quote(name) + ": " + why}
}

// environment puts the command's variables over the guest's defaults.
func environment(extra []string, tty bool) []string {
	env := []string{"PATH=" + defaultPath, "HOME=/root"}
	if tty {
		env = append(env, "TERM=linux")
	}
	for _, kv := range extra {
		key, _, ok := strings.Cut(kv, "=")
		if !ok || key == "" {
			continue // execve would pass it on, and nothing could read it
		}
		kept := env[:0]
		for _, old := range env {
			if !strings.HasPrefix(old, key+"=") {
				kept = append(kept, old)
			}
		}
		env = append(kept, kv)
	}
	return env
}

// lookPath finds the program that name means, as a shell does: a name with a
// slash is a path (from dir), any other is looked for in the PATH of env.
func lookPath(name string, env []string, dir string) (string, error) {
	if name == "" {
		return "", notFound(name, "no such program")
	}
	if strings.Contains(name, "/") {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if err := runnable(path); err != nil {
			return "", explain(name, err)
		}
		return path, nil
	}
	path := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	var found error // there, but not runnable
	for _, d := range strings.Split(path, ":") {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		candidate := filepath.Join(d, name)
		err := runnable(candidate)
		if err == nil {
			return candidate, nil
		}
		if found == nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			found = err
		}
	}
	if found != nil {
		return "", explain(name, found)
	}
	return "", notFound(name, "not found in PATH")
}

func runnable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return unix.EISDIR
	}
	if info.Mode()&0o111 == 0 {
		return unix.EACCES
	}
	return nil
}

// explain turns what stat(2) or execve(2) said into a code and a message.
func explain(name string, err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return &startError{control.CodeOther, quote(name) + ": " + err.Error()}
	}
	switch errno {
	case unix.ENOENT, unix.ENOTDIR:
		return notFound(name, "no such file, or its interpreter is missing")
	case unix.EISDIR:
		return notRunnable(name, "is a directory")
	case unix.ENOEXEC:
		return notRunnable(name, "not a program of this machine")
	case unix.EACCES, unix.EPERM, unix.E2BIG, unix.ETXTBSY, unix.ELOOP, unix.ENAMETOOLONG, unix.EINVAL, unix.ELIBBAD:
		return notRunnable(name, errno.Error())
	}
	return &startError{control.CodeOther, quote(name) + ": " + errno.Error()}
}
