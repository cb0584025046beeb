package p2p

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/agext/levenshtein"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/catalog"
	"seeder/p2p/gossip"
	"seeder/p2p/trust"
)

// Prepared is an image of this host that is ready to be announced: others fetch it by its
// seed index, which the Store keeps.
type Prepared struct {
	Reference string
	Target    ocispec.Descriptor
	Index     []byte // the seed index
	Bytes     int64  // of all blobs as stored
	Said      string // what is worth a line about its name in containerd; empty where nothing is
}

// Options say how an image is announced.
type Options struct {
	At       digest.Digest // the target that the reference is to have; empty: the one that it has here
	Rollback bool          // At is the one that this host had before
	On       []string      // label selectors of the nodes it is for, which all must hold; none: every node
	// AnyPlatform is for every node, whatever platform the image says it is for.
	AnyPlatform bool
}

// Announced is what is announced now.
type Announced struct {
	Prepared
	Version uint64
	Before  Standing // what was announced before; zero: nothing
}

// Announce has the store prepare what it has under ref, puts that into the catalog and
// tells the cluster. Announcing what the catalog already says is not a new version. A
// digest alone, as REPOSITORY@sha256:…, moves the tag latest of its repository where that
// is announced. Going back to an earlier target is for the nodes and platforms that the
// announcement before was for, unless o.On says others. Where the target is not here, the error wraps
// fs.ErrNotExist and names the earlier ones that are.
func (n *Node) Announce(ctx context.Context, ref string, o Options) (Announced, error) {
	if err := n.MayAnnounce(); err != nil { // before anything is moved here
		return Announced{}, fmt.Errorf("announce %s: %w", ref, err)
	}
	for _, s := range o.On {
		if err := catalog.CheckSelector(s); err != nil {
			return Announced{}, fmt.Errorf("announce %s: %w", ref, err)
		}
	}
	if o.Rollback {
		var err error
		if o.At, err = n.Previous(ref); err != nil {
			return Announced{}, err
		}
	} else if repo, _, isDigest := strings.Cut(ref, "@"); isDigest && n.announced(repo+":latest") {
		ref = repo + ":latest"
	}
	keep := o.At != "" // what else the announcement before said
	if cur, ok := n.catalog.Get(ref); ok && keep {
		o.AnyPlatform = o.AnyPlatform || cur.Announcement().AnyPlatform
	}
	p, err := n.store.Prepare(ctx, ref, o.At, o.AnyPlatform)
	if err != nil {
		if o.At != "" && errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w; %s", err, n.earlier(ctx, ref))
		}
		return Announced{}, err
	}
	return n.announce(ctx, p, o.On, keep && len(o.On) == 0, o.AnyPlatform)
}

// announceAgain announces what the store has under ref now, for the nodes and platforms
// that the announcement before was for.
func (n *Node) announceAgain(ctx context.Context, ref string) error {
	if err := n.MayAnnounce(); err != nil {
		return fmt.Errorf("announce %s: %w", ref, err)
	}
	cur, _ := n.catalog.Get(ref)
	a := cur.Announcement()
	anyPlatform := a.AnyPlatform && !a.Withdrawn
	p, err := n.store.Prepare(ctx, ref, "", anyPlatform)
	if err != nil {
		return err
	}
	_, err = n.announce(ctx, p, nil, true, anyPlatform)
	return err
}

// earlier says which earlier versions of ref this host still has.
func (n *Node) earlier(ctx context.Context, ref string) string {
	var here []string
	for _, d := range n.catalog.History(ref) {
		if n.store.Has(ctx, d) {
			here = append(here, d.String())
		}
	}
	short := ref
	if named, err := reference.ParseDockerRef(ref); err == nil {
		short = reference.FamiliarString(named)
	}
	if len(here) == 0 {
		return "it has no earlier version of " + short
	}
	return fmt.Sprintf("earlier versions of %s here: %s", short, strings.Join(here, ", "))
}

// announce puts p into the catalog and tells the cluster. keepOn: for the nodes that the
// announcement before was for.
func (n *Node) announce(ctx context.Context, p Prepared, on []string, keepOn, anyPlatform bool) (Announced, error) {
	out := Announced{Prepared: p}
	out.Before, _ = n.Standing(p.Reference)
	on = slices.Compact(slices.Sorted(slices.Values(on)))
	seed := catalog.Seed{Digest: digest.FromBytes(p.Index), Size: int64(len(p.Index))}
	bytes := p.Bytes
	if cur, ok := n.catalog.Get(p.Reference); ok {
		c := cur.Announcement()
		if keepOn {
			on = c.On
		}
		if c.AnyPlatform == anyPlatform && n.covers(ctx, c, p) {
			seed, bytes = c.Seed, c.ImageBytes
		}
		if !c.Withdrawn && c.Target.Digest == p.Target.Digest && c.Seed.Digest == seed.Digest && slices.Equal(c.On, on) && c.AnyPlatform == anyPlatform {
			n.loop.Wake()
			out.Version = c.Version
			return out, nil
		}
	}
	var err error
	out.Version, err = n.publish(ctx, catalog.Announcement{
		Reference:  p.Reference,
		Target:     ocispec.Descriptor{MediaType: p.Target.MediaType, Digest: p.Target.Digest, Size: p.Target.Size},
		Seed:       seed,
		ImageBytes: bytes,
		On:         on,

		AnyPlatform: anyPlatform,
	})
	return out, err
}

// covers reports whether the announcement c offers more of the same target than p,
// which comes from a host that holds what its own platform needs: the others are still to
// get theirs.
func (n *Node) covers(ctx context.Context, c catalog.Announcement, p Prepared) bool {
	if c.Withdrawn || c.Target.Digest != p.Target.Digest || c.ImageBytes <= p.Bytes {
		return false
	}
	_, err := n.store.SeedIndex(ctx, c.Seed.Digest)
	return err == nil
}

// announced reports whether ref is announced now.
func (n *Node) announced(ref string) bool {
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

// MayAnnounce is an error where this node's announcements count for nothing.
func (n *Node) MayAnnounce() error {
	for _, c := range n.conflicts() {
		if c.Second {
			return fmt.Errorf("this host may not announce: %s; %s", c.Reason(), c.Fix())
		}
	}
	if id := n.identity.ID(); !n.mayAnnounce(id) {
		return fmt.Errorf("this node's id %s is not in `announcers`; announce on a host that is, or add the id there on every host", id)
	}
	return nil
}

// mayAnnounce is the rule of Config.Announcers.
func (n *Node) mayAnnounce(id trust.NodeID) bool {
	if slices.Contains(n.cfg.Excluded, id) {
		return false
	}
	return len(n.cfg.Announcers) == 0 || slices.Contains(n.cfg.Announcers, id)
}
