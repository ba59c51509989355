package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Store is a directory of guests: one folder each under Home/guests, and their
// control sockets in RunDir.
type Store struct {
	// Home holds what outlives a guest's process.
	Home string
	// RunDir holds sockets.
	RunDir string
}

// Status is where in its life a guest is.
type Status string

// The statuses. Crashed is never written by the guest itself: it is what others
// find when the process is gone and its last word was another one.
const (
	StatusStarting Status = "starting"
	StatusRunning  Status = "running"
	StatusPaused   Status = "paused"
	StatusStopping Status = "stopping"
	StatusExited   Status = "exited"
	StatusCrashed  Status = "crashed"
)

// Live reports whether a guest with this status has a process.
func (s Status) Live() bool { return s != StatusExited && s != StatusCrashed }

// State is a guest's state.json.
type State struct {
	Status  Status    `json:"status"`
	PID     int       `json:"pid"`
	Created time.Time `json:"created"`
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
	// Exit is set when Status is exited or crashed.
	Exit *Exit `json:"exit,omitempty"`
}

// Exit says how a guest ended.
type Exit struct {
	// Code is the exit status that `peervisor run` gives (docs/exit-status.md).
	Code int `json:"code"`
	// Reason is one of command, poweroff, reset, panic, triple-fault, killed, fault, failed, crashed.
	Reason string `json:"reason"`
	// Detail is a line for people; may be empty.
	Detail string `json:"detail,omitempty"`
}

// Exit statuses of `run` that are not the command's own (docs/exit-status.md).
const (
	ExitPanic       = 120 // the guest's kernel panicked
	ExitFault       = 121 // triple fault, or an instruction that KVM could not run
	ExitKilled      = 122 // ended by stop, kill or a closed terminal
	ExitNoStatus    = 123 // powered off or rebooted before the command reported
	ExitRunFailed   = 125 // run itself failed
	ExitNotRunnable = 126
	ExitNotFound    = 127
)

// Sentinels.
var (
	// ErrNameTaken: a guest of this name exists, running or ended.
	ErrNameTaken = errors.New("name is already taken")
	// ErrNoGuest: no guest of this name.
	ErrNoGuest = errors.New("no such guest")
	// ErrNotRunning: the guest has ended.
	ErrNotRunning = errors.New("guest is not running")
)

// DefaultStore returns the store that the environment names: PEERVISOR_HOME, else
// /var/lib/peervisor for root and ~/.local/share/peervisor for others.
func DefaultStore() (*Store, error) {
	home, run := os.Getenv("PEERVISOR_HOME"), ""
	root := os.Geteuid() == 0
	switch {
	case home != "":
		run = filepath.Join(home, "run")
	case root:
		home, run = "/var/lib/peervisor", "/run/peervisor"
	default:
		h, err := os.UserHomeDir()
		if err != nil {
			return nil, fmt.Errorf("find a place for guests: %w; set PEERVISOR_HOME", err)
		}
		home = filepath.Join(h, ".local/share/peervisor")
		run = filepath.Join(home, "run")
		if x := os.Getenv("XDG_RUNTIME_DIR"); x != "" {
			run = filepath.Join(x, "peervisor")
		}
	}
	home, err := filepath.Abs(home)
	if err != nil {
		return nil, fmt.Errorf("find a place for guests: %w", err)
	}
	if run, err = filepath.Abs(run); err != nil {
		return nil, fmt.Errorf("find a place for sockets: %w", err)
	}
	return &Store{Home: home, RunDir: run}, nil
}

// DefaultCacheDir is PEERVISOR_CACHE, else /var/cache/peervisor for root and the
// user's cache directory for others.
func DefaultCacheDir() (string, error) {
	if c := os.Getenv("PEERVISOR_CACHE"); c != "" {
		return filepath.Abs(c)
	}
	if os.Geteuid() == 0 {
		return "/var/cache/peervisor", nil
	}
	c, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a cache directory: %w; set PEERVISOR_CACHE", err)
	}
	return filepath.Join(c, "peervisor"), nil
}

func (s *Store) guestDir(name string) string { return filepath.Join(s.Home, "guests", name) }

// socket is the path of a guest's control socket.
func (s *Store) socket(name string) string { return filepath.Join(s.RunDir, name+".sock") }

