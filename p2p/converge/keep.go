package converge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
)

// withdraw removes a withdrawn image (purge), or leaves it to the kubelet's garbage
// collection, where the record still is where an announcement put it: the one that
// was withdrawn, or another that this host had come to before, as in a partition.
// What somebody put under that name since then is not ours, and what a later announcement
// put there is not meant: its record was damaged here, and comes back from others.
func (l *Loop) withdraw(ctx context.Context, rec catalog.Record) Outcome {
	a := rec.Announcement()
	if !l.cfg.Catalog.Reached(rec) { // else what came back since was imported by somebody
		by, err := l.release(ctx, a)
		switch {
		case err != nil:
			o := l.failed(ctx, err)
			o.state = removing
			return o
		case len(by) > 0:
			return Outcome{state: removing, retry: steady, reason: usedBy(by)}
		}
	}
	l.cfg.Column.Remove(a)
	return Outcome{state: gone}
}

// release returns the containers that use the image and so hold up the purge.
func (l *Loop) release(ctx context.Context, a catalog.Announcement) (users []string, err error) {
	have, err := l.cfg.Store.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("release %s: %w", a.Reference, err)
	}
	if d := have[a.Reference]; d != "" && (d == a.Target.Digest || d == l.cfg.Catalog.ReachedTarget(a.Reference)) {
		if users, err = l.releaseTarget(ctx, a, d); err != nil || len(users) > 0 {
			return users, err
		}
	}
	if a.Purge {
		return nil, l.keep.dropFrames(ctx, a.Reference)
	}
	return nil, nil
}

// releaseTarget releases or purges a withdrawn image whose record is at d.
func (l *Loop) releaseTarget(ctx context.Context, a catalog.Announcement, d digest.Digest) (users []string, err error) {
	if !a.Purge {
		if err := l.cfg.Keeper.Release(ctx, a.Reference); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("release %s: %w", a.Reference, err)
		}
		l.cfg.Log.Info("released", "ref", a.Reference, "digest", d)
		return nil, nil
	}
	if !a.Force {
		users, err := l.cfg.Remover.InUse(ctx, a.Reference)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("find the containers that use %s: %w", a.Reference, err)
		}
		if len(users) > 0 {
			return users, nil
		}
	}
	bytes, err := l.cfg.Remover.Remove(ctx, a.Reference)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("release %s: %w", a.Reference, err)
	}
	l.cfg.Column.Purged(a.Reference, bytes)
	l.cfg.Log.Info("purged", "ref", a.Reference, "digest", d, "freed_bytes", bytes)
	return nil, nil
}

// usedBy says what a purge waits for.
func usedBy(containers []string) string {
	by := "container " + containers[0]
	if len(containers) > 1 {
		by = fmt.Sprintf("%d containers (%s, …)", len(containers), containers[0])
	}
	return "used by " + by + "; it is removed once it is not, or at once with --force"
}

// keepInterval is how often the leases of earlier versions are looked after when
// nothing has changed: far below the half of their time.
const keepInterval = 10 * time.Minute

// keep is what is kept, and released, of earlier versions. It is safe for concurrent use,
// but for tend.
type keep struct {
	cfg    Config
	one    chan struct{} // capacity 1: a lock
	unkept atomic.Bool   // there is an earlier version, or one was not kept
	pinned atomic.Bool   // what nobody announces any more may have a pin
	tended time.Time
}

func newKeep(cfg Config) *keep { return &keep{cfg: cfg, one: make(chan struct{}, 1)} }

// changed says that there may be something to keep and to release.
func (k *keep) changed() {
	k.unkept.Store(true)
	k.pinned.Store(true)
}

// tend keeps what it has to where something has changed, and every keepInterval.
func (k *keep) tend(ctx context.Context, now time.Time) {
	due := now.Sub(k.tended) >= keepInterval
	if !due && !k.unkept.Load() {
		return
	}
	if due {
		k.pinned.Store(true)
	}
	k.tended = now
	k.previous(ctx)
}

