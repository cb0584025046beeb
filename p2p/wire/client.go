package wire

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
	"seeder/p2p/swarm"
	"seeder/p2p/trust"
	"seeder/store/chunk"
)

// ClientConfig is what a client needs. Sent and Received count bytes, TLS
// included. DialContext nil dials TCP.
type ClientConfig struct {
	Credentials    *trust.Credentials
	Limiter        *Limiter
	Log            *slog.Logger
	Sent, Received func(bytes int)
	DialContext    func(ctx context.Context, network, addr string) (net.Conn, error)
	// Proved hears of the identity behind each answer. It may be nil.
	Proved func(id trust.NodeID)
}

const (
	dialTimeout = 5 * time.Second
	// answerTimeout bounds the wait for the header of an answer. A chunk's may
	// wait in the other side's queue for a slot.
	answerTimeout = 10 * time.Second
	chunkTimeout  = 30 * time.Second
	// beginTimeout bounds the time until an answer begins, sending included.
	beginTimeout = chunkTimeout + 2*dialTimeout
	// smallTimeout bounds a small answer in all: 16 MiB over a poor link.
	smallTimeout = 5 * time.Minute
)

// Client talks to other nodes' transfer ports. It implements swarm.Transport and
// is safe for concurrent use.
type Client struct {
	cfg     ClientConfig
	control *http.Client // small answers and have streams
	bulk    *http.Client // chunks
	fresh   *http.Client // of doctor: a connection for each request, small handshakes, no limit
	conns   connSet
}

var _ swarm.Transport = (*Client)(nil)

// NewClient returns a client. It connects when it is asked something.
func NewClient(cfg ClientConfig) *Client {
	cfg.Limiter, cfg.Log, cfg.Sent, cfg.Received = defaults(cfg.Limiter, cfg.Log, cfg.Sent, cfg.Received)
	if cfg.DialContext == nil {
		cfg.DialContext = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext
	}
	c := &Client{cfg: cfg}
	c.control = &http.Client{Transport: c.transport(answerTimeout, 4<<10), CheckRedirect: stay}
	c.bulk = &http.Client{Transport: c.transport(chunkTimeout, 64<<10), CheckRedirect: stay}
	fresh := c.transport(answerTimeout, 4<<10)
	fresh.DialContext, fresh.DisableKeepAlives = cfg.DialContext, true
	// The default's share of a key is as large as a packet: where those are lost, the
	// handshake would be, too, and a closed port would look the same.
	fresh.TLSClientConfig.CurvePreferences = []tls.CurveID{tls.X25519}
	c.fresh = &http.Client{Transport: fresh, CheckRedirect: stay}
	return c
}

func (c *Client) transport(answer time.Duration, buffer int) *http.Transport {
	return &http.Transport{
		DialContext:            c.dial,
		TLSClientConfig:        c.cfg.Credentials.ClientConfig(protocolHTTP),
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  answer,
		MaxResponseHeaderBytes: 16 << 10,
		MaxIdleConnsPerHost:    16, // the most requests that a fetch has under way (swarm)
		MaxIdleConns:           256,
		IdleConnTimeout:        time.Minute,
		DisableCompression:     true,
		ReadBufferSize:         buffer,
		WriteBufferSize:        4 << 10,
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

func (c *Client) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	began := time.Now()
	nc, err := c.cfg.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	var out *conn
	out = newConn(nc, c.cfg.Limiter, c.cfg.Sent, c.cfg.Received, func() { c.conns.remove(out) })
	c.conns.add(out)
	out.trip = time.Since(began) // the handshake of TCP is one trip there and back
	return out, nil
}

// stay follows no redirect: a peer answers for itself alone.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// CloseBefore closes the connections that were opened before t, whatever is on its
// way on them.
func (c *Client) CloseBefore(t time.Time) { c.conns.closeBefore(t) }

// CloseTo closes the connections to a node that is not at addr, host:port, any more: what
// is on its way on them is asked for again.
func (c *Client) CloseTo(addr string) { c.conns.closeTo(addr) }

// Close drops the idle connections; requests in flight end with their contexts.
func (c *Client) Close() {
	c.control.CloseIdleConnections()
	c.bulk.CloseIdleConnections()
}

// do sends a request and checks the status. The caller closes the body, which
// ends with errSilent where nothing comes for maxSilence.
func (c *Client) do(ctx context.Context, hc *http.Client, method, addr, path string, body []byte) (*http.Response, error) {
	if err := checkAddress(addr); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	watch := &watched{ctx: ctx, cancel: cancel}
	watch.timer = time.AfterFunc(beginTimeout, func() { cancel(errSilent) })
	req, err := http.NewRequestWithContext(ctx, method, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		watch.stop()
		return nil, err
	}
	// Everything that is asked for may be asked for again: net/http does so by itself
	// where a connection that was idle turns out to be closed. The entry is not sent.
	req.Header["Idempotency-Key"] = nil
	resp, err := hc.Do(req)
	if err != nil {
		err = watch.explain(err)
		watch.stop()
		return nil, err
	}
	if hc == c.control && resp.TLS != nil && c.cfg.Proved != nil {
		if id, err := trust.PeerID(*resp.TLS); err == nil {
			c.cfg.Proved(id)
		}
	}
	watch.timer.Reset(maxSilence)
	watch.ReadCloser, resp.Body = resp.Body, watch
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	resp.Body.Close()
	return nil, refusal(resp)
}

// watched is the body of an answer that must not stall. One goroutine uses it.
type watched struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

// Read implements io.Reader.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if n > 0 {
		w.timer.Reset(maxSilence)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = w.explain(err)
	}
	return n, err
}

