package swarm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// engine is the state of one fetch. Only the goroutine in run touches it; the workers
// report to it by events. What changes together is together: what is to fetch, who is
// there, what is held against whom, how fast answers come, when to look for more.
type engine struct {
	cfg     FetchConfig
	log     *slog.Logger
	rng     *rand.Rand
	workers workers
	err     error // this host's own trouble

	todo     todo
	peers    peers
	blames   blames
	search   search
	pace     pace
	status   status
	standing standing

	requests []*request
	puts     int // chunks being verified
	nextTick time.Time
}

// workers are the goroutines of a fetch: one per request, chunk being verified, and
// followed peer, and one for the finder. Fetch waits for them.
type workers struct {
	ctx    context.Context // theirs; ends with the fetch
	wg     sync.WaitGroup
	events chan event // what they report
}

// event is a change of the state that a worker reports.
type event interface {
	apply(e *engine, now time.Time)
}

func newEngine(cfg FetchConfig) *engine {
	e := &engine{
		cfg: cfg, log: cfg.Log.With("seed", cfg.Seed), rng: newRand(cfg.Rand),
		workers: workers{events: make(chan event, 64)},
		todo:    newTodo(cfg.Chunks, cfg.Small, cfg.Hold),
		peers:   newPeers(cfg.Chunks.Len()),
		blames:  blames{},
	}
	e.standing.recount(cfg.Chunks)
	return e
}

// run applies events until nothing is missing. Each turn asks for what can be
// asked for now and sleeps until an event or the next deadline: there is always
// one, and none is in the past, so nothing spins.
func (e *engine) run() error {
	now := time.Now()
	e.nextTick, e.status.lastChunk, e.search.next, e.search.begun = now.Add(tickEvery), now, now, now
	timer := time.NewTimer(0)
	defer timer.Stop()
	for e.todo.left > 0 && e.err == nil {
		wake := e.turn(now)
		timer.Reset(max(wake.Sub(now), minSleep))
		select {
		case ev := <-e.workers.events:
			now = time.Now()
			ev.apply(e, now)
		case <-e.todo.reheld:
			now = time.Now()
			e.reread()
		case <-timer.C:
			now = time.Now()
		case <-e.workers.ctx.Done():
			return fmt.Errorf("fetch %s: %w", e.cfg.Seed, context.Cause(e.workers.ctx))
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
	for range cap(e.workers.events) {
		select {
		case ev := <-e.workers.events:
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
func (w *workers) send(ctx context.Context, ev event) bool {
	select {
	case w.events <- ev:
		return true
	case <-ctx.Done():
		return false
	}
}

// start runs fn as a worker of this fetch.
func (w *workers) start(fn func()) { w.wg.Go(fn) }

// isOurs reports whether err is only that this fetch ended ctx.
func isOurs(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, context.Canceled)
}

// chance is a random duration below d.
func (e *engine) chance(d time.Duration) time.Duration {
	return time.Duration(e.rng.Int64N(int64(d)))
}
