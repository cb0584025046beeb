package wire

import (
	"bufio"
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

func (h *handler) State(_ context.Context, refs []string) ([]byte, error) {
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
func (h *handler) Register(_ context.Context, _ digest.Digest, p swarm.Peer) []swarm.Peer {
	h.asked <- p
	return []swarm.Peer{{Name: "other", Address: "10.0.0.2:7951", Complete: true}}
}

// served is a swarm of canned answers.
type served struct {
	n      int
	err    error
	chunk  []byte
	done   atomic.Int32
	update chan swarm.Haves
}

func (s *served) Len() int { return s.n }
func (s *served) Haves(ctx context.Context, fn func(swarm.Haves) error) error {
	if s.err != nil {
		return s.err
	}
	m := swarm.NewBitmap(s.n)
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
func (s *served) Chunk(_ context.Context, peer string, n int) (swarm.Outgoing, error) {
	if s.err != nil {
		return swarm.Outgoing{}, s.err
	}
	f := swarm.Frame{Encoding: swarm.Zstd, Bytes: int64(len(s.chunk)), Payload: io.NopCloser(bytes.NewReader(s.chunk))}
	return swarm.Outgoing{N: n, Frame: f, Done: func() { s.done.Add(1) }}, nil
}
func (s *served) Next(ctx context.Context, peer string, want swarm.Bitmap) (swarm.Outgoing, error) {
	for n := s.n - 1; n >= 0; n-- {
		if want.Has(n) {
			return s.Chunk(ctx, peer, n)
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

const secret = "the secret of these two nodes"

// pair is a server on loopback and a client of it.
func pair(t testing.TB, h *handler) (c *Client, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(ServerConfig{Credentials: credentials(t, secret), Handler: h})
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	c = NewClient(ClientConfig{Credentials: credentials(t, secret)})
	t.Cleanup(func() {
		c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := errors.Join(s.Close(ctx), <-ended); err != nil {
			t.Error(err)
		}
	})
	return c, l.Addr().String()
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
	if b, err := c.State(ctx, addr, []string{"a", "b"}); err != nil || string(b) != "a,b" {
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
	p, buf := swarm.Peer{Name: "n", Address: addr}, make([]byte, swarm.MaxFrameBytes)
	r, err := c.Chunk(t.Context(), p, testSeed, 3, buf)
	if err != nil || r.Chunk != 3 || r.Encoding != swarm.Zstd || !bytes.Equal(r.Payload, s.chunk) {
		t.Fatalf("chunk: %d %d bytes %v", r.Chunk, len(r.Payload), err)
	}
	want := swarm.NewBitmap(70)
	want.Set(5)
	want.Set(69)
	if r, err = c.Next(t.Context(), p, testSeed, want, buf); err != nil || r.Chunk != 69 {
		t.Fatalf("next: %d %v, want 69", r.Chunk, err)
	}
	if _, err := c.Chunk(t.Context(), p, testSeed, 3, make([]byte, 100)); err == nil {
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
	if _, err := other.State(t.Context(), addr, nil); !errors.Is(err, trust.ErrSecretsDiffer) {
		t.Errorf("request with another secret: %v, want ErrSecretsDiffer", err)
	}
}

// TestSilentConnections: 200 connections that send nothing keep nobody out.
func TestSilentConnections(t *testing.T) {
	t.Parallel()
	c, addr := pair(t, &handler{})
	for range 200 {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := c.State(ctx, addr, nil); err != nil {
		t.Fatalf("behind 200 silent connections: %v", err)
	}
}

// TestLimits: a limit holds to within 5 % over 5 s, and a new one takes effect on
// a running transfer (virtual time).
func TestLimits(t *testing.T) {
	t.Parallel()
	for _, rate := range []int64{100 << 10, 10 << 20, 200 << 20} {
		synctest.Test(t, func(t *testing.T) {
			l := NewLimiter(Limits{UploadBytesPerSec: rate})
			near, far := net.Pipe()
			var sent atomic.Int64
			c := newConn(near, l, func(n int) { sent.Add(int64(n)) }, func(int) {}, func() {})
			go io.Copy(io.Discard, far)
			go func() {
				b := make([]byte, 1<<20)
				for {
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			}()
			measure := func(d time.Duration) float64 {
				before := sent.Load()
				time.Sleep(d)
				return float64(sent.Load()-before) / d.Seconds()
			}
			measure(time.Second) // the first burst
			if got := measure(5 * time.Second); got < 0.95*float64(rate) || got > 1.05*float64(rate) {
				t.Errorf("limit %d: %.0f bytes/s over 5 s", rate, got)
			}
			l.SetLimits(Limits{UploadBytesPerSec: rate / 2})
			measure(time.Second)
			if got := measure(5 * time.Second); got < 0.95*float64(rate)/2 || got > 1.05*float64(rate)/2 {
				t.Errorf("limit changed to %d: %.0f bytes/s over 5 s", rate/2, got)
			}
			c.Close()
			far.Close()
		})
	}
}

func FuzzReadHaves(f *testing.F) {
	m := swarm.NewBitmap(70)
	m.Set(69)
	f.Add(appendHaves(nil, swarm.Haves{Map: m, New: []int{3, 69}, Complete: true}, 70), 70)
	f.Add(appendMessage(nil, haveKeepAlive, nil), 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n < 0 || n > swarm.MaxChunks {
			return
		}
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			h, ok, err := readHaves(r, n)
			if err != nil {
				return
			}
			for _, c := range h.New {
				if c < 0 || c >= n {
					t.Fatalf("chunk %d of %d", c, n)
				}
			}
			if ok && h.Map != nil && h.Map.Count() > n {
				t.Fatalf("%d chunks of %d", h.Map.Count(), n)
			}
		}
	})
}

func FuzzDecodePeers(f *testing.F) {
	b, _ := encodePeers([]swarm.Peer{{Name: "a", Address: "10.0.0.1:1"}})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if peers, err := decodePeers(b); err == nil {
			for _, p := range peers {
				if checkAddress(p.Address) != nil || p.Name == "" {
					t.Fatalf("accepted %+v", p)
				}
			}
		}
		if p, err := decodePeer(b); err == nil && checkAddress(p.Address) != nil {
			t.Fatalf("accepted %+v", p)
		}
	})
}

func FuzzDecodeRecords(f *testing.F) {
	f.Add([]byte{1, 1})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		recs, bad, err := decodeRecords(b)
		if err == nil && len(b) > 0 && len(recs)+bad == 0 {
			t.Fatal("bytes without a record and without an error")
		}
	})
}

func FuzzPath(f *testing.F) {
	f.Add("sha256:"+strings.Repeat("a", 64), "12")
	f.Fuzz(func(t *testing.T, d, n string) {
		if got, err := parseDigest(d); err == nil && len(got) != 71 {
			t.Fatalf("accepted %q", d)
		}
		if got, err := parseChunk(n); err == nil && (got < 0 || got >= swarm.MaxChunks) {
			t.Fatalf("accepted %q", n)
		}
	})
}
