package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"seeder/cmd/seeder/internal/cli"
)

// maxAnswerBytes bounds one answer of the daemon: 10,000 images × 1,000 nodes
// are more than a terminal can show, and less than this.
const maxAnswerBytes = 2 << 30

// Client asks the daemon of this host.
type Client struct {
	Socket string
	http   *http.Client
	// patience is how long the daemon may be silent before it is asked whether it is
	// there, and how long that answer may take. answer bounds everything but streams.
	patience, answer time.Duration
	// lost says more of a connection that failed, where somebody can.
	lost func(error) error
}

const (
	// defaultPatience makes a command end within ten seconds where the daemon hangs.
	defaultPatience = 5 * time.Second
	// defaultAnswer is far above the bound of the longest question, that of doctor.
	defaultAnswer = 2 * time.Minute
)

// Dial returns a client of the daemon at socket; it connects at each request.
func Dial(socket string) *Client {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	return &Client{Socket: socket, patience: defaultPatience, answer: defaultAnswer, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
		WriteBufferSize:   256 << 10,
	}}}
}

const (
	// remotePatience is for a link that is slow, and for somebody who types a password.
	remotePatience = time.Minute
	// remoteSilence is how long nothing comes of a link before the other side is asked
	// whether it is there (PING of RFC 9113).
	remoteSilence = 30 * time.Second
)

// DialThrough returns a client of a daemon elsewhere, which messages call name: all that it
// asks goes over the one connection that dial makes. It is closed where the other side is
// silent for too long, also in the middle of a request. lost says why it has failed.
func DialThrough(name string, dial func(context.Context) (net.Conn, error), lost func(error) error) *Client {
	return &Client{Socket: name, patience: remotePatience, answer: defaultAnswer, lost: lost, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		Protocols:   protocols(false),
		HTTP2:       &http.HTTP2Config{SendPingTimeout: remoteSilence, PingTimeout: remotePatience},
	}}}
}

// Do sends a request that has a path alone, and returns the answer whatever it says.
func (c *Client) Do(req *http.Request) (*http.Response, error) {
	req.URL.Scheme, req.URL.Host = "http", "seeder" // as do has it: another name is another connection
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(req.Context(), err)
	}
	return resp, nil
}

// Close closes the connection of DialThrough; no request runs any more.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Get reads one JSON document into out.
func (c *Client) Get(ctx context.Context, path string, query url.Values, out any) error {
	ctx, cancel := c.bounded(ctx, path)
	defer cancel()
	return c.do(ctx, http.MethodGet, path, query, nil, func(body io.Reader) error {
		return json.NewDecoder(body).Decode(out)
	})
}

// Post asks for something to be done and reads what came of it into out, unless
// that is nil.
func (c *Client) Post(ctx context.Context, path string, query url.Values, out any) error {
	ctx, cancel := c.bounded(ctx, path)
	defer cancel()
	return c.do(ctx, http.MethodPost, path, query, nil, func(body io.Reader) error {
		if out == nil {
			return nil
		}
		return json.NewDecoder(body).Decode(out)
	})
}

// Stream hands each event to fn until the daemon is done. The error of an error
// event carries the exit code that it asks for.
func (c *Client) Stream(ctx context.Context, method, path string, query url.Values, body io.Reader, fn func(Event)) error {
	return c.do(ctx, method, path, query, body, func(body io.Reader) error {
		dec := json.NewDecoder(body)
		for {
			var e Event
			if err := dec.Decode(&e); err != nil {
				return err
			}
			switch e.Event {
			case EventError:
				return cli.WithCode(e.Code, errors.New(e.Error))
			case EventDone:
				fn(e)
				return nil
			case eventAlive:
				continue
			}
			fn(e)
		}
	})
}

func (c *Client) do(ctx context.Context, method, path string, query url.Values, body io.Reader, read func(io.Reader) error) error {
	return c.ask(ctx, method, path, query, body, func(_ *http.Response, answer io.Reader) error {
		return read(io.LimitReader(answer, maxAnswerBytes))
	})
}

// ask has read take the answer, unless the daemon refuses.
func (c *Client) ask(ctx context.Context, method, path string, query url.Values, body io.Reader, read func(*http.Response, io.Reader) error) error {
	ctx, g := c.guard(ctx)
	defer g.end()
	u := url.URL{Scheme: "http", Host: "seeder", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return fmt.Errorf("ask the daemon: %w", err)
	}
	if req.Body != nil {
		req.Body = g.reader(sent(ctx, req.Body))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(ctx, err)
	}
	defer resp.Body.Close()
	answer := g.reader(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return refused(resp.StatusCode, answer)
	}
	if err := read(resp, answer); err != nil {
		return c.explain(ctx, err)
	}
	return nil
}

// refused is the daemon's own word for why not.
func refused(status int, body io.Reader) error {
	var answer struct {
		Error string `json:"error"`
	}
	if err := json.NewDecoder(io.LimitReader(body, 1<<20)).Decode(&answer); err != nil || answer.Error == "" {
		return fmt.Errorf("the daemon answers %d %s; are daemon and command of the same version?", status, http.StatusText(status))
	}
	switch status {
	case http.StatusBadRequest:
		return cli.Usagef("%s", answer.Error)
	case http.StatusNotFound:
		return notFoundError(answer.Error)
	case http.StatusServiceUnavailable:
		return cli.WithCode(cli.ExitNoDaemon, errors.New(answer.Error))
	}
	return errors.New(answer.Error)
}

// notFoundError is the daemon's word for what is not there.
type notFoundError string

func (e notFoundError) Error() string { return string(e) }

// Is makes errors.Is find fs.ErrNotExist.
func (e notFoundError) Is(target error) bool { return target == fs.ErrNotExist }

// notAllowedError says that only another user may do it.
type notAllowedError string

func (e notAllowedError) Error() string { return string(e) }

// Is makes errors.Is find fs.ErrPermission.
func (e notAllowedError) Is(target error) bool { return target == fs.ErrPermission }

// explain makes a transport error one that says what to do.
func (c *Client) explain(ctx context.Context, err error) error {
	var coded *cli.Error
	var op *net.OpError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &coded):
		return err
	case c.lost != nil:
		return c.lost(err)
	case errors.Is(err, fs.ErrPermission):
		return cli.WithCode(cli.ExitNoDaemon, notAllowedError(fmt.Sprintf("not allowed to open the daemon's socket %s; run this as root", c.Socket)))
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return cli.WithCode(cli.ExitNoDaemon, fmt.Errorf("no seeder daemon answers on %s; start it with `systemctl start seeder`, or name its socket with --socket", c.Socket))
	case errors.As(err, &op) && op.Op == "dial":
		return cli.WithCode(cli.ExitNoDaemon, fmt.Errorf("reach the seeder daemon: %w; name its socket with --socket", err))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &op):
		return cli.WithCode(cli.ExitNoDaemon, fmt.Errorf("the seeder daemon on %s ended before it answered (%w); look at `journalctl -u seeder`", c.Socket, err))
	}
	return fmt.Errorf("answer of the seeder daemon on %s: %w", c.Socket, err)
}
