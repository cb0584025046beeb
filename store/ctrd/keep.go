package ctrd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// forPrevious begins the names of the leases of KeepPrevious; the target ends them.
const forPrevious = "previous-"

// KeepPrevious protects those of targets that are here, with all that belongs to
// them, from garbage collection by a lease for each, and drops the leases that it
// made for others before. It is idempotent; a lease that has lived half its time is
// renewed, so that it has to be called more often than that.
func (im *Images) KeepPrevious(ctx context.Context, targets []digest.Digest) error {
	have, err := im.leases.list(ctx)
	if err != nil {
		return err
	}
	wanted := map[string]digest.Digest{}
	for _, t := range targets {
		wanted[forPrevious+t.Encoded()] = t
	}
	var errs []error
	for name := range have {
		if strings.HasPrefix(name, forPrevious) && wanted[name] == "" {
			errs = append(errs, im.leases.Drop(ctx, name))
		}
	}
	for name, target := range wanted {
		made, leased := have[name]
		if !leased || time.Since(made) >= im.conn.cfg.LeaseTTL/2 {
			errs = append(errs, im.keepOne(ctx, name, target))
		}
	}
	return errors.Join(errs...)
}

func (im *Images) keepOne(ctx context.Context, name string, target digest.Digest) error {
	if _, here, err := im.content.Has(ctx, target); err != nil || !here {
		return err
	}
	_, release, err := im.leases.Take(ctx, name)
	if err != nil {
		return err
	}
	nctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return err
	}
	err = cl.LeasesService().AddResource(nctx, leases.Lease{ID: leasePrefix + name}, leases.Resource{ID: target.String(), Type: "content"})
	if err != nil {
		return errors.Join(fmt.Errorf("keep %s: %w", target, im.conn.fail(err)), release(ctx))
	}
	return nil
}

// Discard removes the records by digest and by image id of an earlier target of
// ref, which stands for another one now, unless another tag needs them. Where there
// is a CRI they are left to the kubelet: a pod may name them.
func (im *Images) Discard(ctx context.Context, ref string, target digest.Digest) error {
	if conn, err := im.runtime.cri(ctx); err != nil || conn != nil {
		return err
	}
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return err
	}
	is := cl.ImageService()
	all, err := is.List(ctx, "target.digest=="+target.String())
	if err != nil {
		return fmt.Errorf("release %s: %w", target, im.conn.fail(err))
	}
	gone := false
	if slices.ContainsFunc(all, func(i images.Image) bool { return i.Name == ref }) {
		return nil // it has been moved back meanwhile
	}
	for _, name := range onlyFor(ref, all) {
		if err := is.Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove image %s: %w", name, im.conn.fail(err))
		}
		gone = true
	}
	if !gone {
		return nil
	}
	return im.conn.Collect(ctx)
}

// KeptBytes is how much the targets that KeepPrevious protects take at most: what
// they share with other images counts, too.
func (im *Images) KeptBytes(ctx context.Context) (int64, error) {
	names, err := im.leases.list(ctx)
	if err != nil {
		return 0, err
	}
	sizes := map[digest.Digest]int64{}
	for name := range names {
		hex, ours := strings.CutPrefix(name, forPrevious)
		if !ours {
			continue
		}
		target, err := im.Find(ctx, digest.NewDigestFromEncoded(digest.SHA256, hex))
		if err != nil {
			continue // it is not here any more
		}
		blobs, err := im.content.Walk(ctx, target)
		if err != nil {
			continue
		}
		for _, b := range blobs {
			sizes[b.Digest] = b.Size
		}
	}
	var sum int64
	for _, n := range sizes {
		sum += n
	}
	return sum, nil
}
