package ctrd

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
	"seeder/store/imageref"
)

// Named is what a reference stands for in containerd.
type Named struct {
	Target ocispec.Descriptor
	// As is the name that containerd has it under where that is another way to write
	// the reference, for which CRI does not look: short, without its tag, or with
	// index.docker.io. "" where it is the reference itself.
	As string
	// Other is such a name that stands for another build, which is the older one; ""
	// where there is none.
	Other string
}

// ResolveNamed is Resolve that also finds an image under a name for which CRI does not
// look: `ctr images import` takes names as the archive has them. Of two builds under
// ways to write one reference it is the one that was named last.
func (im *Images) ResolveNamed(ctx context.Context, ref string) (Named, error) {
	nctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return Named{}, err
	}
	all, err := cl.ImageService().List(nctx)
	if err != nil {
		return Named{}, fmt.Errorf("look up image %s: %w", ref, im.conn.fail(err))
	}
	var best, other *images.Image
	for i, img := range all {
		if img.Name != ref && imageref.ForCRI(img.Name) != ref {
			continue
		}
		if best == nil || later(img, *best) && img.Target.Digest != best.Target.Digest || img.Name == ref && img.Target.Digest == best.Target.Digest {
			best, other = &all[i], best
		} else {
			other = &all[i]
		}
	}
	if best == nil {
		return Named{}, im.unknown(nctx, ref)
	}
	out := Named{Target: best.Target}
	if best.Name != ref {
		out.As = best.Name
	}
	if other != nil && other.Target.Digest != best.Target.Digest {
		out.Other = other.Name
	}
	return out, nil
}

func later(a, b images.Image) bool { return a.UpdatedAt.After(b.UpdatedAt) }

// OnlyManifest is the one container image of an index, for which containerd chooses by
// platform, and a manifest itself. It is an error where there are several.
func (c *Content) OnlyManifest(ctx context.Context, target ocispec.Descriptor) (ocispec.Descriptor, error) {
	if !images.IsIndexType(target.MediaType) {
		return target, nil
	}
	ctx, cl, err := c.conn.use(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	cs := c.once(cl)
	var found []ocispec.Descriptor
	var look func(d ocispec.Descriptor, depth int) error
	look = func(d ocispec.Descriptor, depth int) error {
		children, err := images.Children(ctx, cs, d)
		if err != nil {
			return err
		}
		for _, child := range children {
			if ok, err := cs.has(ctx, child.Digest); err != nil || !ok {
				if err != nil {
					return err
				}
				continue
			}
			if images.IsIndexType(child.MediaType) && depth < artifact.MaxIndexDepth {
				if err := look(child, depth+1); err != nil {
					return err
				}
				continue
			}
			k, err := artifact.Classify(ctx, cs, child)
			if err != nil {
				return err
			}
			if k.Artifact == "" {
				found = append(found, child)
			}
		}
		return nil
	}
	if err := look(target, 0); err != nil && !errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, fmt.Errorf("read index %s: %w", target.Digest, c.conn.fail(err))
	}
	if len(found) != 1 {
		return ocispec.Descriptor{}, fmt.Errorf("--any-platform is for an image of one platform; %s is an index of %d that are here, and containerd takes the one for its platform", target.Digest, len(found))
	}
	return ocispec.Descriptor{MediaType: found[0].MediaType, Digest: found[0].Digest, Size: found[0].Size}, nil
}
