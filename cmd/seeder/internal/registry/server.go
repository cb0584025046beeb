// Package registry is an OCI registry on this host's loopback: containerd asks it for
// announced images before it asks the real registry, so that a pod whose pull policy is
// Always starts from what this host holds.
//
// It also keeps what is pushed, to the listener or over the control socket, until it is
// imported.
//
// It owns the listener, who may read from it, and the lines by which k3s and containerd find
// it. It never writes an image, never asks a peer, and lists no repositories: whoever asks
// names one, and may see its announced tags. What is announced and how far this host is with it, it asks a Catalog.
//
// Invariant: nothing leaves it but an announced image and, with registry.push, what was pushed
// and is not imported yet, and nothing at all without the credentials; what is neither is
// refused at once, so that containerd goes on to the real registry.
package registry

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"cuelabs.dev/go/oci/ociregistry/ociserver"
	"golang.org/x/sync/errgroup"

	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/listen"
)

// Server serves the images to this host's containerd.
type Server struct {
	bind    string // "" for no listener
	handler http.Handler
	log     *slog.Logger
	staging *staging // nil where nobody may push
	pushes  bool     // the listener's clients may push, too
	socket  *socket  // what the control socket has; nil where nobody may push

	http   *listen.HTTP   // nil without a listener
	group  errgroup.Group // what sweeps
	cancel context.CancelFunc
}

// Push is who gets what clients push, and where it is kept until then.
type Push struct {
	To  Publisher
	Dir string // nobody else's: it is removed and made anew
	// SocketAlone leaves the listener read-only: images are pushed over the control socket.
	SocketAlone bool
}

// NewServer returns the registry at bind; it serves after Open. What it answers comes from
// c, blobs from images. With a push whose To is nil it is read-only.
func NewServer(bind string, auth Credentials, c Catalog, images Images, push Push, log *slog.Logger) (*Server, error) {
	s := &Server{bind: bind, log: log.With("component", "registry")}
	b := &backend{catalog: c, images: images, patience: defaultPatience, streams: make(chan struct{}, maxStreams)}
	funcs := b.funcs()
	var p *pusher
	if push.To != nil {
		var err error
		if s.staging, err = openStaging(push.Dir, push.To.Room); err != nil {
			return nil, err
		}
		s.socket = s.newSocket(*b, push.To)
		if s.pushes = !push.SocketAlone; s.pushes {
			p = &pusher{b, s.staging, push.To, false}
			b.pushed = s.staging.open
			p.add(funcs)
		}
	}
	var api http.Handler = ociserver.New(funcs, &ociserver.Options{
		DisableReferrersAPI:     true,
		DisableSinglePostUpload: true,
		WriteError:              s.refuse,
	})
	if p != nil {
		api = p.mounts(api)
	}
	s.handler = s.guard(auth, s.bySpec(b, api))
	return s, nil
}

// Start serves what cfg wants, with credentials that it makes where there are none. Without
// registry.bind it has no listener, and takes what is pushed over the control socket alone.
// The images that are pushed go to p.
func Start(cfg config.Config, c Catalog, images Images, p Publisher, log *slog.Logger) (*Server, error) {
	push := Push{To: p, Dir: filepath.Join(cfg.DataDir, "pushed"), SocketAlone: !cfg.Registry.Push}
	var auth Credentials
	if cfg.Registry.Bind != "" {
		var err error
		if auth, err = LoadOrCreate(cfg.DataDir); err != nil {
			return nil, err
		}
	}
	s, err := NewServer(cfg.Registry.Bind, auth, c, images, push, log)
	if err != nil {
		return nil, err
	}
	if cfg.Registry.Bind == "" {
		s.start()
		return s, nil
	}
	addr, err := s.Open()
	if err != nil {
		return nil, err
	}
	s.log.Info("serving announced images to containerd", "address", addr.String(), "push", cfg.Registry.Push)
	return s, nil
}

// Open listens and serves, and says where.
func (s *Server) Open() (net.Addr, error) {
	l, err := listen.TCP("registry.bind", s.bind, maxConns)
	if err != nil {
		return nil, err
	}
	s.serve(l)
	return l.Addr(), nil
}

// maxConns bounds the connections: containerd opens a few for each image that it pulls.
const maxConns = 128

// readTimeout is for a request's headers; a ReadTimeout would end those that wait.
const readTimeout = 5 * time.Second

// maxHeaderBytes bounds what is read of a request; nothing that is answered has a body.
const maxHeaderBytes = 16 << 10

// start begins what runs without a listener, too.
func (s *Server) start() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	if s.staging != nil {
		s.group.Go(func() error { return s.sweep(ctx) })
	}
	return ctx
}

func (s *Server) serve(l net.Listener) {
	ctx := s.start()
	s.http = listen.Serve("registry.bind", l, &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: readTimeout,
		WriteTimeout:      defaultPatience.total + writeTimeout, // for the first bytes, see patientWriter
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	})
}

// sweep removes what pushes have left that broke off.
func (s *Server) sweep(ctx context.Context) error {
	tick := time.NewTicker(staleAfter / 4)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			if err := s.staging.sweep(now); err != nil {
				s.log.Warn("failed to remove what a push has left", "dir", s.staging.dir, "err", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Close ends every request: containerd asks again, or elsewhere.
func (s *Server) Close() error {
	s.cancel()
	var err error
	if s.http != nil {
		err = s.http.Close()
	}
	err = errors.Join(err, s.group.Wait())
	if s.staging != nil {
		s.socket.requests.Lock() // forever: the control socket's connections are closed
		err = errors.Join(err, s.staging.close())
	}
	return err
}
