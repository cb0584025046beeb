package p2p

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"seeder/p2p/catalog"
	"seeder/p2p/report"
)

const (
	// maxFetches is how many images arrive at once. The frames on their way share
	// 48 MiB (swarm.Memory), decoded chunks are as many as there are cores.
	maxFetches = 3
	// maxChecks is how many references are compared with the store at once.
	maxChecks = 4
	// recheck is how often all of a ready reference is looked at without a hint: its
	// pin may have been removed, its labels changed.
	recheck = 5 * time.Minute
	// tick bounds how long a lost hint goes unnoticed.
	tick = 10 * time.Second
	// storeSettle gathers the events of one burst (an import makes several).
	storeSettle = 200 * time.Millisecond
)

// backoff is how long to wait after the n-th failure in a row (n ≥ 1): 1 s,
// doubled each time, at most a minute, ± 20 % so that hosts do not march in
// step. r is uniform in [0, 1).
func backoff(n int, r float64) time.Duration {
	d := time.Minute
	if n < 7 {
		d = time.Second << (n - 1)
	}
	return time.Duration(float64(d) * (0.8 + 0.4*r))
}

// task is what the converge loop knows about one reference. Only the loop
// touches it.
type task struct {
	rec       catalog.Record
	cancel    context.CancelCauseFunc // of the running job; nil when none runs
	ready     bool
	dirty     time.Time // when a hint last said that the store may differ; zero: none has since the last look
	failures  int
	notBefore time.Time
	checkedAt time.Time

	// excluded: ready says that there is nothing to do, though the image is not here as
	// announced. left is what the name stood for then, once known.
	excluded, leftKnown bool
	left                digest.Digest
	aside               bool // a rule excludes this host, and what it had is let go of

	removals  int // of the image that was ready here, by others, within removalMemory
	removedAt time.Time
}

// jobDone is a finished job's word to the loop.
type jobDone struct {
	rec catalog.Record
	err error
}

// loop is the state of the converge loop. One goroutine owns it.
type loop struct {
	n       *Node
	tasks   map[string]*task
	checks  *semaphore.Weighted
	fetches *semaphore.Weighted
	running int
	auto    auto
	took    time.Duration // the last comparison with the store
}