// Dir is one guest's state directory, locked by this process.
type Dir struct {
	store *Store
	path  string
	lock  *os.File
	cfg   Config
	state State
}

// Create checks cfg, reserves its name and makes its state directory. The
// caller ends with Close, which releases the name's lock but keeps the
// directory, or Remove.
func (s *Store) Create(cfg Config) (*Dir, error) {
	made := cfg.Name == ""
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	if err := checkSocketPath(s.socket(cfg.Name)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(s.Home, "guests"), 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w; set PEERVISOR_HOME to a directory that you can write", err)
	}
	if err := os.MkdirAll(s.RunDir, 0o700); err != nil {
		return nil, fmt.Errorf("make socket directory: %w", err)
	}
	for try := 0; ; try++ {
		err := os.Mkdir(s.guestDir(cfg.Name), 0o700)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make state directory of guest %s: %w", cfg.Name, err)
		}
		if !made || try == 10 {
			return nil, s.takenError(cfg.Name)
		}
		cfg.Name = newName()
	}
	d := &Dir{store: s, path: s.guestDir(cfg.Name), cfg: cfg}
	d.state = State{Status: StatusStarting, PID: os.Getpid(), Created: time.Now().UTC().Round(time.Millisecond)}
	if err := d.open(); err != nil {
		_ = os.RemoveAll(d.path)
		return nil, err
	}
	return d, nil
}

func (s *Store) takenError(name string) error {
	st := "exists"
	if g, err := s.Get(name); err == nil {
		st = "is " + string(g.State.Status)
	}
	return fmt.Errorf("guest %s %s: %w; choose another --name, or remove it: peervisor rm -f %s", name, st, ErrNameTaken, name)
}

func checkSocketPath(p string) error {
	if len(p) > 107 {
		return fmt.Errorf("control socket %s: the path has %d bytes and unix sockets take 107; use a shorter PEERVISOR_HOME or --name", p, len(p))
	}
	return nil
}

func (d *Dir) open() error {
	lock, err := os.OpenFile(filepath.Join(d.path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock guest %s: %w", d.cfg.Name, err)
	}
	d.lock = lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("lock guest %s: %w", d.cfg.Name, err), lock.Close())
	}
	if err := d.writeJSON("config.json", &d.cfg); err != nil {
		return errors.Join(err, lock.Close())
	}
	if err := d.writeJSON("state.json", &d.state); err != nil {
		return errors.Join(err, lock.Close())
	}
	return nil
}

// Adopt takes over the directory that a launcher made: lock is its lock file,
// inherited with the lock held.
func (s *Store) Adopt(name string, lock *os.File) (*Dir, error) {
	g, err := s.read(name)
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(int(lock.Fd()))
	d := &Dir{store: s, path: s.guestDir(name), lock: lock, cfg: g.Config, state: g.State}
	d.state.PID = os.Getpid()
	return d, d.writeJSON("state.json", &d.state)
}

// Config is the checked configuration with its defaults filled in.
func (d *Dir) Config() Config { return d.cfg }

// Path is the state directory.
func (d *Dir) Path() string { return d.path }

// Lock is the lock file, for handing it to a child.
func (d *Dir) Lock() *os.File { return d.lock }

// setState changes the state on disk.
func (d *Dir) setState(st State) error {
	d.state = st
	return d.writeJSON("state.json", &st)
}

// Close releases the lock; others may then remove the guest.
func (d *Dir) Close() error {
	if d.lock == nil {
		return nil
	}
	err := d.lock.Close()
	d.lock = nil
	return err
}

// Remove deletes the directory and the socket, and releases the lock.
func (d *Dir) Remove() error {
	return errors.Join(os.RemoveAll(d.path), removeIfThere(d.store.socket(d.cfg.Name)), d.Close())
}

func removeIfThere(p string) error {
	if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeJSON replaces a file of the state directory in one step. A reader sees the old
// one or the new one, also after a crash.
func (d *Dir) writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s of guest %s: %w", name, d.cfg.Name, err)
	}
	path := filepath.Join(d.path, name)
	tmp := path + ".new"
	err = os.WriteFile(tmp, append(b, '\n'), 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("write %s of guest %s: %w", name, d.cfg.Name, err)
	}
	return nil
}

