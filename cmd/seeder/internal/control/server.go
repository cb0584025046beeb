//go:build linux

// Package control is the control API of the daemon on a unix socket: its types, its
// server and its client.
//
// It owns the paths, documents and events of the API, and who may open the socket. It
// never decides anything about an image or a peer: it asks a Cluster and an Announcer.
//
// Invariant: only the socket's owner can open it, at no instant anybody else; every
// request that began ends with a document, or with one last event.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/verdict"
	"seeder/p2p/report"
)

// Announced is what became of an announcement.
type Announced struct {
	Reference string
	Digest    string
	Version   uint64
	Bytes     int64  // of all blobs as stored
	Said      string // what is worth a line about its name in containerd

	Standing // Already: nothing had to be done, By announced the same at At
}

// Announcer takes images of this host to the cluster.
type Announcer interface {
	// ImportArchive reads an archive into the image store and says what it brought.
	// With ref only that image is meant.
	ImportArchive(ctx context.Context, archive io.Reader, ref string) (Imported, error)
	// Local describes what the image store has under ref.
	Local(ctx context.Context, ref string) (Local, error)
	// References are the names that commands may take.
	References(ctx context.Context) References
	// Announce announces an image that the image store has.
	Announce(ctx context.Context, o Order) (Announced, error)
}

// Pushes takes the blobs and manifests that `seeder push` sends.
type Pushes interface {
	// Handler answers what is below /v2/: the OCI distribution API.
	http.Handler
	// Archive is an OCI archive of the image that was pushed as target; it is called ref in it.
	Archive(ctx context.Context, target digest.Digest, ref string) (io.ReadCloser, error)
	// Drop removes what was pushed of an image.
	Drop(ctx context.Context, target digest.Digest) error
}

// Imported is what an archive brought.
type Imported struct {
	Names   []string // of the images that are named now, sorted
	LeftOut []string // what is said of images without a name, and of artifacts
	// Targets are what the names stand for now.
	Targets map[string]digest.Digest
	// TakeBack makes the image records of a name what they were before the import.
	TakeBack func(ctx context.Context, name string) error
}

// takeBack is TakeBack of what an archive has brought, if one has.
func (i Imported) takeBack(ctx context.Context, name string) error {
	if i.TakeBack == nil {
		return nil
	}
	return i.TakeBack(ctx, name)
}

// Local is an image of this host as other programs on it may know it.
type Local struct {
	Digest  digest.Digest   `json:"digest"`           // of the target
	IDs     []digest.Digest `json:"ids"`              // of target, manifests and configs
	Created time.Time       `json:"created,omitzero"` // as the config for this host's platform says
}

// Order is what is to be announced.
type Order struct {
	Ref      string
	At       digest.Digest // the target that Ref gets; empty: the one that it has
	Rollback bool          // the target that it had before
	On       []string      // label selectors of the nodes that it is for
	// AnyPlatform is for every node, whatever platform the image says it is for.
	AnyPlatform bool
	NoDelta     bool // no deltas of it are offered
	// Settled is the target that an archive has just brought under Ref; empty: none has.
	Settled digest.Digest
}

// configReloader reads the daemon's configuration anew.
type configReloader interface {
	Reload() (Reloaded, error)
	// Pending is what Reload would find.
	Pending() Pending
}

// Server serves the commands of this host on a unix socket:
//
//	GET  /v1/ping                                      nothing: the daemon answers
//	GET  /v1/status | /v1/members | /v1/images?ref=…   one JSON document
//	GET  /v1/local?ref=…                               what containerd has under ref
//	GET  /v1/references                                names for shells to complete
//	GET  /v1/selected?on=…                             whether there are such nodes
//	POST /v1/announce?ref=…&ref=…&digest=…&rollback=…&on=…&any_platform=…&no_delta=…&archive=…&wait=…&all=…
//	                                                   events, one a line
//	POST /v1/announce?pushed=REF@DIGEST&pushed=…&on=…&any_platform=…&wait=…&all=…
//	                                                   the same of images that were pushed
//	     /v2/…                                         the distribution API: pushes, without tags
//	GET  /v1/export?ref=…&digest=…&since=…&since_digest=…&platform=…
//	                                                   an archive
//	GET  /v1/wait?ref=…&all=…                          events, one a line
//	POST /v1/forget?name=…                             nothing
//	POST /v1/withdraw?ref=…&purge=…&force=…            nothing
//	POST /v1/reload                                    what has changed
//	GET  /v1/self                                      the configuration in use, and what has changed since
//	GET  /v1/diagnosis                                 the ways to and from each member, in ten seconds
//	GET  /v1/holders?ref=…                             which members' stores have it
//
// Refusals are {"error": …} with 400 (the caller's fault), 404 (not announced),
// 503 (the daemon is stopping) or 500. Only the owner of the socket reaches it: its mode is 0600.
type Server struct {
	cluster   Cluster
	announcer Announcer
	reload    configReloader
	log       *slog.Logger
	// Pushes is set before Open; nil refuses pushes.
	Pushes Pushes
	// Exports is set before Open; nil refuses exports.
	Exports Exporter

	path     string
	server   *http.Server
	group    errgroup.Group
	cancel   context.CancelFunc
	stopping atomic.Bool // requests fail since they are cancelled
}

