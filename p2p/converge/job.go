package converge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
	"seeder/p2p/report"
)

// k3sSettle is how long k3s may take from its import of a file in agent/images to the
// label that says so.
const k3sSettle = 3 * time.Second

// restores reports whether a host in that state holds what others fetch by a seed index,
// so that it gets a lost one again.
func restores(s state) bool { return s == ready || s == foreign || s == keeping }

// work brings one reference to where its record says, as far as that can be done now.
func (l *Loop) work(ctx context.Context, rec catalog.Record) Outcome {
	o := l.reach(ctx, rec)
	if o.state == ready || o.state == gone {
		l.reached(ctx, rec)
	}
	if restores(o.state) {
		l.cfg.Seeds.Restore(ctx, rec)
	}
	return o
}

// reached notes on disk that this host is where rec says.
func (l *Loop) reached(ctx context.Context, rec catalog.Record) {
	c := l.cfg.Catalog
	ref := rec.Announcement().Reference
	if !c.Reached(rec) {
		l.keep.unkept.Store(true)
		if c.ReachedTarget(ref) != "" {
			l.keep.pinned.Store(true)
		}
	}
	if err := c.SetReached(rec); err != nil {
		l.cfg.Log.Error("failed to save what this host has reached", "ref", ref, "err", err)
	}
	if l.keep.unkept.Load() {
		l.keep.previous(ctx)
	}
}

func (l *Loop) reach(ctx context.Context, rec catalog.Record) Outcome {
	a := rec.Announcement()
	if !a.Withdrawn {
		if why := l.cfg.ruledOut(a); why != "" {
			return l.standAside(ctx, rec, why)
		}
	}
	if err := l.checks.Acquire(ctx, 1); err != nil {
		return Failed(context.Cause(ctx))
	}
	if a.Withdrawn {
		defer l.checks.Release(1)
		return l.withdraw(ctx, rec)
	}
	o, reason := l.check(ctx, a)
	l.checks.Release(1)
	if o.state != queued {
		return o
	}
	switch have, err := l.replaced(ctx, rec); {
	case err != nil:
		return l.failed(ctx, err)
	case have != "":
		return l.yield(ctx, rec, have)
	}
	l.cfg.Column.Queue(a, "queued: "+reason)
	if err := l.fetches.Acquire(ctx, 1); err != nil {
		return Failed(context.Cause(ctx))
	}
	defer l.fetches.Release(1)
	return l.fetch(ctx, rec)
}

// fetch has the image fetched. Its outcome is that of the check after it.
func (l *Loop) fetch(ctx context.Context, rec catalog.Record) Outcome {
	var checked Outcome
	o := l.cfg.Fetch(ctx, rec, func(ctx context.Context) (bool, string, error) {
		var reason string
		checked, reason = l.check(ctx, rec.Announcement())
		return checked.state == ready, reason, checked.err
	})
	if o.state == ready {
		o.looked = checked.looked
	}
	if o.cause != "" {
		return l.orDown(ctx, o)
	}
	return o
}

// failed is the outcome of an error.
func (l *Loop) failed(ctx context.Context, err error) Outcome { return l.orDown(ctx, Failed(err)) }

// orDown is the outcome of a try that failed: while containerd is away that is the reason
// for everything.
func (l *Loop) orDown(ctx context.Context, o Outcome) Outcome {
	if down := l.cfg.Down(ctx); down != "" {
		return Outcome{state: waiting, retry: brief, reason: down, cause: CauseContainerd}
	}
	return o
}

// check asks the store about a: ready, queued with the reason, or failed.
func (l *Loop) check(ctx context.Context, a catalog.Announcement) (Outcome, string) {
	begun := time.Now()
	ok, reason, err := l.cfg.Store.Check(ctx, a.Reference, a.Target.Digest)
	if err != nil {
		return l.failed(ctx, fmt.Errorf("check %s: %w", a.Reference, err)), ""
	}
	if !ok {
		return Outcome{state: queued}, reason
	}
	l.cfg.Column.Settle(a, report.Ready, "", 0)
	return Outcome{state: ready, looked: begun}, ""
}

// replaced returns what the reference stands for here where somebody has given it
// another target after this host had reached rec: an import by hand, a tag that
// was moved. What was there before rec came is not meant, and is moved.
func (l *Loop) replaced(ctx context.Context, rec catalog.Record) (digest.Digest, error) {
	if !l.cfg.Catalog.Reached(rec) {
		return "", nil
	}
	have, err := l.cfg.Store.List(ctx)
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", rec.Announcement().Reference, err)
	}
	if d := have[rec.Announcement().Reference]; d != rec.Announcement().Target.Digest {
		return d, nil
	}
	return "", nil
}