// converge compares the catalog with this host's images, for ever: events are
// hints that wake it, the comparison is the truth.
func (n *Node) converge(ctx context.Context) {
	l := &loop{n: n, tasks: map[string]*task{},
		checks: semaphore.NewWeighted(maxChecks), fetches: semaphore.NewWeighted(maxFetches), auto: newAuto(time.Now())}
	defer l.drain()
	changes := n.store.Changes(ctx)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var settled time.Time // when the store is looked at for what an event told; zero: nothing did
	for {
		n.beats.beat("converge")
		select {
		case <-ctx.Done():
			return
		case done := <-n.results:
			l.finish(done)
		case <-n.wake:
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

// compareStore marks the references whose image record is not at the target, or
// whose content is gone.
func (l *loop) compareStore(ctx context.Context) {
	if len(l.tasks) == 0 && !l.n.cfg.autoOn() {
		return
	}
	defer func(begun time.Time) { l.took = time.Since(begun) }(time.Now())
	askCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	have, err := l.n.store.List(askCtx)
	if err != nil {
		return // the health watch says so, and marks everything once it is back
	}
	now := time.Now() // what a job finds out from here on is newer
	for ref, t := range l.tasks {
		a := t.rec.Announcement()
		if a.Withdrawn {
			continue
		}
		if t.excluded { // that it differs is known, and why
			if !t.leftKnown {
				t.left, t.leftKnown = have[ref], true
			}
			if have[ref] != t.left {
				t.dirty = now
			}
			continue
		}
		if have[ref] != a.Target.Digest || t.ready && !l.n.store.Intact(askCtx, ref) {
			t.dirty = now
		}
		if have[ref] == "" && t.ready && t.cancel == nil {
			l.removed(ref, t, now)
		}
	}
	l.announceNew(ctx, have, now)
}

// removalMemory is for how long a removal counts against the next one.
const removalMemory = 6 * time.Hour

// removed books that somebody has removed the image of a ready reference. Where the
// kubelet may have been that, which needed the room, it is not brought back at
// once; and nobody is fought.
func (l *loop) removed(ref string, t *task, now time.Time) {
	if now.Sub(t.removedAt) > removalMemory {
		t.removals = 0
	}
	t.ready, t.removedAt = false, now
	t.removals++
	heeded := l.n.store.HeedsPins()
	wait := removalPause(t.removals, l.n.cfg.Pinned && heeded, rand.Float64())
	t.notBefore = now.Add(wait)
	reason := "somebody has removed it from this host"
	if wait > 0 {
		reason = fmt.Sprintf("it was removed from this host %d times; it is fetched again in %s", t.removals, wait.Round(time.Second))
		switch {
		case !l.n.cfg.Pinned:
			reason += " (images.pin is off: the kubelet may need the room)"
		case !heeded:
			reason += " (this containerd is too old for pins, before 1.6.25 or 1.7.3: the kubelet may need the room)"
		}
	}
	l.n.log.Info("the image was removed from this host", "ref", ref, "times", t.removals, "again_in", wait)
	l.n.cells.settle(ref, report.Waiting, reason)
	l.n.note(report.EventRemoved, t.rec.Announcement(), reason)
}

// removalPause is how long after its n-th removal (n ≥ 1) an image is fetched again:
// one that only people remove at once, and then as after a failure; one that the
// kubelet may have removed after a minute, doubled each time, at most an hour.
func removalPause(n int, pinned bool, r float64) time.Duration {
	switch {
	case pinned && n == 1:
		return 0
	case pinned:
		return backoff(n-1, r)
	}
	d := time.Hour
	if n < 7 {
		d = time.Minute << (n - 1)
	}
	return time.Duration(float64(d) * (0.8 + 0.4*r))
}

// pass looks at each announcement once and returns how long nothing needs to be
// looked at.
func (l *loop) pass(ctx context.Context, now time.Time) time.Duration {
	if l.n.health.recovered.CompareAndSwap(true, false) {
		for _, t := range l.tasks {
			if t.dirty = now; t.removals == 0 {
				t.notBefore = time.Time{}
			}
		}
	}
	wait := tick
	if early := l.auto.since.Add(autoDelay).Sub(now); early > 0 && l.n.cfg.autoOn() {
		wait = min(wait, early) // what is here already is looked at then
	}
	seen := make(map[string]bool)
	for _, rec := range l.n.catalog.All() {
		a := rec.Announcement()
		seen[a.Reference] = true
		t := l.tasks[a.Reference]
		if t == nil {
			t = &task{}
			l.tasks[a.Reference] = t
		}
		if t.rec.Hash() != rec.Hash() {
			l.supersede(t, rec, a)
		}
		if t.ready && !a.Withdrawn && l.n.lostSeeds.isLost(a.Seed.Digest) {
			t.dirty = now
		}
		if d := l.step(ctx, t, a, now); d > 0 && d < wait {
			wait = d
		}
	}
	for ref, t := range l.tasks {
		if !seen[ref] && t.cancel == nil {
			delete(l.tasks, ref)
			l.n.cells.remove(ref)
		}
	}
	return wait
}

// supersede replaces what a task is about: the newest announcement of a
// reference cancels the work on an older one.
func (l *loop) supersede(t *task, rec catalog.Record, a catalog.Announcement) {
	if t.cancel != nil {
		t.cancel(fmt.Errorf("superseded by version %d", a.Version))
	}
	t.rec = rec
	t.ready, t.dirty, t.failures, t.notBefore = false, time.Time{}, 0, time.Time{}
	sent := l.n.swarms.sentBytes(a.Seed.Digest)
	t.excluded, t.leftKnown, t.aside = false, false, false
	l.n.cells.update(a.Reference, func(c *cell) {
		*c = cell{version: a.Version, target: a.Target.Digest, state: report.Waiting, reason: "queued", total: a.ImageBytes, sentBefore: sent}
	})
}

// step starts a job for one reference where one is due. It returns when to look
// again, 0 for no opinion.
func (l *loop) step(ctx context.Context, t *task, a catalog.Announcement, now time.Time) time.Duration {
	switch {
	case t.cancel != nil:
		return 0
	case a.Withdrawn && t.ready, t.aside:
		return 0
	case t.ready && t.dirty.IsZero() && now.Sub(t.checkedAt) < recheck:
		return 0
	case now.Before(t.notBefore):
		return t.notBefore.Sub(now)
	}
	jobCtx, cancel := context.WithCancelCause(ctx)
	t.cancel, t.dirty = cancel, time.Time{}
	l.running++
	rec := t.rec
	l.n.group.Go(func() error {
		err := l.n.work(jobCtx, l, rec)
		if err != nil && jobCtx.Err() == nil && l.n.health.down() == "" {
			l.n.askHealth(jobCtx) // one cause is said once: it may be that containerd went
		}
		cancel(nil)
		l.n.results <- jobDone{rec: rec, err: err}
		return nil
	})
	return 0
}

// finish books the end of a job.
func (l *loop) finish(done jobDone) {
	l.running--
	ref := done.rec.Announcement().Reference
	t := l.tasks[ref]
	if t == nil {
		return
	}
	t.cancel = nil
	if t.rec.Hash() != done.rec.Hash() {
		return // superseded: the next pass begins the new one at once
	}
	t.checkedAt = time.Now()
	t.excluded, t.leftKnown = false, false
	var excluded interface{ Excluded() string }
	var waiting interface{ Waiting() string }
	switch {
	case done.err == nil:
		t.ready, t.failures = true, 0
		if t.dirty.Before(l.n.cells.looked(ref)) { // an import makes events that its last look answers
			t.dirty = time.Time{}
		}
	case errors.As(done.err, &excluded):
		t.ready, t.excluded = true, true // nothing to do until the announcement or this host changes
		var replaced *replacedError
		if errors.As(done.err, &replaced) {
			t.left, t.leftKnown = replaced.have, true
		}
		var rule *ruledOutError
		t.aside = errors.As(done.err, &rule) && rule.letGo
		l.n.cells.settle(ref, report.Excluded, excluded.Excluded())
	case errors.As(done.err, &waiting):
		t.ready, t.failures = false, 0
		t.notBefore = time.Now().Add(waitPause)
		l.n.cells.settle(ref, report.Waiting, waiting.Waiting())
		var room interface{ LackingBytes() int64 }
		if errors.As(done.err, &room) {
			l.n.cells.update(ref, func(c *cell) { c.lacking = room.LackingBytes() })
		}
		l.n.note(report.EventWaiting, done.rec.Announcement(), waiting.Waiting())
	default:
		t.ready = false
		t.failures++
		t.notBefore = time.Now().Add(backoff(t.failures, rand.Float64()))
		l.explain(ref, done.err, t)
	}
}

// explain puts the reason of a failed try where `images` shows it.
func (l *loop) explain(ref string, err error, t *task) {
	if down := l.n.health.down(); down != "" {
		l.n.metrics.converge.WithLabelValues(failedContainerd).Inc()
		t.failures = min(t.failures, 3)
		l.n.cells.settle(ref, report.Waiting, down)
		return
	}
	if errors.Is(err, errNoSeed) {
		l.n.metrics.converge.WithLabelValues(failedNoSeed).Inc()
		t.failures = min(t.failures, 3)
		l.n.cells.settle(ref, report.Waiting, err.Error())
		return
	}
	l.n.metrics.converge.WithLabelValues(failedOther).Inc()
	l.n.log.Warn("converge", "ref", ref, "err", err, "tries", t.failures)
	l.n.note(report.EventFailed, t.rec.Announcement(), err.Error())
	l.n.cells.settle(ref, report.Failed, err.Error())
}

// waitPause is how often it is looked whether what a job waits for has come about:
// room on the disk, the end of a container.
const waitPause = 5 * time.Second

// drain waits for the jobs after the loop has ended, so that none is left
// writing to results.
func (l *loop) drain() {
	l.auto.drain()
	for ; l.running > 0; l.running-- {
		<-l.n.results
	}
}

// work brings one reference to where its record says. It returns nil when the
// store has confirmed that.
func (n *Node) work(ctx context.Context, l *loop, rec catalog.Record) error {
	if err := n.reach(ctx, l, rec); err != nil {
		return err
	}
	if !n.catalog.Reached(rec) {
		n.unkept.Store(true)
		if n.catalog.ReachedTarget(rec.Announcement().Reference) != "" {
			n.pinned.Store(true)
		}
	}
	if err := n.catalog.SetReached(rec); err != nil {
		n.log.Error("what this host has reached will not survive a restart", "ref", rec.Announcement().Reference, "err", err)
	}
	if n.unkept.Load() {
		n.keepPrevious(ctx)
	}
	n.restoreSeed(ctx, rec)
	return nil
}

func (n *Node) reach(ctx context.Context, l *loop, rec catalog.Record) error {
	a := rec.Announcement()
	if why := n.ruledOut(a); why != "" && !a.Withdrawn {
		return n.standAside(ctx, rec, why)
	}
	if err := l.checks.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	ready, reason, err := n.check(ctx, rec)
	l.checks.Release(1)
	if err != nil || ready {
		return err
	}
	switch have, err := n.replaced(ctx, rec); {
	case err != nil:
		return err
	case have != "":
		return n.yield(ctx, rec, have)
	}
	n.cells.update(a.Reference, func(c *cell) {
		if c.state == report.Ready { // was ready, is no longer
			c.done, c.origin = 0, origin{}
		}
		c.state, c.reason = report.Waiting, "queued: "+reason
	})
	if err := l.fetches.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer l.fetches.Release(1)
	return n.obtain(ctx, rec)
}

// replaced returns what the reference stands for here where somebody has given it
// another target after this host had reached rec: an import by hand, a tag that
// was moved. What was there before rec came is not meant, and is moved.
func (n *Node) replaced(ctx context.Context, rec catalog.Record) (digest.Digest, error) {
	if !n.catalog.Reached(rec) {
		return "", nil
	}
	have, err := n.store.List(ctx)
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", rec.Announcement().Reference, err)
	}
	if d := have[rec.Announcement().Reference]; d != rec.Announcement().Target.Digest {
		return d, nil
	}
	return "", nil
}

// k3sSettle is how long k3s may take from its import of a file in agent/images to the
// label that says so.
const k3sSettle = 3 * time.Second

// yield leaves to have what somebody has put there. On the host that announced
// the image that is a new build, which is announced in its turn; elsewhere it is
// that person's business.
func (n *Node) yield(ctx context.Context, rec catalog.Record, have digest.Digest) error {
	ref := rec.Announcement().Reference
	left := &replacedError{ref: ref, have: have}
	if n.cfg.Announce == nil || !n.mayAnnounce(n.identity.ID()) {
		return left
	}
	// k3s imports the files of agent/images at each start, old ones too: what an earlier
	// version does there is no announcement.
	earlier := slices.Contains(n.catalog.History(ref), have)
	switch {
	case n.cfg.Follow && rec.AnnouncedBy() == n.identity.ID():
		if !earlier {
			var err error
			if left.pulled, err = n.pulled(ctx, ref); err != nil {
				return fmt.Errorf("who put %s there: %w", ref, err)
			}
			if left.pulled {
				return left
			}
			break
		}
		var err error
		if left.k3s, err = n.putByK3s(ctx, ref); err != nil {
			return err
		}
		if left.k3s {
			return left
		}
	case earlier || !n.announcesItself(ctx, ref):
		return left
	}
	n.log.Info("the announced image has changed on this host and is announced again", "ref", ref, "digest", have)
	if err := n.cfg.Announce(ctx, ref); err != nil {
		return fmt.Errorf("announce the changed %s: %w", ref, err)
	}
	if cur, ok := n.catalog.Get(ref); ok && cur.Hash() == rec.Hash() {
		return fmt.Errorf("%s changes on this host while it is being announced", ref)
	}
	return nil
}

// putByK3s reports whether k3s has put there what ref stands for, from agent/images.
func (n *Node) putByK3s(ctx context.Context, ref string) (bool, error) {
	select {
	case <-time.After(k3sSettle):
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	by, err := n.store.Preloaded(ctx, ref)
	if err != nil {
		return false, fmt.Errorf("who put %s there: %w", ref, err)
	}
	return by, nil
}

// replacedError excludes this host from an announcement.
type replacedError struct {
	ref    string
	have   digest.Digest
	k3s    bool // has put it there
	pulled bool // from a registry
}

func (e *replacedError) Error() string { return e.Excluded() }

// Excluded says why.
func (e *replacedError) Excluded() string {
	if e.k3s {
		return fmt.Sprintf("on this host k3s has put the earlier build %s under that name again, from agent/images: take that file away and remove the image here, which brings back the announced one; seeder announce %s makes the earlier one the announced one", e.have, e.ref)
	}
	if e.pulled {
		return fmt.Sprintf("on this host %s was pulled from a registry under that name, as the kubelet does; seeder announce %s makes that the announced one, removing the image here restores the announced one", e.have, e.ref)
	}
	return fmt.Sprintf("on this host somebody has since put %s under that name; seeder announce %s makes that the announced one, removing the image here brings back the announced one", e.have, e.ref)
}

// check asks the store about rec; what a withdrawal asks for is done here, once.
func (n *Node) check(ctx context.Context, rec catalog.Record) (ready bool, reason string, err error) {
	a := rec.Announcement()
	if a.Withdrawn {
		if n.catalog.Reached(rec) {
			n.cells.remove(a.Reference)
			return true, "", nil // what came back since was brought by somebody
		}
		return true, "", n.letGo(ctx, a)
	}
	begun := time.Now()
	ready, reason, err = n.store.Check(ctx, a.Reference, a.Target.Digest)
	if err != nil {
		return false, "", fmt.Errorf("check %s: %w", a.Reference, err)
	}
	if ready {
		n.cells.settle(a.Reference, report.Ready, "")
		n.cells.update(a.Reference, func(c *cell) { c.looked = begun })
	}
	return ready, reason, nil
}
