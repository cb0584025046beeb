package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"seeder/p2p/catalog"
	"seeder/p2p/swarm"
	"seeder/p2p/trust"
	"seeder/store/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testSeed = digest.FromString("seed")

// handler answers with what a test puts in.
type handler struct {
	seed   []byte
	recs   [][]byte
	served swarm.Served
	asked  chan swarm.Peer
}

// handlers answers everything by h.
func handlers(h interface {
	Matrix
	Catalog
	Images
	Owner
	Prober
}) Handlers {
	return Handlers{Matrix: h, Catalog: h, Images: h, Owner: h, Prober: h}
}

func (h *handler) State(_ context.Context, refs []string, versions []uint64) ([]byte, error) {
	if len(versions) > 0 {
		return fmt.Append(nil, refs, versions), nil
	}
	return []byte(strings.Join(refs, ",")), nil
}
func (h *handler) CatalogDiff(context.Context, catalog.Buckets) ([][]byte, error) {
	return h.recs, nil
}
func (h *handler) Seed(_ context.Context, d digest.Digest) ([]byte, error) {
	if h.seed == nil {
		return nil, fs.ErrNotExist
	}
	return h.seed, nil
}
func (h *handler) Swarm(_ context.Context, d digest.Digest) (swarm.Served, error) {
	if d != testSeed {
		return nil, fs.ErrNotExist
	}
	return h.served, nil
}
func (h *handler) Register(_ context.Context, _ digest.Digest, _ string, p swarm.Peer) []swarm.Peer {
	h.asked <- p
	return []swarm.Peer{{Name: "other", Address: "10.0.0.2:7951", Complete: true}}
}

// served is a swarm of canned answers.
type served struct {
	n      int
	err    error
	chunk  []byte
	short  bool // Bytes says more than there is
	done   atomic.Int32
	update chan swarm.Haves
}