// Close implements io.Closer.
func (w *watched) Close() error {
	defer w.stop()
	return w.ReadCloser.Close()
}

func (w *watched) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// explain says what is behind an error of net/http.
func (w *watched) explain(err error) error {
	if errors.Is(context.Cause(w.ctx), errSilent) {
		return errSilent
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // the URL says nothing that the caller does not
	}
	return trust.Explain(err)
}

// refusal is the error that an answer stands for.
func refusal(resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusNotFound:
		return errNotFound
	case http.StatusNoContent:
		return swarm.ErrNothing
	case http.StatusConflict:
		return swarm.ErrCrowded
	case http.StatusServiceUnavailable:
		ms, _ := strconv.ParseInt(resp.Header.Get(headerRetry), 10, 32)
		after := min(max(time.Duration(ms)*time.Millisecond, minRetryAfter), maxRetryAfter)
		return &swarm.BusyError{RetryAfter: after}
	}
	return fmt.Errorf("unexpected answer %s", resp.Status)
}

// errNotFound is both words for "not here": the swarm's and the file's.
var errNotFound = fmt.Errorf("%w (%w)", swarm.ErrNotHeld, fs.ErrNotExist)

// small reads an answer of at most limit bytes.
func (c *Client) small(ctx context.Context, method, addr, path string, body []byte, limit int64) ([]byte, error) {
	return c.smallBy(ctx, c.control, method, addr, path, body, limit)
}

