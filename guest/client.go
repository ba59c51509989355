package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Client talks to the control API of one running guest.
type Client struct {
	name   string
	socket string
	http   *http.Client
}

// Client returns the client of a guest's control socket. It does not connect.
func (s *Store) Client(name string) *Client {
	c := &Client{name: name, socket: s.socket(name)}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
		},
		DisableKeepAlives: true,
	}}
	return c
}

func (c *Client) do(ctx context.Context, method, path string, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://guest"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return fmt.Errorf("reach guest %s: %w: %w", c.name, ErrUnreachable, err)
	}
	defer resp.Body.Close()
	body := io.LimitReader(resp.Body, 16<<20)
	if resp.StatusCode/100 != 2 {
		var e apiError
		if json.NewDecoder(body).Decode(&e) != nil || e.Error == "" {
			e.Error = resp.Status
		}
		return fmt.Errorf("guest %s: %s", c.name, e.Error)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(body).Decode(out); err != nil {
		return fmt.Errorf("read answer of guest %s: %w", c.name, err)
	}
	return nil
}

// Inspect returns everything that there is to know.
func (c *Client) Inspect(ctx context.Context) (*Inspection, error) {
	var i Inspection
	return &i, c.do(ctx, "GET", "/v1/guest", &i)
}

// Pause stops the vCPUs and drains the devices.
func (c *Client) Pause(ctx context.Context) error { return c.do(ctx, "POST", "/v1/pause", nil) }

// Resume lets them go on.
func (c *Client) Resume(ctx context.Context) error { return c.do(ctx, "POST", "/v1/resume", nil) }

// Kill ends the guest at once.
func (c *Client) Kill(ctx context.Context) error { return c.do(ctx, "POST", "/v1/kill", nil) }

// Stop asks the guest to power off, kills it after the timeout, and returns when it ended.
func (c *Client) Stop(ctx context.Context, timeout time.Duration) (StopResult, error) {
	var r StopResult
	return r, c.do(ctx, "POST", "/v1/stop?timeout="+timeout.String(), &r)
}

// ErrUnreachable: nobody answers on the guest's control socket.
var ErrUnreachable = errors.New("no answer on the control socket")

// Attachment is a connection to a guest's session.
type Attachment struct {
	conn net.Conn
	fw   *frameWriter
	fr   *frameReader
}

// ErrPutOut: the guest ended the attachment, not the guest itself.
var ErrPutOut = errors.New("detached by the guest")

// ErrLost: the connection broke, because the guest's process is gone.
var ErrLost = errors.New("connection to the guest is lost")

// Attach connects to the guest's command or console. The owner is the
// foreground terminal that the guest ends with.
func (c *Client) Attach(ctx context.Context, owner bool) (*Attachment, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, fmt.Errorf("reach guest %s: %w", c.name, err)
	}
	q := ""
	if owner {
		q = "?owner=1"
	}
	_, err = fmt.Fprintf(conn, "POST /v1/attach%s HTTP/1.1\r\nHost: guest\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 0\r\n\r\n", q, attachProtocol)
	br := bufio.NewReaderSize(conn, 2*maxFrameBytes)
	var resp *http.Response
	if err == nil {
		resp, err = http.ReadResponse(br, nil)
	}
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		err = errors.New(resp.Status)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach to guest %s: %w", c.name, err), conn.Close())
	}
	return &Attachment{conn: conn, fw: &frameWriter{w: conn}, fr: &frameReader{r: br}}, nil
}

// Input sends bytes to the session's input. It blocks while the session does not read.
func (a *Attachment) Input(p []byte) error { return a.fw.write(frameStdin, p) }

// CloseInput ends the input, if this is the owner.
func (a *Attachment) CloseInput() error { return a.fw.write(frameEOF, nil) }

// Resize tells the terminal's size.
func (a *Attachment) Resize(ws Winsize) error { return a.fw.writeJSON(frameResize, ws) }

// Signal sends a signal to the command.
func (a *Attachment) Signal(sig int) error { return a.fw.writeJSON(frameSignal, signalMsg{sig}) }

// Detach leaves; the guest goes on, also if this is the owner.
func (a *Attachment) Detach() error { return a.fw.write(frameDetach, nil) }

// Close drops the connection. If this is the owner the guest ends.
func (a *Attachment) Close() error { return a.conn.Close() }

// Copy writes the session's output until the guest ends (its Exit is returned),
// the guest puts this client out (ErrPutOut) or the connection breaks (ErrLost).
func (a *Attachment) Copy(stdout, stderr io.Writer) (*Exit, error) {
	for {
		t, p, err := a.fr.read()
		if err != nil {
			return nil, ErrLost
		}
		switch t {
		case frameStdout:
			_, err = stdout.Write(p)
		case frameStderr:
			_, err = stderr.Write(p)
		case frameDetach:
			if len(p) > 0 {
				return nil, fmt.Errorf("%w: %s", ErrPutOut, p)
			}
			return nil, ErrPutOut
		case frameExit:
			var e Exit
			if err := json.Unmarshal(p, &e); err != nil {
				return nil, fmt.Errorf("read exit of the guest: %w", err)
			}
			return &e, nil
		}
		if err != nil {
			return nil, err
		}
	}
}
