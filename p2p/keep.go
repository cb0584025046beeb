package p2p

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
)

// letGo removes a withdrawn image (purge), or leaves it to the kubelet's garbage
// collection, where the record still is where an announcement put it: the one that
// was withdrawn, or another that this host had come to before, as in a partition.
// What somebody put under that name since then is not ours.
func (n *Node) letGo(ctx context.Context, a catalog.Announcement) error {
	have, err := n.store.List(ctx)
	if err != nil {
		return fmt.Errorf("let go of %s: %w", a.Reference, err)
	}
	if d := have[a.Reference]; d != "" && (d == a.Target.Digest || d == n.catalog.ReachedTarget(a.Reference)) {
		if err := n.letGoOf(ctx, a, d); err != nil {
			return err
		}
	}
	if a.Purge {
		if err := n.dropFrames(ctx, a.Reference); err != nil {
			return err
		}
	}
	n.cells.remove(a.Reference)
	return nil
}

// letGoOf lets go of a withdrawn image whose record is at d.
func (n *Node) letGoOf(ctx context.Context, a catalog.Announcement, d digest.Digest) error {
	if !a.Purge {
		if err := n.store.Release(ctx, a.Reference); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("let go of %s: %w", a.Reference, err)
		}
		n.log.Info("released", "ref", a.Reference, "digest", d)
		return nil
	}
	if err := n.unused(ctx, a); err != nil {
		return err
	}
	bytes, err := n.store.Remove(ctx, a.Reference)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("let go of %s: %w", a.Reference, err)
	}
	n.freed.forget(a.Reference)
	n.freed.add(a.Reference, bytes)
	n.log.Info("purged", "ref", a.Reference, "digest", d, "freed_bytes", bytes)
	return nil
}

// dropFrames removes what only the purged ref needs of the frames that are kept for
// peers: an image may have been purged for what is in it.
func (n *Node) dropFrames(ctx context.Context, ref string) error {
	seeds, _ := n.announced()
	freed, err := n.store.DropFrames(ctx, seeds)
	if err != nil {
		return fmt.Errorf("drop the frames of %s: %w", ref, err)
	}
	n.freed.add(ref, freed)
	if freed > 0 {
		n.log.Info("frames of a purged image removed", "ref", ref, "freed_bytes", freed)
	}
	return nil
}

// unused is a *usedError where a container uses the image that is to be purged.
func (n *Node) unused(ctx context.Context, a catalog.Announcement) error {
	if a.Force {
		return nil
	}
	by, err := n.store.InUse(ctx, a.Reference)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("who uses %s: %w", a.Reference, err)
	}
	if len(by) > 0 {
		return &usedError{by: by}
	}
	return nil
}

// usedError holds up a purge.
type usedError struct{ by []string }

func (e *usedError) Error() string { return e.Waiting() }

// Waiting says for what.
func (e *usedError) Waiting() string {
	by := "container " + e.by[0]
	if len(e.by) > 1 {
		by = fmt.Sprintf("%d containers (%s, …)", len(e.by), e.by[0])
	}
	return "used by " + by + "; it is removed once it is not, or at once with --force"
}

// keepPrevious keeps of every announced reference as many earlier targets as
// images.keep_previous says, and lets go of those before. What fails is tried again
// by the janitor.
func (n *Node) keepPrevious(ctx context.Context) {
	select { // a containerd that hangs is waited for as long as ctx says
	case n.keeping <- struct{}{}:
		defer func() { <-n.keeping }()
	case <-ctx.Done():
		return
	}
	n.unkept.Store(false)
	if err := n.keepNow(ctx); err != nil {
		n.unkept.Store(true)
		if ctx.Err() == nil {
			n.log.Warn("cannot keep the earlier versions as images.keep_previous says; it is tried again", "err", err)
		}
	}
}

func (n *Node) keepNow(ctx context.Context) error {
	var keep []digest.Digest
	discard := map[string][]digest.Digest{}
	for _, rec := range n.catalog.All() {
		a := rec.Announcement()
		if !n.catalog.Reached(rec) && n.catalog.ReachedTarget(a.Reference) == "" {
			continue
		}
		history := n.catalog.History(a.Reference)
		at := min(n.cfg.KeepPrevious, len(history))
		if a.Withdrawn || n.asideOf(rec) {
			at = 0
		}
		keep = append(keep, history[:at]...)
		if at < len(history) {
			discard[a.Reference] = history[at:]
		}
	}
	slices.Sort(keep)
	errs := []error{n.store.KeepPrevious(ctx, slices.Compact(keep)), n.releaseOthers(ctx)}
	for ref, targets := range discard {
		for _, target := range targets {
			if !slices.Contains(keep, target) {
				errs = append(errs, n.store.Discard(ctx, ref, target))
			}
		}
	}
	return errors.Join(errs...)
}

// releaseOthers takes the pins off builds that are not announced any more, where there
// may be one: the host where somebody imports the next build cannot tell what the name
// stood for before.
func (n *Node) releaseOthers(ctx context.Context) error {
	if !n.pinned.Swap(false) {
		return nil
	}
	wanted := map[string][]digest.Digest{}
	for _, rec := range n.catalog.All() {
		a := rec.Announcement()
		wanted[a.Reference] = nil
		if a.Withdrawn || n.asideOf(rec) {
			continue
		}
		wanted[a.Reference] = []digest.Digest{a.Target.Digest}
		if before := n.catalog.ReachedTarget(a.Reference); before != "" && !n.catalog.Reached(rec) {
			wanted[a.Reference] = append(wanted[a.Reference], before) // until the new one is here
		}
	}
	released, err := n.store.ReleaseOthers(ctx, wanted)
	if len(released) > 0 {
		n.log.Info("released what is not announced any more", "names", released)
	}
	if err != nil {
		n.pinned.Store(true)
		return fmt.Errorf("release what is not announced any more: %w", err)
	}
	return nil
}

// Previous is the target that this host had under ref before the announced one.
func (n *Node) Previous(ref string) (digest.Digest, error) {
	rec, ok := n.catalog.Get(ref)
	if !ok {
		return "", fmt.Errorf("roll back %s: %w", ref, n.notAnnounced(ref))
	}
	for _, d := range n.catalog.History(ref) {
		if d != rec.Announcement().Target.Digest {
			return d, nil
		}
	}
	return "", fmt.Errorf("roll back %s: this host knows no version before %s; run it on a host that has held one (`images.keep_previous`), or announce REF@sha256:DIGEST", ref, rec.Announcement().Target.Digest)
}

// Earlier are the targets that this host had under ref before the announced one, the
// latest first, whether or not they are still here.
func (n *Node) Earlier(ref string) []digest.Digest { return n.catalog.History(ref) }