// previous keeps of every announced reference as many earlier targets as
// images.keep_previous says, and releases those before. What fails is tried again
// by tend.
func (k *keep) previous(ctx context.Context) {
	select { // a containerd that hangs is waited for as long as ctx says
	case k.one <- struct{}{}:
		defer func() { <-k.one }()
	case <-ctx.Done():
		return
	}
	k.unkept.Store(false)
	if err := k.now(ctx); err != nil {
		k.unkept.Store(true)
		if ctx.Err() == nil && k.cfg.Down(ctx) == "" { // else that is said already, once
			k.cfg.Log.Warn("failed to keep previous versions (images.keep_previous); will retry", "err", err)
		}
	}
}

func (k *keep) now(ctx context.Context) error {
	var keep []digest.Digest
	discard := map[string][]digest.Digest{}
	for _, rec := range k.cfg.Catalog.All() {
		a := rec.Announcement()
		if !k.cfg.Catalog.Reached(rec) && k.cfg.Catalog.ReachedTarget(a.Reference) == "" {
			continue
		}
		history := k.cfg.Catalog.History(a.Reference)
		at := min(k.cfg.KeepPrevious, len(history))
		if a.Withdrawn || k.cfg.excludes(rec) {
			at = 0
		}
		keep = append(keep, history[:at]...)
		if at < len(history) {
			discard[a.Reference] = history[at:]
		}
	}
	slices.Sort(keep)
	errs := []error{k.cfg.Keeper.KeepPrevious(ctx, slices.Compact(keep)), k.releaseOthers(ctx)}
	for ref, targets := range discard {
		for _, target := range targets {
			if !slices.Contains(keep, target) {
				errs = append(errs, k.cfg.Keeper.Discard(ctx, ref, target))
			}
		}
	}
	return errors.Join(errs...)
}

// releaseOthers takes the pins off builds that are not announced any more, where there
// may be one: the host where somebody imports the next build cannot tell what the name
// stood for before.
func (k *keep) releaseOthers(ctx context.Context) error {
	if !k.pinned.Swap(false) {
		return nil
	}
	wanted := map[string][]digest.Digest{}
	for _, rec := range k.cfg.Catalog.All() {
		a := rec.Announcement()
		wanted[a.Reference] = nil
		if a.Withdrawn || k.cfg.excludes(rec) {
			continue
		}
		wanted[a.Reference] = []digest.Digest{a.Target.Digest}
		if before := k.cfg.Catalog.ReachedTarget(a.Reference); before != "" && !k.cfg.Catalog.Reached(rec) {
			wanted[a.Reference] = append(wanted[a.Reference], before) // until the new one is here
		}
	}
	released, err := k.cfg.Keeper.ReleaseOthers(ctx, wanted)
	if len(released) > 0 {
		k.cfg.Log.Info("released images that are no longer announced", "names", released)
	}
	if err != nil {
		k.pinned.Store(true)
		return fmt.Errorf("release what is not announced any more: %w", err)
	}
	return nil
}

// dropFrames removes what only the purged ref needs of the frames that are kept for
// peers: an image may have been purged for what is in it.
func (k *keep) dropFrames(ctx context.Context, ref string) error {
	var seeds []digest.Digest
	for _, rec := range k.cfg.Catalog.All() {
		if a := rec.Announcement(); !a.Withdrawn {
			seeds = append(seeds, a.Seed.Digest)
		}
	}
	freed, err := k.cfg.Remover.DropFrames(ctx, seeds)
	if err != nil {
		return fmt.Errorf("drop the frames of %s: %w", ref, err)
	}
	k.cfg.Column.Freed(ref, freed)
	if freed > 0 {
		k.cfg.Log.Info("removed frames of a purged image", "ref", ref, "freed_bytes", freed)
	}
	return nil
}
