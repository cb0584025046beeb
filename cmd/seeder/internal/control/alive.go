package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"seeder/cmd/seeder/internal/cli"
)

// beatEvery is how often a stream tells that the daemon is there, and how often the
// daemon connects to its own socket, so that the socket's time says when it last
// accepted.
const beatEvery = 5 * time.Second

// bounded is ctx for a question whose answer is bounded.
func (c *Client) bounded(ctx context.Context, path string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, c.answer, cli.WithCode(cli.ExitNoDaemon, fmt.Errorf(
		"the seeder daemon on %s accepts connections, but has not answered %s within %s; look at `journalctl -u seeder`", c.Socket, path, c.answer)))
}

// guard ends a request to a daemon that does not answer. It asks on a connection of its
// own whenever nothing has come or gone for a while: an import may take minutes, in
// which there is nothing to tell.
type guard struct {
	client *Client
	cancel context.CancelCauseFunc
	moved  atomic.Int64 // bytes, both ways
	done   sync.WaitGroup
}

// guard returns the context of a request, which ends with the cause where the daemon
// does not answer. Its owner calls end.
func (c *Client) guard(ctx context.Context) (context.Context, *guard) {
	ctx, cancel := context.WithCancelCause(ctx)
	g := &guard{client: c, cancel: cancel}
	g.done.Go(func() { g.watch(ctx) })
	return ctx, g
}

func (g *guard) end() {
	g.cancel(nil)
	g.done.Wait()
}

func (g *guard) watch(ctx context.Context) {
	last := g.moved.Load()
	tick := time.NewTicker(g.client.patience)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := g.moved.Load()
		if now != last {
			last = now
			continue
		}
		if err := g.client.ping(ctx); err != nil && ctx.Err() == nil {
			g.cancel(err)
			return
		}
	}
}

// reader counts what is read through it.
func (g *guard) reader(r io.ReadCloser) io.ReadCloser { return &counted{r, &g.moved} }

type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// sendBytes is how much of a request's body is copied at once.
const sendBytes = 256 << 10

// sent is body, but ends with ctx also while a read of body does not return, as of a
// standard input where nothing comes: the transport waits for that read. The goroutine
// that is left in it then ends with the process.
func sent(ctx context.Context, body io.ReadCloser) io.ReadCloser {
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { r.CloseWithError(context.Cause(ctx)) })
	go func() {
		_, err := io.CopyBuffer(w, struct{ io.Reader }{body}, make([]byte, sendBytes))
		w.CloseWithError(errors.Join(err, body.Close()))
	}()
	return r
}

// ping asks the daemon for nothing. Its error says what is wrong with it.
func (c *Client) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://seeder/v1/ping", nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return cli.WithCode(cli.ExitNoDaemon, errors.New(c.silent()))
		}
		return c.explain(ctx, err)
	}
	return resp.Body.Close() // whatever it says, it is there
}

// silent says what can be told of a daemon that does not answer, from outside.
func (c *Client) silent() string {
	s := "the seeder daemon on " + c.Socket + " does not answer"
	if info, err := os.Stat(c.Socket); err == nil {
		s += fmt.Sprintf("; it last did at %s, %s ago", info.ModTime().Format(time.TimeOnly), time.Since(info.ModTime()).Round(time.Second))
	}
	if pid, state := c.process(); strings.HasPrefix(state, "T") {
		return s + fmt.Sprintf("; its process %d is stopped: `kill -CONT %d` continues it", pid, pid)
	} else if pid > 0 {
		s += fmt.Sprintf("; its process is %d (state %s)", pid, state)
	}
	return s + "; look at `journalctl -u seeder` and `systemctl status seeder`; `systemctl restart seeder` restarts it"
}
