// Package announce makes this host's images known to the cluster, and withdraws them.
//
// It owns who may announce, and how the next announcement of a reference follows from the
// one before: its version, its seed index, which nodes it is for. It never decides which
// announcement wins, which is the catalog's rule, nor what a host does about one.
//
// Invariant: nothing is announced that the Store has not prepared, and nothing is moved
// here on behalf of an announcement that would count for nothing.
package announce

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/catalog"
	"seeder/p2p/report"
	"seeder/p2p/trust"
	"seeder/store/chunk"
)

// Store makes images of this host ready to be announced.
type Store interface {
	// Prepare makes the seed index of what this host has under ref, keeps it, and makes the
	// image here what it will be elsewhere. What is not here, or not complete, is an error
	// that wraps fs.ErrNotExist.
	Prepare(ctx context.Context, ref string, o chunk.PrepareOptions) (Prepared, error)
	// Has reports whether this host has target.
	Has(ctx context.Context, target digest.Digest) bool
	// SeedIndex returns a seed index that this host keeps.
	SeedIndex(ctx context.Context, seed digest.Digest) ([]byte, error)
}

// Config is what an Announcer is made of.
type Config struct {
	Identity *trust.Identity
	Name     string // of this node
	Rule     Rule
	Catalog  *catalog.Catalog
	Store    Store
	// Conflicts are the pairs of hosts that cannot be told apart.
	Conflicts func() []report.Conflict
	// Published is told of each record that was announced or withdrawn here, Confirmed
	// when what is to be announced is announced already.
	Published func(catalog.Record)
	Confirmed func()
	// Withhold has no deltas of an image offered, or again; nil: there are none.
	Withhold func(seed digest.Digest, yes bool)
	Log      *slog.Logger
}

// Announcer announces images of this host. It is safe for concurrent use.
type Announcer struct{ cfg Config }

// New returns an Announcer.
func New(cfg Config) *Announcer { return &Announcer{cfg: cfg} }

// Rule is who may announce.
type Rule struct {
	Announcers []trust.NodeID // none: every member
	Excluded   []trust.NodeID // who may not, whatever Announcers says
}

// Allows reports whether what id announces counts.
func (r Rule) Allows(id trust.NodeID) bool {
	if slices.Contains(r.Excluded, id) {
		return false
	}
	return len(r.Announcers) == 0 || slices.Contains(r.Announcers, id)
}

// Strings are the ids of a rule, sorted, those that are excluded with a ! in front.
func (r Rule) Strings() []string {
	var out []string
	for _, id := range r.Announcers {
		out = append(out, string(id))
	}
	for _, id := range r.Excluded {
		out = append(out, "!"+string(id))
	}
	slices.Sort(out)
	return out
}

// Prepared is an image of this host that is ready to be announced.
type Prepared = chunk.Prepared

// Options say how an image is announced.
type Options struct {
	At       digest.Digest // the target that the reference is to have; empty: the one that it has here
	Rollback bool          // At is the one that this host had before
	On       []string      // label selectors of the nodes it is for, which all must hold; none: every node
	// AnyPlatform is for every node, whatever platform the image says it is for.
	AnyPlatform bool
	NoDelta     bool          // this host offers no deltas of it, until it is announced without that or the host is started again
	Settled     digest.Digest // the target that an import has just named under the reference; empty: none has
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
func (an *Announcer) Announce(ctx context.Context, ref string, o Options) (Announced, error) {
	if err := an.MayAnnounce(); err != nil { // before anything is moved here
		return Announced{}, fmt.Errorf("announce %s: %w", ref, err)
	}
	for _, s := range o.On {
		if err := catalog.CheckSelector(s); err != nil {
			return Announced{}, fmt.Errorf("announce %s: %w", ref, err)
		}
	}
	if o.Rollback {
		var err error
		if o.At, err = an.Previous(ref); err != nil {
			return Announced{}, err
		}
	} else if repo, _, isDigest := strings.Cut(ref, "@"); isDigest && an.cfg.Catalog.Announced(repo+":latest") {
		ref = repo + ":latest"
	}
	keep := o.At != "" // what else the announcement before said
	if cur, ok := an.cfg.Catalog.Get(ref); ok && keep {
		o.AnyPlatform = o.AnyPlatform || cur.Announcement().AnyPlatform
	}
	p, err := an.cfg.Store.Prepare(ctx, ref, chunk.PrepareOptions{At: o.At, AnyPlatform: o.AnyPlatform, Settled: o.Settled})
	if err != nil {
		if o.At != "" && errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w; %s", err, an.earlier(ctx, ref))
		}
		return Announced{}, err
	}
	if an.cfg.Withhold != nil { // before anybody can ask
		an.cfg.Withhold(p.SeedDigest(), o.NoDelta)
	}
	return an.Publish(ctx, p, o.On, keep && len(o.On) == 0, o.AnyPlatform)
}

