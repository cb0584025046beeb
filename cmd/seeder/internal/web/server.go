// Package web is the HTTP listener of the daemon: the status page, the gauges of
// /metrics, and whether the node is ready.
//
// It owns the page and what it costs. It never changes anything: every path only reads.
//
// Invariant: text of other nodes is escaped and bounded before it is on the page, and a
// page that nobody looks at asks nobody.
package web

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/listen"
	"seeder/cmd/seeder/internal/term"
	"seeder/cmd/seeder/internal/verdict"
)

// Server serves metrics, health and the status page to anyone who reaches http.bind; it
// changes nothing.
type Server struct {
	bind    string
	handler http.Handler
	page    *page
	log     *slog.Logger

	http *listen.HTTP
}

// NewServer returns the listener of cfg for the page of c and of pods, and the metrics of
// reg; it serves after Open.
func NewServer(cfg config.HTTP, c Cluster, pods Pods, reg prometheus.Gatherer, log *slog.Logger) *Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	// What keeps this host from its work, one reason a line. What the daemon reads and binds when it starts, catalog and
	// ports, is there before this listener is.
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		v := verdict.Decide(verdict.Input{Status: c.Status(r.Context()), Members: c.Members().Members})
		if blocking := v.Blocking(); len(blocking) > 0 {
			var reasons []string
			for _, f := range blocking {
				reasons = append(reasons, term.Clean(f.String()))
			}
			http.Error(w, strings.Join(reasons, "\n"), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	if cfg.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	h := &Server{bind: cfg.Bind, handler: mux, page: newPage(c, pods, log.With("component", "page")), log: log.With("component", "http")}
	h.handler = h.page.ours(mux)
	h.page.routes(mux)
	return h
}

// Open listens and serves, and says where.
func (h *Server) Open() (net.Addr, error) {
	l, err := listen.TCP("http.bind", h.bind, maxHTTPConns)
	if err != nil {
		return nil, err
	}
	h.serve(l)
	return l.Addr(), nil
}

// maxHTTPConns bounds the connections of the http listener: a few programs ask for
// metrics and health now and then.
const maxHTTPConns = 128

func (h *Server) serve(l net.Listener) {
	h.http = listen.Serve("http.bind", l, &http.Server{
		Handler:           h.handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      90 * time.Second, // a profile takes 30 s unless another time is asked for
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
	})
}

// Close ends every request.
func (h *Server) Close() error {
	h.page.Close()
	return h.http.Close()
}
