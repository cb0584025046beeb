package swarm

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

// FetchConfig says what to fetch and with what.
type FetchConfig struct {
	Seed      digest.Digest
	Chunks    Chunks
	Transport Transport
	Finder    Finder
	Self      string // this node's name: it is never its own peer
	Log       *slog.Logger
	Observe   Observer
	Memory    *Memory     // for frames, shared by the fetches of a node; one of its own
	Hold      *Hold       // chunks that are not asked for now; nil: all that are missing are
	Small     int64       // bytes: who misses no more does without have streams at first (SmallBytes); 0: nobody
	Rand      rand.Source // breaks ties between peers; a random one
}

// Observer is told what a fetch does. Each function may be nil. They are called
// one at a time from the goroutine that owns the fetch and must not block.
type Observer struct {
	// Have: chunk n is verified and staged.
	Have func(n int)
	// Received: peer gave chunk n, which is verified, of so many raw bytes, which
	// travelled as so many.
	Received func(n int, peer string, rawBytes, wireBytes int64)
	// Duplicate: a chunk came that was here already.
	Duplicate func(peer string, wireBytes int64)
	// Refused: peer gave no chunk, for one of Refusals.
	Refused func(peer, reason string)
	// BadChunk: what came from peer as chunk n is not that. id is who sent it, as its
	// connection proved; that node is not asked for a while.
	BadChunk func(peer, id string, n int)
	// State: the progress is another than the last time.
	State func(Progress)
}

// Fetch gets every wanted chunk that is not held from peers. It returns nil once
// all are held, and keeps trying while there are no peers, until ctx ends. Any
// other error is this host's own (Chunks.Put failed). All its goroutines have
// ended when it returns.
func Fetch(ctx context.Context, cfg FetchConfig) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if n := cfg.Chunks.Len(); n < 0 || n > chunk.MaxChunks {
		return fmt.Errorf("fetch %s: %d chunks, at most %d", cfg.Seed, n, chunk.MaxChunks)
	}
	if cfg.Memory == nil {
		cfg.Memory = &Memory{}
	}
	e := newEngine(cfg)
	if e.todo.missing.Count() == 0 {
		return nil
	}
	cfg.Memory.fetches.Add(1)
	defer cfg.Memory.fetches.Add(-1)
	inner, cancel := context.WithCancel(ctx)
	defer e.workers.wg.Wait()
	defer cancel()
	e.workers.ctx = inner
	return e.run()
}
