package ctrd

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/imageref"
)

const (
	// labelManaged is what CRI puts on the images that it shows.
	labelManaged = "io.cri-containerd.image"
	// labelPinned keeps the kubelet's garbage collection off an image (containerd
	// 1.6.25, 1.7.3 and later). k3s's own label is left alone: k3s clears the pins
	// of images that carry it at each start.
	labelPinned = "io.cri-containerd.pinned"

	// criWait is how long CRI may take to see a new name. It follows events and
	// is there within milliseconds; criTouch is when the record is written again
	// to make another event.
	criWait  = 15 * time.Second
	criTouch = time.Second
	criPoll  = 20 * time.Millisecond
)

// record is one image record that seeder writes.
type record struct {
	name   string
	labels map[string]string
	// shared: two manifests of one config have the same id, and either will do.
	shared bool
}

// records are those that stand for ref at target, as a CRI pull leaves them: by
// image id, by digest, and ref itself, in the order in which they are written.
// The id is never pinned: CRI shows an image as pinned where any of its names is,
// and a replaced version has to become collectable. Where this host lacks the
// config, since target has no image for its platform, there is no id.
func (im *Images) records(ctx context.Context, cs store, ref string, target ocispec.Descriptor) ([]record, error) {
	byDigest, err := imageref.ByDigest(ref, target.Digest)
	if err != nil {
		return nil, fmt.Errorf("name %s: %w", ref, err)
	}
	managed := map[string]string{labelManaged: "managed"}
	named := maps.Clone(managed)
	if im.conn.cfg.Pin {
		named[labelPinned] = "pinned"
	}
	var out []record
	config, err := images.Config(ctx, cs, target, im.conn.platform)
	if err == nil {
		out = append(out, record{config.Digest.String(), managed, true})
	} else if !errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("find the config of %s: %w", target.Digest, im.conn.fail(err))
	}
	return append(out, record{byDigest, named, false}, record{ref, named, false}), nil
}

// Publish makes target visible as ref: the labels of its blobs, the names by
// image id and by digest that CRI keeps for a pulled image, and last the name
// itself; then it waits until CRI answers for ref, where there is a CRI. The version
// that ref named before loses its pin, so that the kubelet may collect it. It is
// idempotent. The blobs here, which the caller has just found or written, are not
// looked for again.
func (im *Images) Publish(ctx context.Context, ref string, target ocispec.Descriptor, here ...digest.Digest) error {
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return err
	}
	cs := im.content.once(cl, here...)
	if err := im.content.label(ctx, cs, target); err != nil {
		return err
	}
	records, err := im.records(ctx, cs, ref, target)
	if err != nil {
		return err
	}
	before, err := cl.ImageService().Get(ctx, ref)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("look up image %s: %w", ref, im.conn.fail(err))
	}
	for _, r := range records {
		if err := write(ctx, cl.ImageService(), r, target); err != nil {
			return fmt.Errorf("name image %s: %w", r.name, im.conn.fail(err))
		}
	}
	if old := before.Target.Digest; old != "" && old != target.Digest {
		// Best effort: a pin too many costs disk, nothing else.
		if err := im.unpinReplaced(ctx, cl.ImageService(), ref, old); err != nil {
			im.conn.log.Warn("failed to unpin the replaced version", "ref", ref, "digest", old, "err", err)
		}
	}
	if foreign, err := im.content.isForeign(ctx, cs, target); err != nil || foreign {
		return err // nobody runs it here
	}
	return im.runtime.awaitCRI(ctx, cl, cs, records[len(records)-1], target)
}

// unpinReplaced takes the pin off the name by digest of the target that ref had
// before, unless another tag of the repository has it.
func (im *Images) unpinReplaced(ctx context.Context, is images.Store, ref string, old digest.Digest) error {
	all, err := is.List(ctx, "target.digest=="+old.String())
	if err != nil {
		return err
	}
	for _, name := range onlyFor(ref, all) {
		if err := unpin(ctx, is, name); err != nil {
			return err
		}
	}
	return nil
}

// write writes one image record, keeping labels that are not ours.
func write(ctx context.Context, is images.Store, r record, target ocispec.Descriptor) error {
	img := images.Image{Name: r.name, Target: target, Labels: r.labels}
	cur, err := is.Get(ctx, r.name)
	if errdefs.IsNotFound(err) {
		if _, err = is.Create(ctx, img); !errdefs.IsAlreadyExists(err) {
			return err
		}
	} else if err != nil {
		return err
	}
	if r.shared && cur.Target.Digest != "" {
		img.Target = cur.Target
	}
	if cur.Target.Digest == img.Target.Digest && hasLabels(cur.Labels, img.Labels) {
		return nil
	}
	return update(ctx, is, img)
}

func update(ctx context.Context, is images.Store, img images.Image) error {
	paths := []string{"target"}
	for k := range img.Labels {
		paths = append(paths, "labels."+k)
	}
	_, err := is.Update(ctx, img, paths...)
	return err
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

// Unpin takes the pins off ref and its name by digest.
func (im *Images) Unpin(ctx context.Context, ref string) error {
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return err
	}
	img, err := cl.ImageService().Get(ctx, ref)
	if err != nil {
		return fmt.Errorf("unpin image %s: %w", ref, im.conn.fail(err))
	}
	byDigest, err := imageref.ByDigest(ref, img.Target.Digest)
	if err != nil {
		return fmt.Errorf("unpin image %s: %w", ref, err)
	}
	for _, name := range []string{byDigest, ref} {
		if err := unpin(ctx, cl.ImageService(), name); err != nil {
			return fmt.Errorf("unpin image %s: %w", name, im.conn.fail(err))
		}
	}
	return nil
}

// unpin takes the pin off one name, if it is there and pinned.
func unpin(ctx context.Context, is images.Store, name string) error {
	cur, err := is.Get(ctx, name)
	if errdefs.IsNotFound(err) || err == nil && cur.Labels[labelPinned] == "" {
		return nil
	}
	if err != nil {
		return err
	}
	cur.Labels = map[string]string{labelPinned: ""} // an empty value removes a label
	_, err = is.Update(ctx, cur, "labels."+labelPinned)
	return err
}

// Settle unpacks and publishes an image whose blobs are all here. One that is for
// other platforms is named, so that it can be given to others, and not unpacked. It is
// idempotent; the caller holds a lease. The blobs here are not looked for again.
func (im *Images) Settle(ctx context.Context, ref string, target ocispec.Descriptor, here ...digest.Digest) error {
	if err := im.runtime.Unpack(ctx, target, here...); err != nil {
		return err
	}
	return im.Publish(ctx, ref, target, here...)
}
