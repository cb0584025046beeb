package store

import (
	"context"
	"runtime"
	"sync"

	"seeder/store/chunk"
)

// aheadChunks is how many chunks beyond one that was asked for are compressed in
// advance: complete nodes hand out the lowest offset first, so that the next
// peers ask for these.
const aheadChunks = 4

// ahead compresses chunks before somebody asks for them, so that an upload slot
// is not spent on that. Half of the cores do the work, at most four, until stop,
// which waits for them.
type ahead struct {
	jobs   chan aheadJob
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// aheadJob is a chunk to compress; the blob is in use until it is done.
type aheadJob struct {
	blob *blob
	at   int
}

func (a *ahead) start() {
	ctx, cancel := context.WithCancel(context.Background())
	a.jobs, a.cancel = make(chan aheadJob, 4*aheadChunks), cancel
	for range aheadWorkers(runtime.GOMAXPROCS(0)) {
		a.done.Go(func() { a.work(ctx) })
	}
}

func aheadWorkers(cores int) int { return min(max(cores/2, 1), 4) }

func (a *ahead) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-a.jobs:
			j.blob.compressAhead(ctx, j.at)
			j.blob.close()
		}
	}
}

func (a *ahead) stop() {
	a.cancel()
	a.done.Wait()
}

// want asks for the chunks from at on. What the queue has no room for is left to
// anyone who asks for it.
func (a *ahead) want(b *blob, at int) {
	for end := min(at+aheadChunks, len(b.info.Sums)); at < end; at++ {
		if !b.worthAhead(at) || !b.hold() {
			continue
		}
		select {
		case a.jobs <- aheadJob{b, at}:
		default:
			b.close()
			return
		}
	}
}

// worthAhead reports whether compressing chunk at now would save anything later.
func (b *blob) worthAhead(at int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.present && !b.full && !b.plain[at] && !b.frames.Have(at)
}

// compressAhead makes the frame of chunk at for the cache. Anyone who asks for the
// chunk itself is told what went wrong.
func (b *blob) compressAhead(ctx context.Context, at int) {
	effort, worth := b.store.work.pace.Ahead()
	if !worth || !b.worthAhead(at) {
		return
	}
	enc, _, r, err := b.frame(ctx, at, effort, false)
	if err != nil {
		b.store.cfg.Log.Debug("failed to compress ahead", "blob", b.info.Digest, "chunk", at, "err", err)
		return
	}
	r.Close()
	if enc == chunk.Zstd && !b.staged().Have(at) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.full = true
	}
}
