package ctrd

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// MarkDamaged notes that the blob in the file with that stamp, none where it was read
// through containerd, is not what its digest says: Has and Check pass over it until it
// is removed, or its file is another one.
func (c *Containerd) MarkDamaged(dgst digest.Digest, stamp Stamp) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.damaged == nil {
		c.damaged = map[digest.Digest]Stamp{}
	}
	c.damaged[dgst] = stamp
}

// Damaged reports whether the blob that containerd has is known to be damaged.
func (c *Containerd) Damaged(ctx context.Context, dgst digest.Digest) bool {
	c.mu.Lock()
	stamp, marked := c.damaged[dgst]
	c.mu.Unlock()
	if !marked {
		return false
	}
	if now := c.Stamp(ctx, dgst); stamp == (Stamp{}) || now == stamp {
		return true
	}
	c.unmark(dgst)
	return false
}

func (c *Containerd) unmark(dgst digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.damaged, dgst)
}

// RemoveDamaged removes a damaged blob, so that it can be written anew. Containerd
// would take the file that it has for the blob as long as it is there: garbage is
// collected before it returns.
func (c *Containerd) RemoveDamaged(ctx context.Context, dgst digest.Digest) error {
	ctx, cl, err := c.use(ctx)
	if err != nil {
		return err
	}
	if err := cl.ContentStore().Delete(ctx, dgst); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the damaged blob %s: %w", dgst, c.fail(err))
	}
	if err := c.collectNow(ctx); err != nil {
		return fmt.Errorf("remove the damaged blob %s: %w", dgst, err)
	}
	if dir := c.blobs(ctx); dir != "" {
		if _, err := os.Lstat(blobPath(dir, dgst)); err == nil {
			return fmt.Errorf("the damaged blob %s is still in %s: another namespace of containerd uses it; remove its image there", dgst, dir)
		}
	}
	c.unmark(dgst)
	return nil
}

// collectNow has containerd collect garbage, and waits: the end of a lease does that.
func (c *Containerd) collectNow(ctx context.Context) error {
	if c.embedded != nil {
		return c.collect(ctx)
	}
	ctx, cl, err := c.use(ctx)
	if err != nil {
		return err
	}
	ls := cl.LeasesService()
	l, err := ls.Create(ctx, leases.WithID(leasePrefix+"collect"), leases.WithExpiration(c.cfg.LeaseTTL))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return c.fail(err)
	}
	if err != nil {
		l = leases.Lease{ID: leasePrefix + "collect"}
	}
	if err := ls.Delete(ctx, l, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
		return c.fail(err)
	}
	return nil
}