func (c *Client) smallBy(ctx context.Context, hc *http.Client, method, addr, path string, body []byte, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	resp, err := c.do(ctx, hc, method, addr, path, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.ContentLength > limit {
		return nil, fmt.Errorf("answer of %d bytes, at most %d", resp.ContentLength, limit)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("answer of more than %d bytes", limit)
	}
	return b, err
}

// State asks a node for its column of the matrix. With the versions of refs the node may
// hold its answer back until it has settled them. read gets the answer, of at most limit
// bytes.
func (c *Client) State(ctx context.Context, addr string, refs []string, versions []uint64, limit int64, read func(io.Reader) error) error {
	path, values := "/v1/state", url.Values{"ref": refs}
	for _, v := range versions {
		values.Add("settled", strconv.FormatUint(v, 10))
	}
	if q := values.Encode(); 0 < len(q) && len(q) <= maxQueryBytes {
		path += "?" + q
	}
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	resp, err := c.do(ctx, c.control, http.MethodGet, addr, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if limit = min(limit, MaxStateBytes); resp.ContentLength > limit {
		return fmt.Errorf("answer of %d bytes, at most %d", resp.ContentLength, limit)
	}
	return read(&capped{r: resp.Body, left: limit, limit: limit})
}

// capped is a reader of at most left bytes; more is an error.
type capped struct {
	r           io.Reader
	left, limit int64
}

// Read implements io.Reader.
func (c *capped) Read(p []byte) (int, error) {
	n, err := c.r.Read(p[:min(int64(len(p)), c.left+1)])
	if c.left -= int64(n); c.left < 0 {
		return 0, fmt.Errorf("answer of more than %d bytes", c.limit)
	}
	return n, err
}

// Catalog asks a node for the records in which its catalog differs from b.
func (c *Client) Catalog(ctx context.Context, addr string, b catalog.Buckets) ([]catalog.Record, error) {
	out, err := c.small(ctx, http.MethodPost, addr, "/v1/catalog", b.Encode(), MaxCatalogBytes)
	if err != nil {
		return nil, fmt.Errorf("pull the catalog of %s: %w", addr, err)
	}
	records, bad, err := decodeRecords(out)
	if bad > 0 {
		c.cfg.Log.Warn("rejected announcements with an invalid signature", "address", addr, "records", bad)
	}
	if err != nil {
		return nil, fmt.Errorf("pull the catalog of %s: %w", addr, err)
	}
	return records, nil
}

// Seed fetches a seed index and checks that it is the one asked for.
func (c *Client) Seed(ctx context.Context, addr string, seed digest.Digest) ([]byte, error) {
	b, err := c.small(ctx, http.MethodGet, addr, "/v1/seeds/"+seed.String(), nil, MaxSeedBytes)
	if err != nil {
		return nil, fmt.Errorf("fetch seed index %s from %s: %w", seed, addr, err)
	}
	if digest.FromBytes(b) != seed {
		return nil, fmt.Errorf("fetch seed index %s from %s: other bytes came", seed, addr)
	}
	return b, nil
}

// Register books self with an owner of seed and returns other peers.
func (c *Client) Register(ctx context.Context, addr string, seed digest.Digest, self swarm.Peer) ([]swarm.Peer, error) {
	b, err := json.Marshal(peerJSON(self))
	if err != nil {
		return nil, err
	}
	out, err := c.small(ctx, http.MethodPost, addr, "/v1/swarms/"+seed.String()+"/peers", b, maxPeersBytes)
	if err != nil {
		return nil, err
	}
	return decodePeers(out)
}

// Probe tells whether both sides accept each other: nil, trust.ErrSecretsDiffer,
// or what the network says. The client's side of a TLS 1.3 handshake is done
// before the server has looked at its certificate, so only an answer tells; any
// will do.
func (c *Client) Probe(ctx context.Context, addr string) error {
	_, err := c.small(ctx, http.MethodHead, addr, "/", nil, 0)
	if errors.Is(err, errNotFound) {
		return nil
	}
	return err
}

// Chunk implements swarm.Transport.
func (c *Client) Chunk(ctx context.Context, p swarm.Peer, seed digest.Digest, n int, buf swarm.Buffer) (swarm.Reply, error) {
	path := "/v1/swarms/" + seed.String() + "/chunks/" + strconv.Itoa(n)
	r, err := c.frame(ctx, http.MethodGet, p.Address, path, nil, buf)
	if err == nil && r.Chunk != n {
		err = fmt.Errorf("chunk %d came where %d was asked for", r.Chunk, n)
	}
	return r, err
}

// Next implements swarm.Transport.
func (c *Client) Next(ctx context.Context, p swarm.Peer, seed digest.Digest, want chunk.Bitmap, buf swarm.Buffer) (swarm.Reply, error) {
	path := "/v1/swarms/" + seed.String() + "/chunks"
	r, err := c.frame(ctx, http.MethodPost, p.Address, path, want.AppendBinary(nil, 64*len(want)), buf)
	if err == nil && !want.Has(r.Chunk) {
		err = fmt.Errorf("got chunk %d, which was not requested", r.Chunk)
	}
	return r, err
}

// frame reads a chunk's answer into what buf lends.
func (c *Client) frame(ctx context.Context, method, addr, path string, body []byte, buf swarm.Buffer) (swarm.Reply, error) {
	var trip time.Duration
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if c := below(info.Conn); c != nil {
			c.bulkIn.Store(true) // from here on; the handshake is done
			trip = c.trip
		}
	}})
	resp, err := c.do(ctx, c.bulk, method, addr, path, body)
	if err != nil {
		return swarm.Reply{}, err
	}
	defer resp.Body.Close()
	n, err := parseChunk(resp.Header.Get(headerChunk))
	if err != nil {
		return swarm.Reply{}, err
	}
	enc, err := parseEncoding(resp.Header.Get(headerEncoding))
	if err != nil {
		return swarm.Reply{}, err
	}
	if resp.ContentLength < 0 || resp.ContentLength > chunk.MaxBytes {
		return swarm.Reply{}, fmt.Errorf("frame of %d bytes, at most %d", resp.ContentLength, chunk.MaxBytes)
	}
	in := buf(n, resp.ContentLength)
	if in == nil {
		return swarm.Reply{}, fmt.Errorf("frame of %d bytes is longer than the chunk", resp.ContentLength)
	}
	if err := in.ReadFull(resp.Body); err != nil {
		return swarm.Reply{}, fmt.Errorf("read the frame of chunk %d: %w", n, err)
	}
	from, err := trust.PeerID(*resp.TLS)
	if err != nil {
		return swarm.Reply{}, err
	}
	return swarm.Reply{Chunk: n, Encoding: enc, Payload: in.Payload, From: string(from), Trip: trip}, nil
}

// below is the connection that TLS goes over; nil where it is not one of this package.
func below(c net.Conn) *conn {
	if t, ok := c.(*tls.Conn); ok {
		if c, ok := t.NetConn().(*conn); ok {
			return c
		}
	}
	return nil
}

// FollowHaves implements swarm.Transport.
func (c *Client) FollowHaves(ctx context.Context, p swarm.Peer, seed digest.Digest, chunks int, fn func(swarm.Haves)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(maxSilence, func() { cancel(errSilent) })
	defer silence.Stop()
	err := c.followHaves(ctx, p, seed, chunks, func(h swarm.Haves, ok bool) {
		silence.Reset(maxSilence)
		if ok {
			fn(h)
		}
	})
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

var errSilent = fmt.Errorf("no data for %s", maxSilence)

func (c *Client) followHaves(ctx context.Context, p swarm.Peer, seed digest.Digest, chunks int, fn func(swarm.Haves, bool)) error {
	resp, err := c.do(ctx, c.control, http.MethodGet, p.Address, "/v1/swarms/"+seed.String()+"/haves", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	for first := true; ; {
		h, ok, err := readHaves(r, chunks)
		if err != nil {
			return fmt.Errorf("have stream: %w", err)
		}
		if first && ok && h.Map == nil {
			return errors.New("have stream does not begin with the map")
		}
		first = first && !ok
		fn(h, ok)
	}
}