func (s *served) Len() int { return s.n }
func (s *served) Haves(ctx context.Context, fn func(swarm.Haves) error) error {
	if s.err != nil {
		return s.err
	}
	m := chunk.NewBitmap(s.n)
	m.Set(1)
	if err := fn(swarm.Haves{Map: m}); err != nil {
		return err
	}
	for {
		select {
		case h, ok := <-s.update:
			if !ok {
				return nil
			}
			if err := fn(h); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
func (s *served) Chunk(_ context.Context, by swarm.Requester, n int) (swarm.Outgoing, error) {
	if s.err != nil {
		return swarm.Outgoing{}, s.err
	}
	f := chunk.Frame{Encoding: chunk.Zstd, Bytes: int64(len(s.chunk)), Payload: io.NopCloser(bytes.NewReader(s.chunk))}
	if s.short {
		f.Bytes *= 2
	}
	return swarm.Outgoing{N: n, Frame: f, Done: func() { s.done.Add(1) }}, nil
}
func (s *served) Next(ctx context.Context, by swarm.Requester, want chunk.Bitmap) (swarm.Outgoing, error) {
	for n := s.n - 1; n >= 0; n-- {
		if want.Has(n) {
			return s.Chunk(ctx, by, n)
		}
	}
	return swarm.Outgoing{}, swarm.ErrNothing
}

func identity(t testing.TB) *trust.Identity {
	t.Helper()
	id, err := trust.LoadOrCreateIdentity(filepath.Join(t.TempDir(), "id"))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func credentials(t testing.TB, secret string) *trust.Credentials {
	t.Helper()
	s, err := trust.ParseSecrets([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	c, err := trust.NewCredentials(identity(t), s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const secret = "Bw4VHCMqMTg_Rk1UW2JpcHd-hYyTmqGor7a9xMvS2eA" // as generated: a chosen one costs time

// pair is a server on loopback and a client of it.
func pair(t testing.TB, h *handler) (c *Client, addr string) {
	t.Helper()
	return serve(t, handlers(h))
}

// serve is pair with any handlers.
func serve(t testing.TB, h Handlers) (c *Client, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(ServerConfig{Credentials: credentials(t, secret), Handlers: h})
	c = NewClient(ClientConfig{Credentials: credentials(t, secret)})
	serveUntilEnd(t, s, l, c)
	return c, l.Addr().String()
}

// serveUntilEnd serves what comes to l, and closes server and client at the end of the test.
func serveUntilEnd(t testing.TB, s *Server, l net.Listener, c *Client) {
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := errors.Join(s.Close(ctx), <-ended); err != nil {
			t.Error(err)
		}
	})
}

func TestSmallAnswers(t *testing.T) {
	t.Parallel()
	rec, err := catalog.Sign(identity(t), catalog.Announcement{
		Reference: "docker.io/library/a:1", Version: 1, NodeName: "n",
		Target: ocispec.Descriptor{Digest: digest.FromString("x")}, Seed: catalog.Seed{Digest: testSeed, Size: 4},
	})
	if err != nil {
		t.Fatal(err)
	}
	forged := rec.Encode()
	forged[40] ^= 1
	h := &handler{seed: []byte("seed"), recs: [][]byte{forged, rec.Encode()}, asked: make(chan swarm.Peer, 1)}
	c, addr := pair(t, h)
	ctx := t.Context()
	var settled []byte
	err = c.State(ctx, addr, []string{"a", "b"}, []uint64{1, 22}, MaxStateBytes, func(r io.Reader) (err error) { settled, err = io.ReadAll(r); return err })
	if err != nil || string(settled) != "[a b] [1 22]" {
		t.Errorf("state of versions: %q, %v", settled, err)
	}
	if b, err := readState(ctx, c, addr, []string{"a", "b"}); err != nil || string(b) != "a,b" {
		t.Errorf("state: %q %v", b, err)
	}
	if recs, err := c.Catalog(ctx, addr, catalog.Buckets{}); err != nil || len(recs) != 1 || recs[0].Hash() != rec.Hash() {
		t.Errorf("catalog: %d records %v, want the one that verifies", len(recs), err)
	}
	if b, err := c.Seed(ctx, addr, testSeed); err != nil || string(b) != "seed" {
		t.Errorf("seed: %q %v", b, err)
	}
	if _, err := c.Seed(ctx, addr, digest.FromString("other")); err == nil || !strings.Contains(err.Error(), "other bytes") {
		t.Errorf("a seed index that is not the one asked for: %v", err)
	}
	self := swarm.Peer{Name: "me", Address: "10.0.0.1:7951"}
	peers, err := c.Register(ctx, addr, testSeed, self)
	if err != nil || len(peers) != 1 || !peers[0].Complete || <-h.asked != self {
		t.Errorf("register: %+v %v", peers, err)
	}
	if _, err := c.Register(ctx, addr, testSeed, swarm.Peer{Name: "me", Address: "nonsense"}); err == nil {
		t.Error("a registration without an address was taken")
	}
}

func TestChunks(t *testing.T) {
	t.Parallel()
	s := &served{n: 70, chunk: bytes.Repeat([]byte("chunk"), 200_000)}
	c, addr := pair(t, &handler{served: s})
	p, buf := swarm.Peer{Name: "n", Address: addr}, upTo(chunk.MaxBytes)
	r, err := c.Chunk(t.Context(), p, testSeed, 3, buf)
	if err != nil || r.Chunk != 3 || r.Encoding != chunk.Zstd || !bytes.Equal(r.Payload, s.chunk) {
		t.Fatalf("chunk: %d %d bytes %v", r.Chunk, len(r.Payload), err)
	}
	if r.Trip <= 0 || r.Trip > 5*time.Second {
		t.Errorf("a trip of %v", r.Trip)
	}
	want := chunk.NewBitmap(70)
	want.Set(5)
	want.Set(69)
	if r, err = c.Next(t.Context(), p, testSeed, want, buf); err != nil || r.Chunk != 69 {
		t.Fatalf("next: %d %v, want 69", r.Chunk, err)
	}
	if _, err := c.Chunk(t.Context(), p, testSeed, 3, upTo(100)); err == nil {
		t.Error("a frame larger than the buffer was read")
	}
	if _, err := c.Chunk(t.Context(), p, digest.FromString("other"), 3, buf); !errors.Is(err, swarm.ErrNotHeld) {
		t.Errorf("unknown seed: %v, want ErrNotHeld", err)
	}
	for deadline := time.Now().Add(5 * time.Second); s.done.Load() != 3; {
		if time.Now().After(deadline) {
			t.Fatalf("%d slots freed, want 3", s.done.Load())
		}
		time.Sleep(time.Millisecond)
	}
	for _, want := range []error{swarm.ErrNotHeld, swarm.ErrCrowded, swarm.ErrNothing} {
		s.err = fmt.Errorf("wrapped: %w", want)
		if _, err := c.Chunk(t.Context(), p, testSeed, 3, buf); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	s.err = &swarm.BusyError{RetryAfter: 70 * time.Millisecond}
	var busy *swarm.BusyError
	if _, err := c.Chunk(t.Context(), p, testSeed, 3, buf); !errors.As(err, &busy) || busy.RetryAfter != 70*time.Millisecond {
		t.Errorf("got %v, want busy for 70ms", err)
	}
}

func TestHaves(t *testing.T) {
	t.Parallel()
	s := &served{n: 100, update: make(chan swarm.Haves, 3)}
	s.update <- swarm.Haves{New: []int{99, 0, 50}}
	s.update <- swarm.Haves{New: []int{7}, Complete: true}
	close(s.update)
	c, addr := pair(t, &handler{served: s})
	var got []swarm.Haves
	err := c.FollowHaves(t.Context(), swarm.Peer{Address: addr}, testSeed, 100, func(h swarm.Haves) { got = append(got, h) })
	if !errors.Is(err, io.EOF) {
		t.Errorf("end of the stream: %v, want EOF", err)
	}
	if len(got) != 4 || !got[0].Map.Has(1) || !slices.Equal(got[1].New, []int{0, 50, 99}) || !slices.Equal(got[2].New, []int{7}) || !got[3].Complete {
		t.Errorf("got %+v", got)
	}
	s.err = swarm.ErrCrowded
	if err := c.FollowHaves(t.Context(), swarm.Peer{Address: addr}, testSeed, 100, nil); !errors.Is(err, swarm.ErrCrowded) {
		t.Errorf("crowded: %v", err)
	}
}

// TestKeepAlive: a swarm without news keeps its followers, by a keep-alive every
// 5 s (virtual time).
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := pipePair(t, &handler{served: &served{n: 100}}, Limits{}, Limits{})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		messages := 0
		err := c.FollowHaves(ctx, swarm.Peer{Address: pipeAddr}, testSeed, 100, func(swarm.Haves) { messages++ })
		if !errors.Is(err, context.DeadlineExceeded) || messages != 1 {
			t.Errorf("%v after %d messages, want to follow until the deadline and 1 message", err, messages)
		}
	})
}

// TestCloseEndsStreams: closing the server does not wait for followers, and
// again does nothing.
func TestCloseEndsStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		s := NewServer(ServerConfig{Credentials: credentials(t, secret), Handlers: handlers(&handler{served: &served{n: 100}})})
		ended := make(chan error, 2)
		go func() { ended <- s.Serve(p) }()
		c := NewClient(ClientConfig{Credentials: credentials(t, secret), DialContext: p.dial})
		defer c.Close()
		go func() {
			ended <- c.FollowHaves(t.Context(), swarm.Peer{Address: pipeAddr}, testSeed, 100, func(swarm.Haves) {})
		}()
		synctest.Wait()
		began := time.Now()
		for range 2 {
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("closing took %s", took)
		}
		for range 2 {
			if err := <-ended; err != nil && !errors.Is(err, io.EOF) {
				t.Errorf("ended with %v", err)
			}
		}
	})
}

// TestSecretsChangeWhileItRuns: what was agreed on before goes on until it is
// closed, and nobody comes in again by a secret that was taken away.
func TestSecretsChangeWhileItRuns(t *testing.T) {
	t.Parallel()
	const next = "the secret that comes after"
	mine, theirs := credentials(t, secret), credentials(t, secret)
	s := NewServer(ServerConfig{Credentials: mine, Handlers: handlers(&handler{served: &served{n: 100}})})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, ended := l.Addr().String(), make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	c := NewClient(ClientConfig{Credentials: theirs})
	defer c.Close()
	ask := func() error { _, err := readState(t.Context(), c, addr, nil); return err }
	set := func(c *trust.Credentials, text string) {
		secrets, err := trust.ParseSecrets([]byte(text))
		if err := errors.Join(err, c.SetSecrets(secrets)); err != nil {
			t.Fatal(err)
		}
	}

	followed, mapped := make(chan error, 1), make(chan struct{})
	go func() {
		followed <- c.FollowHaves(t.Context(), swarm.Peer{Address: addr}, testSeed, 100, func(swarm.Haves) { close(mapped) })
	}()
	<-mapped
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	set(mine, next)
	if err := ask(); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
	c.Close() // what is idle
	if err := ask(); !errors.Is(err, trust.ErrSecretsDiffer) {
		t.Errorf("a new connection with the old secret: %v", err)
	}
	select {
	case err := <-followed:
		t.Errorf("a stream ended at once: %v", err)
	default:
	}
	s.CloseBefore(time.Now())
	if err := <-followed; err == nil {
		t.Error("the old stream ended without an error")
	}
	set(theirs, next+"\n"+secret)
	if err := ask(); err != nil {
		t.Errorf("with the new secret: %v", err)
	}
	s.CloseBefore(time.Now().Add(-time.Hour))
	s.conns.mu.Lock()
	open := len(s.conns.open)
	s.conns.mu.Unlock()
	if open == 0 {
		t.Error("a younger connection was closed")
	}
	if err := errors.Join(s.Close(t.Context()), <-ended); err != nil {
		t.Error(err)
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	c, addr := pair(t, &handler{})
	if err := c.Probe(t.Context(), addr); err != nil {
		t.Errorf("same secret: %v", err)
	}
	other := NewClient(ClientConfig{Credentials: credentials(t, "another secret than theirs")})
	if err := other.Probe(t.Context(), addr); !errors.Is(err, trust.ErrSecretsDiffer) {
		t.Errorf("other secret: %v, want ErrSecretsDiffer", err)
	}
	if _, err := readState(t.Context(), other, addr, nil); !errors.Is(err, trust.ErrSecretsDiffer) {
		t.Errorf("request with another secret: %v, want ErrSecretsDiffer", err)
	}
	// This one accepts the server, which does not accept it.
	ahead := NewClient(ClientConfig{Credentials: credentials(t, "the secret to come, first\n"+secret)})
	if err := ahead.Probe(t.Context(), addr); !errors.Is(err, trust.ErrSecretsDiffer) {
		t.Errorf("refused by the server: %v, want ErrSecretsDiffer", err)
	}
}

// upTo lends memory for frames of at most so many bytes.
func upTo(limit int64) swarm.Buffer {
	return func(_ int, bytes int64) *swarm.Incoming {
		if bytes > limit {
			return nil
		}
		return &swarm.Incoming{Payload: make([]byte, bytes)}
	}
}
