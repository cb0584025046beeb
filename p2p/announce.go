package p2p

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/agext/levenshtein"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/catalog"
	"seeder/p2p/gossip"
)

// Announcement is what Announce makes known: a reference, the target it shall
// have, and the seed index by which others fetch it. The Store must already
// keep that index.
type Announcement struct {
	Reference string
	Target    ocispec.Descriptor
	Index     []byte
	Bytes     int64    // of all blobs as stored
	On        []string // label selectors of the nodes it is for, which all must hold; none: every node
	KeepOn    bool     // On is whatever the announcement before says
}

// Announce puts an announcement into the catalog and tells the cluster. It
// returns the version under which the announcement stands; announcing what the
// catalog already says is not a new version.
func (n *Node) Announce(ctx context.Context, a Announcement) (version uint64, err error) {
	if err := n.MayAnnounce(); err != nil {
		return 0, fmt.Errorf("announce %s: %w", a.Reference, err)
	}
	for _, s := range a.On {
		if err := catalog.CheckSelector(s); err != nil {
			return 0, fmt.Errorf("announce %s: %w", a.Reference, err)
		}
	}
	on := slices.Compact(slices.Sorted(slices.Values(a.On)))
	seed := catalog.Seed{Digest: digest.FromBytes(a.Index), Size: int64(len(a.Index))}
	if cur, ok := n.catalog.Get(a.Reference); ok {
		c := cur.Announcement()
		if a.KeepOn {
			on = c.On
		}
		if n.covers(ctx, c, a) {
			seed, a.Bytes = c.Seed, c.ImageBytes
		}
		if !c.Withdrawn && c.Target.Digest == a.Target.Digest && c.Seed.Digest == seed.Digest && slices.Equal(c.On, on) {
			n.loop.Wake()
			return c.Version, nil
		}
	}
	return n.publish(ctx, catalog.Announcement{
		Reference:  a.Reference,
		Target:     ocispec.Descriptor{MediaType: a.Target.MediaType, Digest: a.Target.Digest, Size: a.Target.Size},
		Seed:       seed,
		ImageBytes: a.Bytes,
		On:         on,
	})
}

// covers reports whether the announcement c offers more of the same target than a,
// which comes from a host that holds what its own platform needs: the others still
// shall get theirs.
func (n *Node) covers(ctx context.Context, c catalog.Announcement, a Announcement) bool {
	if c.Withdrawn || c.Target.Digest != a.Target.Digest || c.ImageBytes <= a.Bytes {
		return false
	}
	_, err := n.store.SeedIndex(ctx, c.Seed.Digest)
	return err == nil
}

// Announced reports whether ref is announced now.
func (n *Node) Announced(ref string) bool {
	rec, ok := n.catalog.Get(ref)
	return ok && !rec.Announcement().Withdrawn
}

// Standing is the announcement of a reference as it is now.
type Standing struct {
	Version uint64
	Target  digest.Digest
	By      string // name of the node that made it
	At      time.Time
}

// Standing is what is announced under ref now, if anything is.
func (n *Node) Standing(ref string) (s Standing, ok bool) {
	rec, ok := n.catalog.Get(ref)
	if a := rec.Announcement(); ok && !a.Withdrawn {
		return Standing{Version: a.Version, Target: a.Target.Digest, By: a.NodeName, At: a.AnnouncedAt}, true
	}
	return Standing{}, false
}

// Withdrawal says what shall become of an image that nobody seeds any more.
type Withdrawal struct {
	Purge bool // every node removes it
	Force bool // also where a container uses it; else once none does
}

// Withdraw puts a withdrawal of ref into the catalog: nobody seeds it any more. The
// error of an unknown ref names the nearest announced ones and wraps
// fs.ErrNotExist.
func (n *Node) Withdraw(ctx context.Context, ref string, w Withdrawal) error {
	cur, ok := n.catalog.Get(ref)
	if now := cur.Announcement(); !ok || now.Withdrawn && (now.Purge || !w.Purge) && (now.Force || !w.Force) {
		return fmt.Errorf("withdraw %s: %w", ref, n.notAnnounced(ref))
	}
	if !n.mayAnnounce(n.identity.ID()) {
		return fmt.Errorf("withdraw %s: this node's id %s is not in `announcers`", ref, n.identity.ID())
	}
	a := cur.Announcement()
	a.Withdrawn, a.Purge, a.Force = true, w.Purge, w.Force
	_, err := n.publish(ctx, a)
	return err
}

// publish signs a as the next version of its reference and spreads it.
func (n *Node) publish(_ context.Context, a catalog.Announcement) (uint64, error) {
	a.Version = n.catalog.NextVersion(a.Reference)
	a.AnnouncedAt = time.Now()
	a.NodeName = n.cfg.Name
	rec, err := catalog.Sign(n.identity, a)
	if err != nil {
		return 0, fmt.Errorf("sign the announcement of %s: %w", a.Reference, err)
	}
	// What is announced from here is here: a build that is imported from now on is
	// a new one.
	if !a.Withdrawn {
		if err := n.catalog.SetReached(rec); err != nil {
			return 0, fmt.Errorf("write the announcement of %s: %w", a.Reference, err)
		}
	}
	changed, err := n.catalog.Merge(rec)
	if err != nil {
		return 0, fmt.Errorf("write the announcement of %s: %w", a.Reference, err)
	}
	if refused, ok := n.catalog.Refused(a.Reference); len(changed) == 0 && ok {
		return 0, fmt.Errorf("announce %s: %w", a.Reference, refused.Why)
	}
	if len(changed) == 0 {
		return 0, fmt.Errorf("announce %s: another node announced version %d at the same moment; try again", a.Reference, a.Version)
	}
	what := "announced"
	if a.Withdrawn {
		what = "withdrawn"
	}
	n.log.Info(what, "ref", a.Reference, "digest", a.Target.Digest, "version", a.Version, "purge", a.Purge)
	n.noteNews(rec)
	n.noteCatalog()
	n.broadcast(rec)
	n.loop.Published()
	return a.Version, nil
}

// broadcast hints at a record that this node now holds.
func (n *Node) broadcast(rec catalog.Record) {
	a := rec.Announcement()
	n.gossip.Broadcast(gossip.Hint{
		Reference: a.Reference, Digest: a.Target.Digest, Version: a.Version, Holder: n.cfg.Name,
	})
}

// References are what is announced now.
func (n *Node) References() []string {
	var refs []string
	for _, r := range n.catalog.All() {
		if a := r.Announcement(); !a.Withdrawn {
			refs = append(refs, a.Reference)
		}
	}
	return refs
}

// notAnnounced says that ref is not in the catalog and what is, nearest first.
func (n *Node) notAnnounced(ref string) error {
	refs := n.References()
	if len(refs) == 0 {
		return &unknownError{"nothing is announced in this cluster"}
	}
	slices.SortFunc(refs, func(a, b string) int {
		return levenshtein.Distance(ref, a, nil) - levenshtein.Distance(ref, b, nil)
	})
	return &unknownError{"it is not announced; nearest: " + strings.Join(refs[:min(3, len(refs))], ", ")}
}

// unknownError says that a reference is not in the catalog. errors.Is finds
// fs.ErrNotExist in it.
type unknownError struct{ text string }

func (e *unknownError) Error() string { return e.text }

func (e *unknownError) Unwrap() error { return fs.ErrNotExist }

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