// Again announces what the store has under ref now, for the nodes and platforms that the
// announcement before was for. since is the record of ref by which the caller decided that,
// the zero Record where the catalog had none. The error wraps catalog.ErrSuperseded where
// another one has come since, while the image was prepared: what is here may be older than
// that, and would replace it everywhere.
func (an *Announcer) Again(ctx context.Context, ref string, since catalog.Record) error {
	if err := an.MayAnnounce(); err != nil {
		return fmt.Errorf("announce %s: %w", ref, err)
	}
	cur, _ := an.cfg.Catalog.Get(ref)
	a := cur.Announcement()
	anyPlatform := a.AnyPlatform && !a.Withdrawn
	p, err := an.cfg.Store.Prepare(ctx, ref, chunk.PrepareOptions{AnyPlatform: anyPlatform})
	if err != nil {
		return err
	}
	if now, _ := an.cfg.Catalog.Get(ref); now.Hash() != since.Hash() {
		return fmt.Errorf("announce %s by itself: %w by version %d", ref, catalog.ErrSuperseded, now.Announcement().Version)
	}
	_, err = an.Publish(ctx, p, nil, true, anyPlatform)
	return err
}

// earlier says which earlier versions of ref this host still has.
func (an *Announcer) earlier(ctx context.Context, ref string) string {
	var here []string
	for _, d := range an.cfg.Catalog.History(ref) {
		if an.cfg.Store.Has(ctx, d) {
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

// Publish puts p into the catalog and tells the cluster. keepOn: for the nodes that the
// announcement before was for.
func (an *Announcer) Publish(ctx context.Context, p Prepared, on []string, keepOn, anyPlatform bool) (Announced, error) {
	out := Announced{Prepared: p}
	out.Before, _ = an.standing(p.Reference)
	on = slices.Compact(slices.Sorted(slices.Values(on)))
	seed := catalog.Seed{Digest: digest.FromBytes(p.Index), Size: int64(len(p.Index))}
	bytes := p.Bytes
	if cur, ok := an.cfg.Catalog.Get(p.Reference); ok {
		c := cur.Announcement()
		if keepOn {
			on = c.On
		}
		if c.AnyPlatform == anyPlatform && an.covers(ctx, c, p) {
			seed, bytes = c.Seed, c.ImageBytes
		}
		if !c.Withdrawn && c.Target.Digest == p.Target.Digest && c.Seed.Digest == seed.Digest && slices.Equal(c.On, on) && c.AnyPlatform == anyPlatform {
			an.cfg.Confirmed()
			out.Version = c.Version
			return out, nil
		}
	}
	var err error
	out.Version, err = an.publish(ctx, catalog.Announcement{
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
func (an *Announcer) covers(ctx context.Context, c catalog.Announcement, p Prepared) bool {
	if c.Withdrawn || c.Target.Digest != p.Target.Digest || c.ImageBytes <= p.Bytes {
		return false
	}
	_, err := an.cfg.Store.SeedIndex(ctx, c.Seed.Digest)
	return err == nil
}

// Standing is the announcement of a reference as it is now.
type Standing struct {
	Version uint64
	Target  digest.Digest
	By      string // name of the node that made it
	At      time.Time
}

// standing is what is announced under ref now, if anything is.
func (an *Announcer) standing(ref string) (s Standing, ok bool) {
	rec, ok := an.cfg.Catalog.Get(ref)
	if a := rec.Announcement(); ok && !a.Withdrawn {
		return Standing{Version: a.Version, Target: a.Target.Digest, By: a.NodeName, At: a.AnnouncedAt}, true
	}
	return Standing{}, false
}

// Withdraw puts a withdrawal of ref into the catalog: nobody seeds it any more. The
// error of an unknown ref names the nearest announced ones and wraps
// fs.ErrNotExist.
func (an *Announcer) Withdraw(ctx context.Context, ref string, w report.Withdrawal) error {
	cur, ok := an.cfg.Catalog.Get(ref)
	if now := cur.Announcement(); !ok || now.Withdrawn && (now.Purge || !w.Purge) && (now.Force || !w.Force) {
		return fmt.Errorf("withdraw %s: %w", ref, an.cfg.Catalog.Unknown(ref))
	}
	if !an.cfg.Rule.Allows(an.cfg.Identity.ID()) {
		return fmt.Errorf("withdraw %s: this node's id %s is not in `announcers`", ref, an.cfg.Identity.ID())
	}
	a := cur.Announcement()
	a.Withdrawn, a.Purge, a.Force = true, w.Purge, w.Force
	_, err := an.publish(ctx, a)
	return err
}

// publish signs a as the next version of its reference and spreads it.
func (an *Announcer) publish(_ context.Context, a catalog.Announcement) (uint64, error) {
	a.Version = an.cfg.Catalog.NextVersion(a.Reference)
	a.AnnouncedAt = an.cfg.Catalog.Now()
	a.NodeName = an.cfg.Name
	rec, err := catalog.Sign(an.cfg.Identity, a)
	if err != nil {
		return 0, fmt.Errorf("sign the announcement of %s: %w", a.Reference, err)
	}
	// What is announced from here is here: a build that is imported from now on is
	// a new one.
	if !a.Withdrawn {
		if err := an.cfg.Catalog.SetReached(rec); err != nil {
			return 0, fmt.Errorf("write the announcement of %s: %w", a.Reference, err)
		}
	}
	changed, err := an.cfg.Catalog.Merge(rec)
	if err != nil {
		return 0, fmt.Errorf("write the announcement of %s: %w", a.Reference, err)
	}
	if refused, ok := an.cfg.Catalog.Refused(a.Reference); len(changed) == 0 && ok {
		return 0, fmt.Errorf("announce %s: %w", a.Reference, refused.Why)
	}
	if len(changed) == 0 {
		return 0, fmt.Errorf("announce %s: another node announced version %d at the same moment; try again", a.Reference, a.Version)
	}
	what := "announced"
	if a.Withdrawn {
		what = "withdrawn"
	}
	an.cfg.Log.Info(what, "ref", a.Reference, "digest", a.Target.Digest, "version", a.Version, "purge", a.Purge)
	an.cfg.Published(rec)
	return a.Version, nil
}

// Previous is the target that this host had under ref before the announced one.
func (an *Announcer) Previous(ref string) (digest.Digest, error) {
	rec, ok := an.cfg.Catalog.Get(ref)
	if !ok {
		return "", fmt.Errorf("roll back %s: %w", ref, an.cfg.Catalog.Unknown(ref))
	}
	for _, d := range an.cfg.Catalog.History(ref) {
		if d != rec.Announcement().Target.Digest {
			return d, nil
		}
	}
	return "", fmt.Errorf("roll back %s: this host knows no version before %s; run it on a host that has held one (`images.keep_previous`), or announce REF@sha256:DIGEST", ref, rec.Announcement().Target.Digest)
}

// MayAnnounce is an error where this node's announcements count for nothing.
func (an *Announcer) MayAnnounce() error {
	for _, c := range an.cfg.Conflicts() {
		if c.Second {
			return fmt.Errorf("this host may not announce: %s; %s", c.Reason(), c.Fix())
		}
	}
	if id := an.cfg.Identity.ID(); !an.cfg.Rule.Allows(id) {
		return fmt.Errorf("this node's id %s is not in `announcers`; announce on a host that is, or add the id there on every host", id)
	}
	return nil
}
