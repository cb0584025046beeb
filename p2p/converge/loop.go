package converge

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"seeder/internal/wait"
	"seeder/p2p/catalog"
	"seeder/p2p/report"
)

const (
	// maxFetches is how many images arrive at once. The frames on their way share
	// 48 MiB (swarm.Memory), decoded chunks are as many as there are cores.
	maxFetches = 3
	// maxChecks is how many references are compared with the store at once.
	maxChecks = 4
	// tick bounds how long a lost hint goes unnoticed.
	tick = 10 * time.Second
	// storeSettle gathers the events of one burst (an import makes several).
	storeSettle = 200 * time.Millisecond
)

// Loop compares the catalog with this host's images, forever: events are hints that
// wake it, the comparison is the truth. New starts nothing; Run runs it.
type Loop struct {
	cfg       Config
	keep      *keep
	wake      wait.Signal
	back      atomic.Bool  // containerd has come back since the loop last looked
	published atomic.Bool  // this host has published a record since the loop last looked
	results   chan jobDone // from the jobs
	checks    *semaphore.Weighted
	fetches   *semaphore.Weighted
	jobs      sync.WaitGroup

	// Only the goroutine of Run touches these.
	tasks   map[string]*entry // by reference
	running int
	auto    auto
	took    time.Duration // the last comparison with the store
}

// entry is a task with what it is about.
type entry struct {
	task   task
	rec    catalog.Record
	cancel context.CancelCauseFunc // of the running job
}

// jobDone is a finished job's word to the loop.
type jobDone struct {
	rec     catalog.Record
	outcome Outcome
}

// New returns a loop that does nothing yet.
func New(cfg Config) *Loop {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Loop{
		cfg: cfg, keep: newKeep(cfg), tasks: map[string]*entry{},
		wake: wait.NewSignal(), results: make(chan jobDone),
		checks: semaphore.NewWeighted(maxChecks), fetches: semaphore.NewWeighted(maxFetches),
	}
}

// Wake has the loop look at everything soon.
func (l *Loop) Wake() { l.wake.Set() }

// Recovered says that containerd has come back: what failed is tried at once, and what
// was ready is checked.
func (l *Loop) Recovered() {
	l.back.Store(true)
	l.Wake()
}

// Published says that this host has published a record. The version before is kept soon,
// whether or not the job of the new record has ended already: nothing but its lease keeps
// containerd's garbage collection from it. Published waits for nothing.
func (l *Loop) Published() {
	l.keep.changed()
	l.published.Store(true)
	l.Wake()
}

// Tend keeps and releases earlier versions where something has changed, and every ten
// minutes. It is called now and then.
func (l *Loop) Tend(ctx context.Context, now time.Time) { l.keep.tend(ctx, now) }

// Run converges until ctx ends, and waits for its jobs.
func (l *Loop) Run(ctx context.Context) {
	l.auto = newAuto(l.cfg, time.Now())
	defer l.drain()
	changes := l.cfg.Store.Changes(ctx)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var settled time.Time // when the store is looked at for what an event told; zero: nothing did
	for {
		l.cfg.Beat()
		select {
		case <-ctx.Done():
			return
		case done := <-l.results:
			l.jobEnded(ctx, done)
		case <-l.wake:
			if l.published.CompareAndSwap(true, false) {
				l.jobs.Go(func() { l.keep.previous(ctx) })
			}
		case _, ok := <-changes:
			if !ok {
				changes = nil
				continue
			}
			if settled.IsZero() { // events that go on and on put nothing off
				wait := min(max(storeSettle, 9*l.took), tick) // looks take a tenth of the time
				settled = time.Now().Add(wait)
				timer.Reset(wait)
			}
			continue
		case now := <-timer.C:
			if !now.Before(settled) {
				settled = time.Time{}
			}
			l.compareStore(ctx)
		case <-l.auto.ended:
			l.compareStore(ctx)
		}
		wait := l.pass(ctx, time.Now())
		if !settled.IsZero() {
			wait = min(wait, max(0, time.Until(settled)))
		}
		timer.Reset(wait)
	}
}

// drain waits for the jobs after the loop has ended, so that none is left writing to
// results.
func (l *Loop) drain() {
	l.auto.drain()
	for ; l.running > 0; l.running-- {
		<-l.results
	}
	l.jobs.Wait()
}

// compareStore tells the tasks how the store differs from what was found before.
func (l *Loop) compareStore(ctx context.Context) {
	if len(l.tasks) == 0 && !l.cfg.autoOn() {
		return
	}
	defer func(begun time.Time) { l.took = time.Since(begun) }(time.Now())
	askCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	have, err := l.cfg.Store.List(askCtx)
	if err != nil {
		return // the health watch says so, and marks everything once it is back
	}
	now := time.Now() // what a job finds out from here on is newer
	for ref, t := range l.tasks {
		if t.rec.Announcement().Withdrawn {
			continue
		}
		if kind, ok := l.observed(askCtx, ref, t, have[ref]); ok {
			l.apply(ctx, t, event{kind: kind}, now)
		}
	}
	l.auto.announceNew(ctx, have, now)
}

// observed is what the store says of one reference that is news to its task.
func (l *Loop) observed(ctx context.Context, ref string, t *entry, have digest.Digest) (eventKind, bool) {
	target := t.rec.Announcement().Target.Digest
	switch t.task.state {
	case ready:
		switch {
		case have == "":
			return absent, true
		case have != target || !l.cfg.Store.Intact(ctx, ref):
			return differs, true
		}
	case removed:
		return present, have == target
	case replaced, foreign: // that it differs is known, and why
		if !t.task.leftKnown {
			t.task.left, t.task.leftKnown = have, true
		}
		return differs, have != t.task.left
	}
	return 0, false
}

