package swarm

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

// dripping is a transport whose frames come byte by byte, ten a second. The first two
// break off.
type dripping struct {
	breaksAt int64 // bytes of the first two frames
	asked    *atomic.Int64
}

func (d dripping) FollowHaves(ctx context.Context, _ Peer, _ digest.Digest, chunks int, fn func(Haves)) error {
	fn(Haves{Map: everything(chunks), Complete: true})
	<-ctx.Done()
	return ctx.Err()
}

func (d dripping) Chunk(ctx context.Context, _ Peer, _ digest.Digest, n int, buf Buffer) (Reply, error) {
	in := buf(n, pieceBytes)
	if in == nil {
		return Reply{}, errors.New("nothing was lent")
	}
	r := &drip{ctx: ctx, left: piece(n)}
	if d.asked.Add(1) <= 2 {
		r.left = r.left[:d.breaksAt]
	}
	if err := in.ReadFull(r); err != nil {
		return Reply{}, err
	}
	return Reply{Chunk: n, Encoding: chunk.Raw, Payload: in.Payload}, nil
}

func (d dripping) Next(ctx context.Context, p Peer, seed digest.Digest, want chunk.Bitmap, buf Buffer) (Reply, error) {
	return d.Chunk(ctx, p, seed, want.Last(), buf)
}

// drip reads ten bytes a second.
type drip struct {
	ctx  context.Context
	left []byte
}

func (d *drip) Read(p []byte) (int, error) {
	if len(d.left) == 0 {
		return 0, io.EOF
	}
	select {
	case <-time.After(100 * time.Millisecond):
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	}
	p[0], d.left = d.left[0], d.left[1:]
	return 1, nil
}

// TestProgressWithinChunks: what has come of chunks under way counts. When one breaks off
// and is asked for again, the figures wait and do not go back, and they reach the whole
// only when everything is verified.
func TestProgressWithinChunks(t *testing.T) {
	for name, breaksAt := range map[string]int64{"whole": pieceBytes, "breaks off": pieceBytes * 3 / 4} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				chunks := newMemChunks(1, false)
				var states []Progress
				err := Fetch(t.Context(), FetchConfig{Seed: simSeed, Chunks: chunks, Finder: allPeers(1),
					Transport: dripping{breaksAt, new(atomic.Int64)},
					Observe:   Observer{State: func(p Progress) { states = append(states, p) }}})
				if err != nil {
					t.Fatal(err)
				}
				last, within, jump := Progress{}, 0, int64(0)
				for _, p := range states {
					if p.Bytes < last.Bytes || p.Received < last.Received || p.Bytes >= pieceBytes {
						t.Errorf("%+v after %+v", p, last)
					}
					if p.Bytes%pieceBytes != 0 {
						within++
					}
					jump, last = max(jump, p.Bytes-last.Bytes), p
				}
				if within < 5 || jump > 24 {
					t.Errorf("%d states within a chunk, jumps of up to %d of %d bytes", within, jump, pieceBytes)
				}
			})
		})
	}
}

// TestComing: what comes of a chunk counts in raw bytes, once however many send it, and
// not once it is held; what a peer sends unasked does not count.
func TestComing(t *testing.T) {
	t.Parallel()
	e := newEngine(FetchConfig{Chunks: newMemChunks(4, false), Log: slog.New(slog.DiscardHandler), Memory: &Memory{}})
	arrive := func(asked, sent int, frame, arrived int64) {
		r := &request{chunk: asked, want: everything(4).Without(bitmapOf(4, 3)), buf: make([]byte, frame)}
		r.lend(sent).arrived.Store(arrived)
		e.requests = append(e.requests, r)
	}
	want := func(bytes int64, what string) {
		t.Helper()
		if got := e.coming(); got != bytes {
			t.Errorf("%d bytes, want %d: %s", got, bytes, what)
		}
	}
	e.requests = append(e.requests, &request{chunk: 0})
	want(0, "nothing was lent")
	arrive(0, 0, 32, 16)
	want(pieceBytes/2, "half of a frame that is compressed to a half")
	arrive(0, 0, 32, 8)
	want(pieceBytes/2, "a second one of the same chunk is behind")
	arrive(-1, 0, 32, 24)
	want(pieceBytes*3/4, "a third one is ahead")
	arrive(-1, 3, 32, 24)
	arrive(1, 2, 32, 24)
	arrive(-1, 1<<30, 32, 24)
	want(pieceBytes*3/4, "what was not asked for")
	e.todo.verify(1)
	want(pieceBytes*7/4, "one is being verified")
	for n := range 2 {
		e.standing.hold(e.cfg.Chunks.Bytes(n), e.todo.missing.Has(n))
		e.todo.verified(n, true)
	}
	want(0, "both are held")
	if e.standing.held != 2*pieceBytes || e.standing.put != 2*pieceBytes || e.todo.left != 2 {
		t.Errorf("%+v, %d missing", e.standing, e.todo.left)
	}
}

// TestStandingNeverGoesBack: what a chunk that breaks off had brought stays in the figures,
// which wait until as much has come again. Only a held chunk that is lost takes them back,
// and what peers gave never goes back.
func TestStandingNeverGoesBack(t *testing.T) {
	t.Parallel()
	chunks := newMemChunks(4, false)
	e := newEngine(FetchConfig{Chunks: chunks, Log: slog.New(slog.DiscardHandler), Memory: &Memory{}})
	want := func(shown, received int64, what string) {
		t.Helper()
		if s := e.standing; s.shown != shown || s.received != received {
			t.Errorf("%d bytes are shown, %d of them received, want %d, %d: %s", s.shown, s.received, shown, received, what)
		}
	}
	arrive := func(n int, bytes int64) {
		r := &request{chunk: n, buf: make([]byte, pieceBytes)}
		r.lend(n).arrived.Store(bytes)
		e.requests = []*request{r}
		e.standing.measure(e.coming())
	}
	arrive(0, pieceBytes*3/4)
	want(pieceBytes*3/4, pieceBytes*3/4, "three quarters of a chunk")
	e.requests = nil // it breaks off
	e.standing.measure(e.coming())
	want(pieceBytes*3/4, pieceBytes*3/4, "nothing is under way")
	arrive(1, pieceBytes/2)
	want(pieceBytes*3/4, pieceBytes*3/4, "less than that of another chunk")
	arrive(1, pieceBytes-1)
	want(pieceBytes-1, pieceBytes-1, "more than that")
	for n := range 3 {
		if ok, err := chunks.Put(t.Context(), n, chunk.Raw, piece(n)); err != nil || !ok {
			t.Fatal(ok, err)
		}
		e.standing.hold(pieceBytes, true)
		e.todo.verified(n, true)
	}
	want(pieceBytes*3, pieceBytes*3, "three chunks are held")
	arrive(3, pieceBytes)
	want(pieceBytes*4-1, pieceBytes*4, "the last chunk has come and is not verified")
	chunks.have.Clear(2)
	e.standing.recount(chunks)
	want(pieceBytes*2, pieceBytes*4, "a held chunk is lost")
}
