package wire

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
	"seeder/p2p/swarm"
	"seeder/p2p/trust"
	"seeder/store/chunk"
)

// Handlers are what a node answers with. They are called concurrently; errors that
// wrap fs.ErrNotExist become 404.
type Handlers struct {
	Matrix  Matrix
	Catalog Catalog
	Images  Images
	Owner   Owner
	Prober  Prober
	Deltas  Deltas // nil: this node has none
}

// Matrix says how far this node is.
type Matrix interface {
	// State is this node's column of the matrix for refs (none: all), as JSON. With the
	// versions of refs it comes once the node has settled these, or after a while.
	State(ctx context.Context, refs []string, versions []uint64) ([]byte, error)
}

// Catalog gives away what is announced.
type Catalog interface {
	// CatalogDiff are the encoded records of the buckets that differ.
	CatalogDiff(ctx context.Context, remote catalog.Buckets) ([][]byte, error)
}

// Images gives away what this host has.
type Images interface {
	// Seed is a seed index.
	Seed(ctx context.Context, seed digest.Digest) ([]byte, error)
	// Swarm is a swarm to serve from.
	Swarm(ctx context.Context, seed digest.Digest) (swarm.Served, error)
	// Recheck reads chunk n of a swarm again: the node with the proved id from got other
	// bytes.
	Recheck(ctx context.Context, seed digest.Digest, n int, from string) error
}

// Owner keeps track of who has and who fetches what.
type Owner interface {
	// Register records p, for which the node with the proved id from speaks, for a
	// seed that this node owns and returns others.
	Register(ctx context.Context, seed digest.Digest, from string, p swarm.Peer) []swarm.Peer
}

// Prober answers those who look for what is wrong.
type Prober interface {
	// Probe connects back to the node with the proved id from.
	Probe(ctx context.Context, from string, n Nonce) (Answer, error)
	// Held are those of refs that the store has.
	Held(ctx context.Context, refs []string) ([]string, error)
}

// ServerConfig is what a server needs. Sent and Received count bytes, TLS
// included.
type ServerConfig struct {
	Credentials    *trust.Credentials
	Handlers       Handlers
	Limiter        *Limiter
	Log            *slog.Logger
	Sent, Received func(bytes int)
	// Gossip takes a stream of gossip, a *tls.Conn whose handshake is done, and returns
	// when it has ended; nil: none is accepted.
	Gossip func(net.Conn)
	// Strange hears of each address from which a handshake failed because the secrets
	// differ; nil: nobody does.
	Strange func(from net.Addr)
	// Proved hears of each identity that a handshake has proved. It may be nil.
	Proved func(id trust.NodeID)
}

const (
	// headerTimeout bounds the TLS handshake and a request's header.
	headerTimeout = 10 * time.Second
	// bodyTimeout bounds the few kilobytes of a request's body.
	bodyTimeout = 10 * time.Second
	// idleTimeout closes a connection that asks for nothing.
	idleTimeout = 2 * time.Minute
	// writeStall is how long one buffer of an answer may take to leave, waiting for
	// this node's own limit aside.
	writeStall = 30 * time.Second
)

// Server answers on the transfer port.
type Server struct {
	cfg     ServerConfig
	http    *http.Server
	buffers sync.Pool
	conns   connSet
	cancel  context.CancelFunc
}

// NewServer returns a server that does not serve yet.
func NewServer(cfg ServerConfig) *Server {
	cfg.Limiter, cfg.Log, cfg.Sent, cfg.Received = defaults(cfg.Limiter, cfg.Log, cfg.Sent, cfg.Received)
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{cfg: cfg, cancel: cancel}
	s.buffers.New = func() any { b := make([]byte, bulkBuffer); return &b }
	s.http = &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){},
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, below(c))
		},
		ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return s
}