// yield leaves to have what somebody has put there. On the host that announced
// the image that is a new build, which is announced in its turn; elsewhere it is
// that person's business.
func (l *Loop) yield(ctx context.Context, rec catalog.Record, have digest.Digest) Outcome {
	ref := rec.Announcement().Reference
	by, err := l.whoReplaced(ctx, rec, have)
	switch {
	case err != nil:
		return l.failed(ctx, err)
	case by != byBuild:
		return Outcome{state: replaced, left: have, reason: by.reason(ref, have)}
	}
	l.cfg.Log.Info("announced an image again: it changed on this host", "ref", ref, "digest", have)
	if err := l.cfg.Announce(ctx, ref, rec); err != nil && !errors.Is(err, catalog.ErrSuperseded) {
		return l.failed(ctx, fmt.Errorf("announce the changed %s: %w", ref, err))
	}
	if cur, ok := l.cfg.Catalog.Get(ref); ok && cur.Hash() == rec.Hash() {
		return l.failed(ctx, fmt.Errorf("%s changes on this host while it is being announced", ref))
	}
	return Outcome{state: queued} // the announcement that came of it is the next job's
}

// replacer is who has put another build under an announced name.
type replacer int

const (
	bySomebody replacer = iota
	byK3s               // an earlier version, from agent/images
	byPull              // from a registry
	byBuild             // a new build, which this host is to announce
)

// reason says why this host is excluded, and what to do.
func (r replacer) reason(ref string, have digest.Digest) string {
	switch r {
	case byK3s:
		return fmt.Sprintf("k3s imported the earlier build %s under that name again on this host, from agent/images: remove that file and the image here to restore the announced one, or announce the earlier one: seeder announce %s", have, ref)
	case byPull:
		return fmt.Sprintf("%s was pulled from a registry under that name on this host, as the kubelet does; announce it: seeder announce %s, or remove the image here to restore the announced one", have, ref)
	}
	return fmt.Sprintf("%s was later put under that name on this host; announce it: seeder announce %s, or remove the image here to restore the announced one", have, ref)
}

// whoReplaced finds out whose build have is, as far as it matters.
func (l *Loop) whoReplaced(ctx context.Context, rec catalog.Record, have digest.Digest) (replacer, error) {
	ref := rec.Announcement().Reference
	if !l.cfg.MayAnnounce() {
		return bySomebody, nil
	}
	// k3s imports the files of agent/images at each start, old ones too: what an earlier
	// version does there is no announcement.
	earlier := slices.Contains(l.cfg.Catalog.History(ref), have)
	if !l.cfg.Follow || rec.AnnouncedBy() != l.cfg.Self {
		if earlier || !l.auto.announcesItself(ctx, ref) {
			return bySomebody, nil
		}
		return byBuild, nil
	}
	is, ask := byPull, l.auto.pulled
	if earlier {
		is, ask = byK3s, l.putByK3s
	}
	yes, err := ask(ctx, ref)
	switch {
	case err != nil:
		return 0, fmt.Errorf("find the origin of %s: %w", ref, err)
	case yes:
		return is, nil
	}
	return byBuild, nil
}

// putByK3s reports whether k3s has put there what ref stands for, from agent/images.
func (l *Loop) putByK3s(ctx context.Context, ref string) (bool, error) {
	select {
	case <-time.After(k3sSettle):
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	return l.cfg.Store.Preloaded(ctx, ref)
}

// standAside leaves to the kubelet's garbage collection what this host held of an
// image before a rule came to exclude it, as a withdrawal does. What somebody else
// put under that name is not touched.
func (l *Loop) standAside(ctx context.Context, rec catalog.Record, why string) Outcome {
	ref := rec.Announcement().Reference
	if !l.cfg.excludes(rec) {
		return Outcome{state: keeping, reason: why}
	}
	before := l.cfg.Catalog.ReachedTarget(ref)
	if before == "" {
		return Outcome{state: excluded, reason: why}
	}
	have, err := l.cfg.Store.List(ctx)
	if err == nil && have[ref] == before {
		if err = l.cfg.Keeper.Release(ctx, ref); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		if err == nil {
			l.cfg.Log.Info("released: a rule excludes this host", "ref", ref, "digest", before, "rule", why)
		}
	}
	l.keep.changed()
	if err != nil {
		if l.cfg.Down(ctx) == "" {
			l.cfg.Log.Warn("failed to release an excluded image; will retry", "ref", ref, "err", err)
		}
		return Outcome{state: releasing, retry: backoff, reason: why}
	}
	return Outcome{state: excluded, reason: why}
}
