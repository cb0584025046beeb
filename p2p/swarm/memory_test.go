package swarm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

// large are 1,000 chunks of the largest size, none held.
type large struct{ *memChunks }

func (large) Bytes(int) int64 { return chunk.MaxBytes }

// stalled is a transport whose frames never end: each takes its memory and waits.
type stalled struct{ lent *atomic.Int64 }

func (s stalled) FollowHaves(ctx context.Context, _ Peer, _ digest.Digest, chunks int, fn func(Haves)) error {
	fn(Haves{Map: everything(chunks), Complete: true})
	<-ctx.Done()
	return ctx.Err()
}

func (s stalled) Chunk(ctx context.Context, _ Peer, _ digest.Digest, _ int, buf Buffer) (Reply, error) {
	// As large as the chunk, without touching so much memory in a test.
	if p := buf(0, 1); p == nil {
		return Reply{}, errors.New("nothing was lent")
	}
	s.lent.Add(chunk.MaxBytes)
	defer s.lent.Add(-chunk.MaxBytes)
	<-ctx.Done()
	return Reply{}, ctx.Err()
}

func (s stalled) Next(ctx context.Context, p Peer, seed digest.Digest, _ chunk.Bitmap, buf Buffer) (Reply, error) {
	return s.Chunk(ctx, p, seed, 0, buf)
}

type allPeers int

func (n allPeers) Peers(context.Context, digest.Digest, bool) ([]Peer, error) {
	var out []Peer
	for i := range int(n) {
		out = append(out, Peer{Name: fmt.Sprint("p", i), Complete: true})
	}
	return out, nil
}

// TestMemoryIsShared: however many fetches have requests that take memory and do
// not end, together they take about what one may.
func TestMemoryIsShared(t *testing.T) {
	for fetches, most := range map[int]int64{1: 12, 3: 3 * (minRequests + maxStuck)} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			var memory Memory
			var lent atomic.Int64
			var wg sync.WaitGroup
			for range fetches {
				wg.Go(func() {
					_ = Fetch(ctx, FetchConfig{
						Seed: simSeed, Chunks: large{newMemChunks(1000, false)}, Transport: stalled{&lent},
						Finder: allPeers(20), Memory: &memory,
					})
				})
			}
			peak := int64(0)
			for range 300 {
				settle(time.Second)
				peak = max(peak, lent.Load())
			}
			cancel()
			wg.Wait()
			if peak == 0 || peak > most*chunk.MaxBytes {
				t.Errorf("%d fetches took %d frames of 4 MiB, want at most %d", fetches, peak/chunk.MaxBytes, most)
			}
		})
	}
}