func defaults(l *Limiter, log *slog.Logger, sent, received func(int)) (*Limiter, *slog.Logger, func(int), func(int)) {
	if l == nil {
		l = NewLimiter(Limits{})
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if sent == nil {
		sent = func(int) {}
	}
	if received == nil {
		received = func(int) {}
	}
	return l, log, sent, received
}

// Serve answers on l until Close; it returns nil after that.
func (s *Server) Serve(l net.Listener) error {
	g := newGate(l, &s.cfg, &s.conns)
	var accepting sync.WaitGroup
	accepting.Go(g.run)
	err := s.http.Serve(g)
	g.Close()
	accepting.Wait()
	if !errors.Is(err, http.ErrServerClosed) {
		s.conns.closeBefore(time.Now())
		g.wg.Wait()
		return err
	}
	g.wg.Wait() // for streams of gossip, which Close ends
	return nil
}

// Close ends have streams at once, gives running answers until ctx ends, and
// closes every connection.
func (s *Server) Close(ctx context.Context) error {
	s.cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	s.conns.closeBefore(time.Now())
	return err
}

// CloseBefore closes the connections that were accepted before t, whatever is on
// its way on them.
func (s *Server) CloseBefore(t time.Time) { s.conns.closeBefore(t) }

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/state", s.state)
	mux.HandleFunc("POST /v1/catalog", s.catalog)
	mux.HandleFunc("GET /v1/seeds/{digest}", s.seed)
	mux.HandleFunc("POST /v1/swarms/{seed}/peers", s.peers)
	mux.HandleFunc("GET /v1/swarms/{seed}/haves", s.haves)
	mux.HandleFunc("GET /v1/swarms/{seed}/chunks/{n}", s.chunk)
	mux.HandleFunc("POST /v1/swarms/{seed}/chunks", s.next)
	mux.HandleFunc("POST /v1/swarms/{seed}/chunks/{n}/recheck", s.recheck)
	mux.HandleFunc("POST /v1/swarms/{seed}/deltas", s.deltas)
	mux.HandleFunc("POST /v1/echo", s.echo)
	mux.HandleFunc("POST /v1/probe", s.probe)
	mux.HandleFunc("GET /v1/held", s.held)
	return mux
}

// peerOf is the proved id of who asks.
func peerOf(r *http.Request) (string, error) {
	if r.TLS == nil {
		return "", errors.New("no TLS")
	}
	id, err := trust.PeerID(*r.TLS)
	return string(id), err
}

// refuse answers with the status that err stands for.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var busy *swarm.BusyError
	status := http.StatusInternalServerError
	switch {
	case errors.As(err, &busy):
		w.Header().Set(headerRetry, strconv.FormatInt(max(busy.RetryAfter.Milliseconds(), 1), 10))
		status = http.StatusServiceUnavailable
	case errors.Is(err, swarm.ErrNotHeld), errors.Is(err, fs.ErrNotExist):
		status = http.StatusNotFound
	case errors.Is(err, swarm.ErrCrowded):
		status = http.StatusConflict
	case errors.Is(err, swarm.ErrNothing):
		status = http.StatusNoContent
	case errors.Is(err, errBadRequest):
		status = http.StatusBadRequest
	}
	if status == http.StatusInternalServerError && r.Context().Err() == nil {
		s.cfg.Log.Warn("failed to answer a peer", "path", r.URL.Path, "from", r.RemoteAddr, "err", err)
	}
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(status)
}

var errBadRequest = errors.New("bad request")

// body reads a request's body of at most limit bytes within bodyTimeout.
func body(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBadRequest, err)
	}
	return b, http.NewResponseController(w).SetReadDeadline(time.Time{})
}

func (s *Server) state(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var versions []uint64
	for _, text := range q["settled"] {
		version, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			s.refuse(w, r, fmt.Errorf("%w: settled=%q", errBadRequest, text))
			return
		}
		versions = append(versions, version)
	}
	b, err := s.cfg.Handlers.Matrix.State(r.Context(), q["ref"], versions)
	if err == nil && len(b) > MaxStateBytes {
		err = fmt.Errorf("state of %d bytes, at most %d", len(b), MaxStateBytes)
	}
	s.send(w, r, b, err)
}

func (s *Server) catalog(w http.ResponseWriter, r *http.Request) {
	in, err := body(w, r, catalog.BucketsBytes)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	buckets, err := catalog.DecodeBuckets(in)
	if err != nil {
		s.refuse(w, r, fmt.Errorf("%w: %w", errBadRequest, err))
		return
	}
	records, err := s.cfg.Handlers.Catalog.CatalogDiff(r.Context(), buckets)
	var out []byte
	for _, rec := range records {
		if len(out)+len(rec)+binary.MaxVarintLen32 > MaxCatalogBytes {
			break // the rest comes with the next question
		}
		out = binary.AppendUvarint(out, uint64(len(rec)))
		out = append(out, rec...)
	}
	s.send(w, r, out, err)
}