// Info is a guest as seen from outside its process.
type Info struct {
	Config Config `json:"config"`
	State  State  `json:"state"`
	// Dir is its state directory.
	Dir string `json:"dir"`
}

func (s *Store) read(name string) (*Info, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	g := &Info{Dir: s.guestDir(name)}
	for file, v := range map[string]any{"config.json": &g.Config, "state.json": &g.State} {
		b, err := os.ReadFile(filepath.Join(g.Dir, file))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("guest %s: %w; `peervisor ps -a` lists them", name, ErrNoGuest)
		}
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			return nil, fmt.Errorf("read %s of guest %s: %w", file, name, err)
		}
	}
	return g, nil
}

// Get reads one guest's state. A guest whose process is gone without a last
// word is reported as crashed, with what its standard error ended in.
func (s *Store) Get(name string) (*Info, error) {
	g, err := s.read(name)
	if err != nil {
		return nil, err
	}
	if g.State.Status.Live() && !s.locked(name) {
		// It may have ended between the two looks.
		if g, err = s.read(name); err != nil {
			return nil, err
		}
		if g.State.Status.Live() {
			g.State.Status = StatusCrashed
			g.State.Exit = &Exit{Code: ExitRunFailed, Reason: "crashed", Detail: crashReason(g)}
		}
	}
	return g, nil
}

// locked reports whether some process holds the guest's lock.
func (s *Store) locked(name string) bool {
	f, err := os.Open(filepath.Join(s.guestDir(name), "lock"))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// WaitGone blocks until no process holds the guest's lock.
func (s *Store) WaitGone(name string) error {
	f, err := os.Open(filepath.Join(s.guestDir(name), "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for guest %s: %w", name, err)
	}
	defer f.Close()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

const stderrTailBytes = 64 << 10

func crashReason(g *Info) string {
	who := fmt.Sprintf("process %d is gone without a last word (killed?)", g.State.PID)
	b, err := os.ReadFile(filepath.Join(g.Dir, "stderr.log"))
	if err != nil || len(b) == 0 {
		return who
	}
	if len(b) > stderrTailBytes {
		b = b[:stderrTailBytes]
	}
	for _, line := range strings.Split(string(b), "\n") {
		for _, mark := range []string{"panic: ", "fatal error: ", "runtime: ", "SIGSEGV", "signal "} {
			if strings.Contains(line, mark) {
				return fmt.Sprintf("%s; its standard error says: %s", who, strings.TrimSpace(line))
			}
		}
	}
	return who
}

// Last is what a guest that ended would have said of itself at its end, counters
// included; for one that crashed, what its state directory has.
func (s *Store) Last(name string) (*Inspection, error) {
	g, err := s.Get(name)
	if err != nil {
		return nil, err
	}
	i := &Inspection{}
	b, err := os.ReadFile(filepath.Join(g.Dir, "last.json"))
	if err == nil {
		err = json.Unmarshal(b, i)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read last.json of guest %s: %w", name, err)
	}
	i.Config, i.State, i.Dir = g.Config, g.State, g.Dir
	return i, nil
}

// List returns all guests, oldest first. Directories that cannot be read are
// reported in the error; the others are still listed.
func (s *Store) List() ([]*Info, error) {
	ents, err := os.ReadDir(filepath.Join(s.Home, "guests"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list guests: %w", err)
	}
	var out []*Info
	var errs []error
	for _, e := range ents {
		if !e.IsDir() || !validName(e.Name()) {
			continue
		}
		g, err := s.Get(e.Name())
		switch {
		case errors.Is(err, ErrNoGuest): // being made or removed
		case err != nil:
			errs = append(errs, err)
		default:
			out = append(out, g)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].State.Created.Before(out[j].State.Created) })
	return out, errors.Join(errs...)
}

// RemoveEnded deletes the state of a guest that has no process.
func (s *Store) RemoveEnded(name string) error {
	g, err := s.Get(name)
	if err != nil {
		return err
	}
	if g.State.Status.Live() {
		return fmt.Errorf("guest %s is %s: stop it first, or remove it with -f", name, g.State.Status)
	}
	if err := errors.Join(os.RemoveAll(g.Dir), removeIfThere(s.socket(name))); err != nil {
		return fmt.Errorf("remove guest %s: %w", name, err)
	}
	return nil
}
