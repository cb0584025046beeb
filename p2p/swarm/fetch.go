package swarm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

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
	Rand      rand.Source // breaks ties between peers; a random one
}

// Observer is told what a fetch does. Each function may be nil. They are called
// one at a time from the goroutine that owns the fetch and must not block.
type Observer struct {
	// Have: chunk n is verified and staged.
	Have func(n int)
	// Received: peer gave a verified chunk of so many raw bytes, which travelled
	// as so many.
	Received func(peer string, rawBytes, wireBytes int64)
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

// Progress is where a fetch stands.
type Progress struct {
	Peers      int    // known for this swarm
	Neighbours int    // whose haves are followed
	Reason     string // why nothing comes; empty while something does
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
	if e.missing.Count() == 0 {
		return nil
	}
	cfg.Memory.fetches.Add(1)
	defer cfg.Memory.fetches.Add(-1)
	inner, cancel := context.WithCancel(ctx)
	defer e.wg.Wait()
	defer cancel()
	e.ctx = inner
	return e.run()
}

// engine is the state of one fetch. Only the goroutine in run touches it; the
// workers (one per request, chunk being verified, and followed peer, and one for
// the finder) report to it by events. wg counts them; Fetch waits for them.
type engine struct {
	cfg    FetchConfig
	log    *slog.Logger
	rng    *rand.Rand
	ctx    context.Context
	wg     sync.WaitGroup
	events chan event
	err    error // this host's own trouble

	missing   chunk.Bitmap // wanted and not held
	left      int          // how many
	free      chunk.Bitmap // missing, not asked for, not being verified
	verifying chunk.Bitmap
	asked     map[int]int // requests by chunk, without those that are overdue

	neighbours []*neighbour
	copies     []uint16                // partial neighbours that hold each chunk
	known      map[string]*known       // peers by name, neighbours or not
	lost       map[string]chunk.Bitmap // what peers held that have left us
	blames     map[string]blame        // by proved id, and by address

	requests     []*request
	puts         int
	took         durations // request to reply
	trips        durations // request to refusal: hardly more than the way there and back
	gaps         durations // between replies
	far          durations // the trips that connections know, by reply
	lastReply    time.Time
	bufBytes     int64 // of the largest chunk
	nextFind     time.Time
	finds        int // questions answered
	dry          int // questions answered since there was a useful neighbour
	finding      bool
	nextTick     time.Time
	lastChunk    time.Time // when one was verified last, or the fetch began
	lastError    string    // of a peer, for Progress
	reported     Progress
	reportedOnce bool
}

// event is a change of the state that a worker reports.
type event interface {
	apply(e *engine, now time.Time)
}

func newEngine(cfg FetchConfig) *engine {
	n := cfg.Chunks.Len()
	e := &engine{
		cfg: cfg, log: cfg.Log.With("seed", cfg.Seed), rng: newRand(cfg.Rand),
		events:    make(chan event, 64),
		verifying: chunk.NewBitmap(n),
		asked:     map[int]int{},
		copies:    make([]uint16, n),
		known:     map[string]*known{},
		lost:      map[string]chunk.Bitmap{},
		blames:    map[string]blame{},
		missing:   chunk.NewBitmap(n),
	}
	e.readHeld()
	e.free = e.missing.Clone()
	e.missing.Both(e.missing, func(i int) bool {
		e.bufBytes = max(e.bufBytes, cfg.Chunks.Bytes(i))
		return true
	})
	return e
}

// readHeld reads again what is held: chunks may come from elsewhere too, and what was
// held may be gone.
func (e *engine) readHeld() {
	n := e.cfg.Chunks.Len()
	wanted, have := e.cfg.Chunks.Wanted(), e.cfg.Chunks.Have()
	for i := range n {
		if wanted.Has(i) && !have.Has(i) {
			e.missing.Set(i)
		} else {
			e.missing.Clear(i)
		}
	}
	e.left = e.missing.Count()
}

// run applies events until nothing is missing. Each turn asks for what can be
// asked for now and sleeps until an event or the next deadline: there is always
// one, and none is in the past, so nothing spins.
func (e *engine) run() error {
	now := time.Now()
	e.nextTick, e.lastChunk, e.nextFind = now.Add(tickEvery), now, now
	timer := time.NewTimer(0)
	defer timer.Stop()
	for e.left > 0 && e.err == nil {
		wake := e.turn(now)
		timer.Reset(max(wake.Sub(now), minSleep))
		select {
		case ev := <-e.events:
			now = time.Now()
			ev.apply(e, now)
		case <-timer.C:
			now = time.Now()
		case <-e.ctx.Done():
			return fmt.Errorf("fetch %s: %w", e.cfg.Seed, context.Cause(e.ctx))
		}
		e.drain(now)
	}
	if e.err != nil {
		return fmt.Errorf("fetch %s: %w", e.cfg.Seed, e.err)
	}
	return nil
}

const (
	// tickEvery is how often a fetch checks its neighbours and its progress.
	tickEvery = time.Second
	minSleep  = time.Millisecond
)

// drain applies what has come in the meantime, so that a burst of haves costs
// one turn.
func (e *engine) drain(now time.Time) {
	for range cap(e.events) {
		select {
		case ev := <-e.events:
			ev.apply(e, now)
		default:
			return
		}
	}
}

// turn does what is due and returns when the next thing is.
func (e *engine) turn(now time.Time) time.Time {
	wake := e.nextTick
	if !now.Before(e.nextTick) {
		e.tick(now)
		wake = e.nextTick
	}
	wake = earlier(wake, e.find(now))
	wake = earlier(wake, e.connect(now))
	wake = earlier(wake, e.expire(now))
	wake = earlier(wake, e.ask(now))
	e.reportProgress(now)
	return wake
}

// earlier is the earlier of two times, of which zero means never.
func earlier(a, b time.Time) time.Time {
	if b.IsZero() || (!a.IsZero() && a.Before(b)) {
		return a
	}
	return b
}

// send reports an event, unless the fetch has ended.
func (e *engine) send(ctx context.Context, ev event) bool {
	select {
	case e.events <- ev:
		return true
	case <-ctx.Done():
		return false
	}
}

// refresh says anew whether chunk n may be asked for.
func (e *engine) refresh(n int) {
	if e.missing.Has(n) && !e.verifying.Has(n) && e.asked[n] == 0 {
		e.free.Set(n)
	} else {
		e.free.Clear(n)
	}
}

// start runs fn as a worker of this fetch.
func (e *engine) start(fn func()) { e.wg.Go(fn) }

// isOurs reports whether err is only that this fetch ended ctx.
func isOurs(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, context.Canceled)
}
