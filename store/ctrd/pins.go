package ctrd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"

	"seeder/store/imageref"
)

// UnpinOthers takes the pins off what the cluster does not announce any more: the
// names by digest, in the repositories of the references that wanted has, of targets
// other than those that wanted has there. Where Config.Pin is off none is wanted, and
// the references themselves lose their pins, too. Pins of k3s stay. It returns the names
// that lost theirs.
//
// Publish cannot do it alone: where somebody imports a new build, the import has moved
// the name already, and nothing tells what it stood for.
func (im *Images) UnpinOthers(ctx context.Context, wanted map[string][]digest.Digest) (released []string, err error) {
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return nil, err
	}
	keep := map[string][]digest.Digest{} // by repository
	for ref, targets := range wanted {
		repo, _ := imageref.Repository(ref)
		if !im.conn.cfg.Pin {
			targets = nil
		}
		keep[repo] = append(keep[repo], targets...)
	}
	is := cl.ImageService()
	pinned, err := is.List(ctx, fmt.Sprintf("labels.%q", labelPinned))
	if err != nil {
		return nil, fmt.Errorf("list the pinned images: %w", im.conn.fail(err))
	}
	var errs []error
	for _, img := range pinned {
		if !im.looseIn(img, keep, wanted) {
			continue
		}
		if err := unpin(ctx, is, img.Name); err != nil {
			errs = append(errs, fmt.Errorf("unpin image %s: %w", img.Name, im.conn.fail(err)))
			continue
		}
		released = append(released, img.Name)
	}
	return released, errors.Join(errs...)
}

// looseIn reports whether img is pinned for nobody.
func (im *Images) looseIn(img images.Image, keep map[string][]digest.Digest, refs map[string][]digest.Digest) bool {
	if img.Labels[labelPinned] == "" || img.Labels[labelK3s] != "" {
		return false
	}
	if _, ours := refs[img.Name]; ours {
		return !im.conn.cfg.Pin
	}
	repo, _, byDigest := strings.Cut(img.Name, "@")
	targets, ours := keep[repo]
	return ours && byDigest && !slices.Contains(targets, img.Target.Digest)
}

// isLoose reports whether List found ref without a pin that it should have.
func (im *Images) isLoose(ref string) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.loose[ref]
}
