package ctrd

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/internal/wait"
)

// DefaultLeaseTTL is Config.LeaseTTL where that is 0.
const DefaultLeaseTTL = 24 * time.Hour

// leasePrefix tells seeder's leases from those of others.
const leasePrefix = "seeder-"

// ReleaseGrace is what a lease's release has once its work was told to end: a
// containerd that hangs must not hold up the end of the daemon.
const ReleaseGrace = time.Second

// Leases owns seeder's leases, which keep what is written from garbage collection until
// it has a name.
type Leases struct{ conn *Conn }

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

// keep puts what is here already under the lease of ctx, if it has one.
func keep(ctx context.Context, ls leases.Manager, what leases.Resource) error {
	id, ok := leases.FromContext(ctx)
	if !ok {
		return nil
	}
	return ls.AddResource(ctx, leases.Lease{ID: id}, what)
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

// Protect puts a target that is here, with all that its labels keep, under the
// lease of ctx.
func (le *Leases) Protect(ctx context.Context, target ocispec.Descriptor) error {
	ctx, cl, err := le.conn.use(ctx)
	if err != nil {
		return err
	}
	id, ok := leases.FromContext(ctx)
	if !ok {
		return fmt.Errorf("protect %s: there is no lease", target.Digest)
	}
	err = cl.LeasesService().AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: target.Digest.String(), Type: "content"})
	if err != nil {
		return fmt.Errorf("protect %s: %w", target.Digest, le.conn.fail(err))
	}
	return nil
}

// collectNow has containerd collect garbage, and waits: the end of a lease does that.
func (le *Leases) collectNow(ctx context.Context) error {
	if le.conn.embedded != nil {
		return le.conn.Collect(ctx)
	}
	ctx, cl, err := le.conn.use(ctx)
	if err != nil {
		return err
	}
	ls := cl.LeasesService()
	l, err := ls.Create(ctx, leases.WithID(leasePrefix+"collect"), leases.WithExpiration(le.conn.cfg.LeaseTTL))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return le.conn.fail(err)
	}
	if err != nil {
		l = leases.Lease{ID: leasePrefix + "collect"}
	}
	if err := ls.Delete(ctx, l, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
		return le.conn.fail(err)
	}
	return nil
}