func (s *Server) seed(w http.ResponseWriter, r *http.Request) {
	d, err := parseDigest(r.PathValue("digest"))
	if err != nil {
		s.refuse(w, r, fmt.Errorf("%w: %w", errBadRequest, err))
		return
	}
	b, err := s.cfg.Handlers.Images.Seed(r.Context(), d)
	s.send(w, r, b, err)
}

func (s *Server) peers(w http.ResponseWriter, r *http.Request) {
	seed, err := parseDigest(r.PathValue("seed"))
	if err != nil {
		s.refuse(w, r, fmt.Errorf("%w: %w", errBadRequest, err))
		return
	}
	in, err := body(w, r, maxPeersBytes)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	p, err := decodePeer(in)
	if err != nil {
		s.refuse(w, r, fmt.Errorf("%w: %w", errBadRequest, err))
		return
	}
	from, err := peerOf(r)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	b, err := encodePeers(s.cfg.Handlers.Owner.Register(r.Context(), seed, from, p))
	s.send(w, r, b, err)
}

// send writes a small answer, or refuses.
func (s *Server) send(w http.ResponseWriter, r *http.Request, b []byte, err error) {
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeStall))
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(b) // a peer that is gone is not this node's trouble
}

// swarmOf resolves the swarm in the path and who asks.
func (s *Server) swarmOf(r *http.Request) (sw swarm.Served, by swarm.Requester, err error) {
	seed, err := parseDigest(r.PathValue("seed"))
	if err != nil {
		return nil, by, fmt.Errorf("%w: %w", errBadRequest, err)
	}
	if by.ID, err = peerOf(r); err != nil {
		return nil, by, err
	}
	by.Host = askerHost(r.RemoteAddr)
	sw, err = s.cfg.Handlers.Images.Swarm(r.Context(), seed)
	return sw, by, err
}

func (s *Server) chunk(w http.ResponseWriter, r *http.Request) {
	sw, by, err := s.swarmOf(r)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	n, err := parseChunk(r.PathValue("n"))
	if err != nil {
		s.refuse(w, r, fmt.Errorf("%w: %w", errBadRequest, err))
		return
	}
	out, err := sw.Chunk(r.Context(), by, n)
	s.frame(w, r, out, err)
}

func (s *Server) next(w http.ResponseWriter, r *http.Request) {
	sw, by, err := s.swarmOf(r)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	in, err := body(w, r, chunk.MaxChunks/8)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	want, err := chunk.ParseBitmap(in, (sw.Len()+63)/64*64)
	if err != nil {
		s.refuse(w, r, fmt.Errorf("%w: %w", errBadRequest, err))
		return
	}
	out, err := sw.Next(r.Context(), by, want)
	s.frame(w, r, out, err)
}

// connKey is of the connection in a request's context.
type connKey struct{}

// frame writes a chunk, buffer by buffer, each within writeStall.
func (s *Server) frame(w http.ResponseWriter, r *http.Request, out swarm.Outgoing, err error) {
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	defer out.Done()
	defer out.Payload.Close()
	w.Header().Set(headerChunk, strconv.Itoa(out.N))
	w.Header().Set(headerEncoding, encodingName[out.Encoding])
	w.Header().Set("Content-Length", strconv.FormatInt(out.Bytes, 10))
	if c, ok := r.Context().Value(connKey{}).(*conn); ok && c != nil {
		c.bulkOut.Store(true)
		defer c.bulkOut.Store(false)
	}
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	ctl := http.NewResponseController(w)
	for left := out.Bytes; left > 0; {
		p := (*buf)[:min(left, int64(len(*buf)))]
		if _, err := io.ReadFull(out.Payload, p); err != nil {
			// The header is out: the server closes the connection after an answer
			// that is too short, which is all that can still be said.
			s.cfg.Log.Warn("sent a chunk shorter than announced", "chunk", out.N, "err", err)
			return
		}
		_ = ctl.SetWriteDeadline(time.Now().Add(writeStall))
		if _, err := w.Write(p); err != nil {
			return
		}
		left -= int64(len(p))
	}
	_ = ctl.SetWriteDeadline(time.Time{})
}