// pass looks at each announcement once and returns how long nothing needs to be
// looked at.
func (l *Loop) pass(ctx context.Context, now time.Time) time.Duration {
	if l.back.CompareAndSwap(true, false) {
		for _, t := range l.tasks {
			l.apply(ctx, t, event{kind: recovered}, now)
		}
	}
	wait := tick
	if early := l.auto.since.Add(autoDelay).Sub(now); early > 0 && l.cfg.autoOn() {
		wait = min(wait, early) // what is here already is looked at then
	}
	seen := make(map[string]bool)
	for _, rec := range l.cfg.Catalog.All() {
		a := rec.Announcement()
		seen[a.Reference] = true
		t := l.tasks[a.Reference]
		if t == nil {
			t = &entry{}
			l.tasks[a.Reference] = t
		}
		if t.rec.Hash() != rec.Hash() {
			l.supersede(ctx, t, rec, now)
		}
		if restores(t.task.state) && l.cfg.Seeds.Lost(a.Seed.Digest) {
			l.apply(ctx, t, event{kind: differs}, now)
		}
		l.apply(ctx, t, event{kind: looked}, now)
		if d, ever := t.task.wait(now); ever {
			wait = min(wait, max(d, time.Millisecond))
		}
	}
	for ref, t := range l.tasks {
		if !seen[ref] {
			l.apply(ctx, t, event{kind: forgotten}, now)
		}
	}
	return wait
}

// supersede gives a task another record, which is the newest of its reference.
func (l *Loop) supersede(ctx context.Context, t *entry, rec catalog.Record, now time.Time) {
	t.rec = rec
	a := rec.Announcement()
	e := event{kind: announced, of: rec.Hash()}
	if a.Withdrawn {
		e.kind = withdrawn
	}
	l.apply(ctx, t, e, now)
	l.cfg.Column.Begin(a)
}

// apply has a task take an event, and does what comes of it.
func (l *Loop) apply(ctx context.Context, t *entry, e event, now time.Time) {
	e.random = rand.Float64()
	heeded := true
	if e.kind == absent {
		heeded = l.cfg.Keeper.HeedsPins()
		e.pinned = l.cfg.Pinned && heeded
	}
	before := t.task.state
	var do action
	t.task, do = next(t.task, e, now)
	a := t.rec.Announcement()
	switch do {
	case startJob:
		l.start(ctx, t)
	case cancelJob:
		t.cancel(fmt.Errorf("superseded by version %d", a.Version))
	case dropTask:
		delete(l.tasks, a.Reference)
		l.cfg.Column.Remove(a)
	}
	if t.task.state == removed && before != removed {
		l.sayRemoved(a, t.task, heeded, now)
	}
}

// start begins a job.
func (l *Loop) start(ctx context.Context, t *entry) {
	jobCtx, cancel := context.WithCancelCause(ctx)
	t.cancel = cancel
	l.running++
	rec := t.rec
	l.jobs.Go(func() {
		o := l.work(jobCtx, rec)
		cancel(nil)
		l.results <- jobDone{rec: rec, outcome: o}
	})
}

// jobEnded records the end of a job.
func (l *Loop) jobEnded(ctx context.Context, done jobDone) {
	l.running--
	a := done.rec.Announcement()
	t := l.tasks[a.Reference]
	if t == nil {
		return
	}
	l.apply(ctx, t, event{kind: ended, of: done.rec.Hash(), outcome: done.outcome}, time.Now())
	if t.rec.Hash() == done.rec.Hash() {
		l.say(a, done.outcome, t.task.failures)
	}
}

// say shows and logs what a job has found.
func (l *Loop) say(a catalog.Announcement, o Outcome, tries int) {
	if o.cause != "" {
		l.cfg.Failed(o.cause)
	}
	switch o.state {
	case ready, gone: // shown when it was found
	case replaced, foreign, releasing, excluded, keeping:
		l.cfg.Column.Settle(a, report.Excluded, o.reason, 0)
	default:
		if o.err == nil {
			l.cfg.Column.Settle(a, report.Waiting, o.reason, o.lacking)
			if o.retry == steady {
				l.cfg.Note(report.EventWaiting, a, o.reason)
			}
			return
		}
		l.cfg.Log.Warn("failed to converge; will retry", "ref", a.Reference, "err", o.err, "tries", tries)
		l.cfg.Note(report.EventFailed, a, o.reason)
		l.cfg.Column.Settle(a, report.Failed, o.reason, 0)
	}
}

// sayRemoved shows and logs that somebody has removed a ready image.
func (l *Loop) sayRemoved(a catalog.Announcement, t task, heeded bool, now time.Time) {
	reason, wait := "it was removed from this host", t.due.Sub(now)
	if wait > 0 {
		reason = fmt.Sprintf("it was removed from this host %d times; it is fetched again in %s", t.removals, wait.Round(time.Second))
		switch {
		case !l.cfg.Pinned:
			reason += " (images.pin is off: the kubelet may need the room)"
		case !heeded:
			reason += " (this containerd is too old for pins, before 1.6.25 or 1.7.3: the kubelet may need the room)"
		}
	}
	l.cfg.Log.Info("image was removed from this host; importing it again", "ref", a.Reference, "times", t.removals, "again_in", wait)
	l.cfg.Column.Settle(a, report.Waiting, reason, 0)
	l.cfg.Note(report.EventRemoved, a, reason)
}