// errStopping is why a request that hangs when the daemon ends comes to nothing.
var errStopping = errors.New("the daemon is stopping; try again once it runs")

// NewServer returns the API on the unix socket path; it serves after Open.
func NewServer(path string, c Cluster, a Announcer, r configReloader, log *slog.Logger) *Server {
	return &Server{cluster: c, announcer: a, reload: r, path: path, log: log.With("component", "control")}
}

// Open listens and serves. A socket that a crashed daemon left behind is
// replaced; one that somebody answers on is not.
func (c *Server) Open() error {
	l, err := listenPrivate(c.path)
	if err != nil {
		return fmt.Errorf("api.socket %s: %w", c.path, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.group.Go(func() error { return c.beat(ctx) })
	c.server = &http.Server{
		Handler:           c.routes(),
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
		Protocols:         protocols(true),
		HTTP2:             &http.HTTP2Config{MaxReceiveBufferPerConnection: receiveBuffer, MaxReceiveBufferPerStream: receiveBuffer},
	}
	c.group.Go(func() error {
		if err := c.server.Serve(c.listener(l)); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve api.socket %s: %w", c.path, err)
		}
		return nil
	})
	return nil
}

// Close ends every request and removes the socket.
func (c *Server) Close() error {
	c.stopping.Store(true)
	c.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := c.server.Shutdown(ctx)
	if err != nil {
		err = c.server.Close()
	}
	if rm := os.Remove(c.path); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
		err = errors.Join(err, rm)
	}
	return errors.Join(err, c.group.Wait())
}

// listenPrivate listens on a unix socket that only its owner may open, at no
// instant anybody else.
func listenPrivate(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make its directory: %w; set api.socket to a place the daemon may write to", err)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		conn.Close()
		return nil, errors.New("another seeder daemon answers there; stop it, or give this one its own api.socket and data_dir")
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("cannot tell whether another seeder daemon is using the socket: %w; delete the file if none is running", err)
	}
	private, err := os.MkdirTemp(dir, ".api")
	if err != nil {
		return nil, fmt.Errorf("make the socket: %w; set api.socket to a place the daemon may write to", err)
	}
	defer os.RemoveAll(private)
	made := filepath.Join(private, "s")
	l, err := net.Listen("unix", made)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(made, 0o600), os.Rename(made, path)); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (c *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/ping", func(w http.ResponseWriter, _ *http.Request) { c.answer(w, struct{}{}, nil) })
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		s := c.cluster.Status(r.Context())
		c.answer(w, Judged{s, verdict.Decide(verdict.Input{Status: s, Members: c.cluster.Members().Members})}, nil)
	})
	mux.HandleFunc("GET /v1/members", func(w http.ResponseWriter, r *http.Request) {
		c.answer(w, c.cluster.AskMembers(r.Context()), nil)
	})
	mux.HandleFunc("POST /v1/forget", func(w http.ResponseWriter, r *http.Request) {
		err := c.cluster.Forget(r.URL.Query().Get("name"))
		if errors.Is(err, report.ErrNotForgotten) {
			err = cli.WithCode(cli.ExitUsage, err)
		}
		c.answer(w, struct{}{}, err)
	})
	mux.HandleFunc("GET /v1/images", c.handleImages)
	mux.HandleFunc("GET /v1/local", c.handleLocal)
	mux.HandleFunc("GET /v1/export", c.handleExport)
	mux.HandleFunc("GET /v1/references", func(w http.ResponseWriter, r *http.Request) {
		c.answer(w, c.announcer.References(r.Context()), nil)
	})
	mux.HandleFunc("GET /v1/selected", c.handleSelected)
	mux.HandleFunc("POST /v1/withdraw", c.handleWithdraw)
	mux.HandleFunc("POST /v1/announce", c.handleAnnounce)
	mux.HandleFunc("GET /v1/wait", c.handleWait)
	if c.Pushes != nil {
		mux.Handle("/v2/", c.Pushes)
	}
	mux.HandleFunc("POST /v1/reload", func(w http.ResponseWriter, _ *http.Request) {
		changed, err := c.reload.Reload()
		c.answer(w, changed, err)
	})
	mux.HandleFunc("GET /v1/self", func(w http.ResponseWriter, _ *http.Request) {
		c.answer(w, Self{Version: cli.Version(), Pending: c.reload.Pending()}, nil)
	})
	mux.HandleFunc("GET /v1/diagnosis", func(w http.ResponseWriter, r *http.Request) {
		c.answer(w, c.cluster.Diagnose(r.Context()), nil)
	})
	mux.HandleFunc("GET /v1/holders", func(w http.ResponseWriter, r *http.Request) {
		refs, err := cli.NormalizeRefs(r.URL.Query()["ref"])
		if err != nil {
			c.answer(w, nil, err)
			return
		}
		c.answer(w, c.cluster.Holders(r.Context(), refs), nil)
	})
	return mux
}

