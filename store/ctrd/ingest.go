package ctrd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/internal/wait"
)

// store is the content store as this package reads and labels it.
type store = content.Store

// DefaultLeaseTTL is Config.LeaseTTL where that is 0.
const DefaultLeaseTTL = 24 * time.Hour

// leasePrefix tells seeder's leases from those of others.
const leasePrefix = "seeder-"

// ReleaseGrace is what a lease's release has once its work was told to end: a
// containerd that hangs must not hold up the end of the daemon.
const ReleaseGrace = time.Second

// ingestTries is how often a locked ref is tried: containerd frees the ref of a
// crashed writer as soon as it sees the connection end.
const ingestTries = 20

const (
	abortTries = 20
	abortPause = 25 * time.Millisecond
)

// Take makes a lease, which protects what is written under the returned context from garbage
// collection. The name is the work's, so that a daemon that comes back after a
// crash finds what it had; a lease of that name that has lived half its time is
// renewed with all that it protects. Nobody else may use that lease meanwhile.
// release ends it, also where the work's context has ended.
func (le *Leases) Take(ctx context.Context, name string) (_ context.Context, release func(context.Context) error, err error) {
	ctx, cl, err := le.conn.use(ctx)
	if err != nil {
		return nil, nil, err
	}
	ls, id := cl.LeasesService(), leasePrefix+name
	_, err = ls.Create(ctx, leases.WithID(id), leases.WithExpiration(le.conn.cfg.LeaseTTL))
	if errdefs.IsAlreadyExists(err) {
		err = le.renew(ctx, ls, id)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("make a lease: %w", le.conn.fail(err))
	}
	release = func(ctx context.Context) error {
		ctx, cancel := wait.Outlive(ctx, ReleaseGrace)
		defer cancel()
		return le.Drop(ctx, name)
	}
	return leases.WithLease(ctx, id), release, nil
}

// renewing ends the id of the lease that holds everything while another one is
// made anew: containerd has no call that prolongs one.
const renewing = ".renewing"

// renew gives a lease that has lived half its time another one.
func (le *Leases) renew(ctx context.Context, ls leases.Manager, id string) error {
	list, err := ls.List(ctx, "id=="+id)
	if err != nil {
		return err
	}
	for _, l := range list {
		if l.ID == id && time.Since(l.CreatedAt) < le.conn.cfg.LeaseTTL/2 {
			return nil
		}
	}
	for _, move := range [][2]string{{id, id + renewing}, {id + renewing, id}} {
		if err := le.moveLease(ctx, ls, move[0], move[1]); err != nil {
			return err
		}
	}
	le.conn.log.Debug("renewed a lease", "lease", id)
	return nil
}

// moveLease makes the lease to, gives it all that from protects, and drops from.
func (le *Leases) moveLease(ctx context.Context, ls leases.Manager, from, to string) error {
	_, err := ls.Create(ctx, leases.WithID(to), leases.WithExpiration(le.conn.cfg.LeaseTTL))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	all, err := ls.ListResources(ctx, leases.Lease{ID: from})
	if err != nil {
		return err
	}
	for _, r := range all {
		if err := ls.AddResource(ctx, leases.Lease{ID: to}, r); err != nil {
			return err
		}
	}
	return ls.Delete(ctx, leases.Lease{ID: from})
}

// Names are those of seeder's leases, sorted.
func (le *Leases) Names(ctx context.Context) ([]string, error) {
	all, err := le.list(ctx)
	return slices.Sorted(maps.Keys(all)), err
}

// list returns the names of seeder's leases and when they were made.
func (le *Leases) list(ctx context.Context) (map[string]time.Time, error) {
	ctx, cl, err := le.conn.use(ctx)
	if err != nil {
		return nil, err
	}
	list, err := cl.LeasesService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the leases: %w", le.conn.fail(err))
	}
	names := map[string]time.Time{}
	for _, l := range list {
		if name, ours := strings.CutPrefix(l.ID, leasePrefix); ours {
			names[strings.TrimSuffix(name, renewing)] = l.CreatedAt
		}
	}
	return names, nil
}

// Drop ends a lease. It is not an error if there is none.
func (le *Leases) Drop(ctx context.Context, name string) error {
	ctx, cl, err := le.conn.use(ctx)
	if err != nil {
		return err
	}
	ls, id := cl.LeasesService(), leasePrefix+name
	err = ls.Delete(ctx, leases.Lease{ID: id})
	if errdefs.IsNotFound(err) { // a crash in the midst of a renewal
		err = ls.Delete(ctx, leases.Lease{ID: id + renewing})
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("release the lease: %w", le.conn.fail(err))
	}
	return nil
}

// Ingest is a blob being written. It is not safe for concurrent use.
type Ingest struct {
	content *Content
	desc    ocispec.Descriptor
	w       content.Writer
	off     int64
}

