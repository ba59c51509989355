package guest

import (
	"bufio"
	"context"
	_ "embed" // the OpenAPI document
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

//go:embed openapi.yaml
var openAPI []byte

// OpenAPI is the document that describes the control API.
func OpenAPI() []byte { return openAPI }

const (
	attachProtocol    = "peervisor-attach/1"
	maxAPIHeaderBytes = 16 << 10
	apiReadTimeout    = 10 * time.Second
	maxAPIBodyBytes   = 64 << 10
	maxStopTimeout    = time.Hour
)

// apiError is the body of every answer that is not 2xx.
type apiError struct {
	Error string `json:"error"`
}

// server is the control API of one guest on its unix socket.
type server struct {
	g    *Guest
	http *http.Server
	done chan struct{}
}

// listenAPI makes the socket. A stale one of a dead guest is replaced: the
// caller holds the guest's lock.
func listenAPI(path string) (net.Listener, error) {
	if err := removeIfThere(path); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("control socket: %w", err), l.Close())
	}
	return l, nil
}

func newServer(g *Guest, l net.Listener) *server {
	s := &server{g: g, done: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/guest", s.getGuest)
	mux.HandleFunc("GET /v1/openapi.yaml", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(openAPI) })
	mux.HandleFunc("POST /v1/pause", s.action(func(r *http.Request) error { return g.Pause(r.Context()) }))
	mux.HandleFunc("POST /v1/resume", s.action(func(*http.Request) error { return g.Resume() }))
	mux.HandleFunc("POST /v1/kill", s.action(func(*http.Request) error { g.Kill("killed by request"); return nil }))
	mux.HandleFunc("POST /v1/stop", s.stop)
	mux.HandleFunc("POST /v1/attach", s.attach)
	s.http = &http.Server{Handler: mux, ReadHeaderTimeout: apiReadTimeout, MaxHeaderBytes: maxAPIHeaderBytes}
	go func() { // joined by close
		defer close(s.done)
		_ = s.http.Serve(l) // returns when close shuts it down
	}()
	return s
}

// close stops the server; answers under way get a second to leave.
func (s *server) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
	<-s.done
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // a client that left is no error of ours
}

func replyError(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	if errors.Is(err, ErrNotRunning) || errors.Is(err, errWrongState) || errors.Is(err, errHasOwner) {
		code = http.StatusConflict
	}
	reply(w, code, apiError{err.Error()})
}

func (s *server) getGuest(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, s.g.Inspect())
}

func (s *server) action(f func(*http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := f(r); err != nil {
			replyError(w, err)
			return
		}
		reply(w, http.StatusOK, s.g.Inspect().State)
	}
}

// stop asks the guest to power off and answers when it ended; after the
// timeout it is killed.
func (s *server) stop(w http.ResponseWriter, r *http.Request) {
	timeout := 10 * time.Second
	if v := r.URL.Query().Get("timeout"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 || d > maxStopTimeout {
			reply(w, http.StatusBadRequest, apiError{fmt.Sprintf("timeout %q: a duration from 0s to %s, as 10s", v, maxStopTimeout)})
			return
		}
		timeout = d
	}
	forced, err := s.g.Stop(timeout)
	if err != nil {
		replyError(w, err)
		return
	}
	reply(w, http.StatusOK, StopResult{Forced: forced})
}

// StopResult is the answer to stop.
type StopResult struct {
	// Forced says that the guest did not power off in time and was killed.
	Forced bool `json:"forced"`
}

func (s *server) attach(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), attachProtocol) {
		w.Header().Set("Upgrade", attachProtocol)
		reply(w, http.StatusUpgradeRequired, apiError{"attach needs the header Upgrade: " + attachProtocol})
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		replyError(w, err)
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Time{})
	if _, err := rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + attachProtocol + "\r\n\r\n"); err != nil {
		return
	}
	if rw.Flush() != nil {
		return
	}
	c := hijacked{conn, rw.Reader}
	if err := s.g.hub.serve(c, r.URL.Query().Get("owner") == "1"); err != nil {
		_ = (&frameWriter{w: conn}).write(frameDetach, []byte(err.Error()))
	}
}

// hijacked reads first what the HTTP server had buffered.
type hijacked struct {
	net.Conn
	r *bufio.Reader
}

func (h hijacked) Read(p []byte) (int, error) { return h.r.Read(p) }
