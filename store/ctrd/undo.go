package ctrd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Before are the image records that a Publish may touch, as they were before it, by name;
// nil for one that was not there.
type Before map[string]*images.Image

// Without is b without the records that others have, too.
func (b Before) Without(others ...Before) Before {
	alone := maps.Clone(b)
	for _, other := range others {
		maps.DeleteFunc(alone, func(name string, _ *images.Image) bool { _, shared := other[name]; return shared })
	}
	return alone
}

// Remember returns what Publish of target as ref may touch: the names that it writes, and
// all those of the target that ref had, whose pins it takes off.
func (im *Images) Remember(ctx context.Context, ref string, target ocispec.Descriptor) (Before, error) {
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return nil, err
	}
	writes, err := im.records(ctx, im.content.once(cl), ref, target)
	if err != nil {
		return nil, err
	}
	all, err := cl.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", im.conn.fail(err))
	}
	out := Before{}
	for _, w := range writes {
		out[w.name] = nil
	}
	i := slices.IndexFunc(all, func(img images.Image) bool { return img.Name == ref })
	for _, img := range all {
		_, written := out[img.Name]
		if written || i >= 0 && img.Target.Digest == all[i].Target.Digest {
			out[img.Name] = &img
		}
	}
	return out, nil
}

// Restore makes records what they were before. It tries all of them.
func (im *Images) Restore(ctx context.Context, before Before) error {
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return err
	}
	is := cl.ImageService()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(before)) {
		was := before[name]
		now, err := is.Get(ctx, name)
		switch {
		case errdefs.IsNotFound(err) && was == nil:
			continue
		case errdefs.IsNotFound(err):
			_, err = is.Create(ctx, images.Image{Name: name, Target: was.Target, Labels: was.Labels})
		case err != nil:
		case was == nil:
			err = is.Delete(ctx, name)
		case now.Target.Digest != was.Target.Digest || !maps.Equal(now.Labels, was.Labels):
			_, err = is.Update(ctx, images.Image{Name: name, Target: was.Target, Labels: was.Labels}, "target", "labels")
		}
		if err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("take back the name %s: %w", name, im.conn.fail(err)))
		}
	}
	return errors.Join(errs...)
}