// Ingest begins to write a blob, or goes on where an earlier try stopped. Under
// a lease a blob that exists already is protected by it; the error is ErrExists
// then.
func (c *Content) Ingest(ctx context.Context, desc ocispec.Descriptor) (*Ingest, error) {
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return nil, err
	}
	var w content.Writer
	err = c.whereGone(ctx, cl, desc.Digest, func() error {
		return c.withRef(ctx, desc.Digest, func(ref string) (err error) {
			w, err = cl.ContentStore().Writer(ctx, content.WithRef(ref), content.WithDescriptor(desc))
			return err
		})
	})
	if errdefs.IsAlreadyExists(err) {
		return nil, ErrExists
	}
	if err != nil {
		return nil, fmt.Errorf("begin to write blob %s: %w", desc.Digest, c.conn.fail(err))
	}
	st, err := w.Status()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write blob %s: %w", desc.Digest, c.conn.fail(err)), w.Close())
	}
	return &Ingest{content: c, desc: desc, w: w, off: st.Offset}, nil
}

// ingestRefs are the names under which a blob may be written. One does unless
// containerd has lost it: where its database cannot be written as an ingest begins
// (its disk is full), it keeps the name locked until it is started again.
func ingestRefs(dgst digest.Digest) []string {
	ref := "seeder-" + dgst.String()
	return []string{ref, ref + "-2", ref + "-3", ref + "-4"}
}

// withRef calls write with a name for the blob's ingest. It waits for a name that
// another writer has; one that is locked for longer than anybody takes to notice the
// end of a writer is left for the next.
func (c *Content) withRef(ctx context.Context, dgst digest.Digest, write func(ref string) error) (err error) {
	for i, ref := range ingestRefs(dgst) {
		// A writer is a stream that lives in ctx, so that the wait is bounded here and
		// not by ctx.
		for try := 0; ; try++ {
			err = write(ref)
			if !errdefs.IsUnavailable(err) || try == ingestTries || i > 0 && isLocked(err) {
				break
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(250 * time.Millisecond):
			}
		}
		if !isLocked(err) {
			break
		}
	}
	return err
}

// isLocked tells a ref that is in use from a containerd that is not there: both are
// Unavailable.
func isLocked(err error) bool {
	return errdefs.IsUnavailable(err) && strings.Contains(err.Error(), " locked for ")
}

// Offset is how much of the blob has been written.
func (i *Ingest) Offset() int64 { return i.off }

// Write appends to the blob. 4 to 8 MiB at once are fastest; a message of
// containerd's API takes at most 16 MiB.
func (i *Ingest) Write(p []byte) (int, error) {
	n, err := i.w.Write(p)
	i.off += int64(n)
	if err != nil {
		return n, fmt.Errorf("write blob %s: %w", i.desc.Digest, i.content.conn.fail(err))
	}
	return n, nil
}

// Commit makes the blob visible, with labels, once containerd has verified size and
// digest. What was written stays where they do not match (ErrMismatch), until Abort.
// ErrExists: another writer was sooner, and its labels stand.
func (i *Ingest) Commit(ctx context.Context, labels map[string]string) error {
	ctx, _, err := i.content.conn.use(ctx)
	if err != nil {
		return err
	}
	err = i.w.Commit(ctx, i.desc.Size, i.desc.Digest, content.WithLabels(labels))
	switch {
	case errdefs.IsAlreadyExists(err):
		return ErrExists
	case errdefs.IsFailedPrecondition(err):
		return fmt.Errorf("commit blob %s: %w: %w", i.desc.Digest, ErrMismatch, err)
	case err != nil:
		return fmt.Errorf("commit blob %s: %w", i.desc.Digest, i.content.conn.fail(err))
	}
	return nil
}

// Close ends the writing; what was written stays for the next try unless it was
// committed.
func (i *Ingest) Close() error { return i.w.Close() }

// Abort throws away an unfinished blob.
func (c *Content) Abort(ctx context.Context, dgst digest.Digest) error {
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return err
	}
	for _, ref := range ingestRefs(dgst) {
		if err := c.abort(ctx, cl.ContentStore(), ref); err != nil {
			return fmt.Errorf("throw away the unfinished blob %s: %w", dgst, c.conn.fail(err))
		}
	}
	return nil
}

// abort tries for a while: a daemon learns a moment later than Close that the writer
// is gone; until then what is to be removed may still be written to.
func (c *Content) abort(ctx context.Context, cs store, ref string) error {
	for try := 0; ; try++ {
		err := cs.Abort(ctx, ref)
		if err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		if try == abortTries || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(abortPause):
		}
	}
}

// label sets the labels by which garbage collection finds an image's blobs from
// its target, for those that are here.
func (c *Content) label(ctx context.Context, cs *once, target ocispec.Descriptor) error {
	present := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := images.Children(ctx, cs, desc)
		if err != nil {
			return nil, err
		}
		var here []ocispec.Descriptor
		for _, child := range children {
			ok, err := cs.has(ctx, child.Digest)
			if err != nil {
				return nil, err
			}
			if ok {
				here = append(here, child)
			}
		}
		return here, nil
	})
	err := images.Walk(ctx, images.SetChildrenMappedLabels(cs, present, images.ChildGCLabels), target)
	if err != nil {
		return fmt.Errorf("label the blobs of %s: %w", target.Digest, c.conn.fail(err))
	}
	return nil
}