func (c *Server) handleImages(w http.ResponseWriter, r *http.Request) {
	refs, err := cli.NormalizeRefs(r.URL.Query()["ref"])
	if err != nil {
		c.answer(w, nil, err)
		return
	}
	images, err := c.cluster.Images(r.Context(), refs...)
	c.answer(w, images, err)
}

func (c *Server) handleWithdraw(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	ref, err := cli.NormalizeRef(q.Get("ref"))
	if err == nil {
		err = c.cluster.Withdraw(r.Context(), ref, report.Withdrawal{Purge: q.Get("purge") == "true", Force: q.Get("force") == "true"})
	}
	c.answer(w, struct{}{}, err)
}

func (c *Server) handleLocal(w http.ResponseWriter, r *http.Request) {
	ref, err := cli.NormalizeRef(r.URL.Query().Get("ref"))
	if err != nil {
		c.answer(w, nil, err)
		return
	}
	local, err := c.announcer.Local(r.Context(), ref)
	c.answer(w, local, err)
}

// Selected is whether there are nodes that label selectors match.
type Selected struct {
	None string `json:"none,omitempty"` // why not
}

func (c *Server) handleSelected(w http.ResponseWriter, r *http.Request) {
	err := c.cluster.CheckOn(r.Context(), r.URL.Query()["on"])
	var none *report.NoNodeError
	switch {
	case errors.As(err, &none):
		c.answer(w, Selected{None: none.Error()}, nil)
	case err != nil:
		c.answer(w, nil, cli.WithCode(cli.ExitUsage, err))
	default:
		c.answer(w, Selected{}, nil)
	}
}

func (c *Server) handleWait(w http.ResponseWriter, r *http.Request) {
	refs, err := cli.NormalizeRefs(r.URL.Query()["ref"])
	if err != nil {
		c.answer(w, nil, err)
		return
	}
	s := newStream(w)
	watch := watcher{cluster: c.cluster, refs: refs, emit: s.emit, all: r.URL.Query().Get("all") == "true"}
	s.end(watch.wait(r.Context()))
}

// answer writes one JSON document, or why there is none.
func (c *Server) answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		status, _ := refusal(err)
		if c.stopping.Load() {
			status, err = http.StatusServiceUnavailable, errStopping
		}
		w.WriteHeader(status)
		v = map[string]string{"error": err.Error()}
	}
	if err := json.NewEncoder(w).Encode(v); err != nil {
		c.log.Debug("failed to answer a command", "err", err)
	}
}

// refusal is how an error goes to the client: as a status where it is the whole
// answer, as an exit code where it ends a stream.
func refusal(err error) (status, code int) {
	var coded *cli.Error
	switch {
	case errors.As(err, &coded) && coded.Code == cli.ExitUsage:
		return http.StatusBadRequest, cli.ExitUsage
	case errors.As(err, &coded) && coded.Code == cli.ExitNotConverged:
		return http.StatusInternalServerError, cli.ExitNotConverged
	case errors.Is(err, fs.ErrNotExist):
		return http.StatusNotFound, cli.ExitFailed
	}
	return http.StatusInternalServerError, cli.ExitFailed
}

// References are what the daemon knows the names of.
type References struct {
	Announced []string `json:"announced"`
	Local     []string `json:"local"` // in this host's containerd
}

// Self is what the daemon says of itself.
type Self struct {
	Version string  `json:"version"`
	Pending Pending `json:"pending"`
}
