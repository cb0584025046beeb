package ctrd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

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

// awaitCRI waits until CRI answers for the record of target with its config.
func (rt *Runtime) awaitCRI(ctx context.Context, cl *client.Client, cs store, r record, target ocispec.Descriptor) error {
	ctx, cancel := context.WithTimeout(ctx, criWait)
	defer cancel()
	touched := false
	start := time.Now()
	var reason string
	for {
		now, err := rt.askCRI(ctx, cs, r.name, target)
		if err == nil && now == "" {
			return nil
		}
		if ctx.Err() != nil && reason != "" {
			err = nil // the wait ended while it was asked; what it said before is why
		} else {
			reason = now
		}
		if !touched && time.Since(start) > criTouch {
			touched = true
			err = errors.Join(err, update(ctx, cl.ImageService(), images.Image{Name: r.name, Target: target, Labels: r.labels}))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("image %s is stored, but CRI does not show it: %s: %w", r.name, reason, errors.Join(err, context.Cause(ctx)))
		case <-time.After(criPoll):
		}
	}
}

// askCRI says why CRI does not answer for ref with target, "" where it does, where
// the socket serves no CRI, or where Config.Platform is one that its host does not run.
func (rt *Runtime) askCRI(ctx context.Context, cs store, ref string, target ocispec.Descriptor) (reason string, err error) {
	conn, err := rt.cri(ctx)
	if err != nil || conn == nil || !platforms.Default().Match(rt.conn.spec) {
		return "", err
	}
	resp, err := runtime.NewImageServiceClient(conn).ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err = errdefsOf(err); errdefs.IsNotImplemented(err) {
		rt.mu.Lock()
		rt.noCRI = true
		rt.mu.Unlock()
		return "", nil
	}
	if err != nil {
		return "CRI does not answer", rt.conn.fail(err)
	}
	if resp.GetImage() == nil {
		return "CRI does not know the reference", nil
	}
	config, err := images.Config(ctx, cs, target, rt.conn.platform)
	if err != nil {
		return "the config is not readable", rt.conn.fail(err)
	}
	if resp.GetImage().GetId() != config.Digest.String() {
		return "CRI still answers with " + resp.GetImage().GetId(), nil
	}
	return "", nil
}

// errdefsOf turns a status of gRPC into an error of errdefs.
func errdefsOf(err error) error {
	if err == nil {
		return nil
	}
	return errgrpc.ToNative(err)
}

// Check says whether ref is at target, complete, unpacked, pinned and known to
// CRI; where it is not, reason says what lacks.
func (ck *Checks) Check(ctx context.Context, ref string, target digest.Digest) (ready bool, reason string, err error) {
	ctx, cl, err := ck.conn.use(ctx)
	if err != nil {
		return false, "", err
	}
	cs := ck.content.once(cl)
	var top digest.Digest
	defer func() {
		seen := checked{}
		if ready {
			seen = checked{blobs: slices.Collect(maps.Keys(cs.infos)), top: top}
		}
		ck.keepChecked(ref, seen)
	}()
	img, err := cl.ImageService().Get(ctx, ref)
	if errdefs.IsNotFound(err) {
		return false, "containerd has no image of that name", nil
	}
	if err != nil {
		return false, "", fmt.Errorf("look up image %s: %w", ref, ck.conn.fail(err))
	}
	if img.Target.Digest != target {
		return false, "the name stands for " + img.Target.Digest.String(), nil
	}
	blobs, err := ck.content.walk(ctx, cs, img.Target)
	if err != nil {
		var missing *MissingError
		if errors.As(err, &missing) {
			return false, missing.Error(), nil
		}
		return false, "", err
	}
	for _, b := range blobs {
		if ck.content.Damaged(ctx, b.Digest) {
			return false, fmt.Sprintf("blob %s is damaged in containerd's content store; it is replaced by that of another node, or where no other has it by `seeder announce --from` of an archive that has it", b.Digest), nil
		}
	}
	if foreign, err := ck.content.isForeign(ctx, cs, img.Target); err != nil {
		return false, "", err
	} else if foreign {
		return false, "the image has nothing for " + ck.conn.Platform(), nil
	}
	if loose, err := ck.content.unlabelled(ctx, cs, target, blobs); loose != "" || err != nil {
		return false, fmt.Sprintf("nothing keeps blob %s from garbage collection", loose), err
	}
	if reason, err := ck.checkRecords(ctx, cl, cs, ref, img.Target); reason != "" || err != nil {
		return false, reason, err
	}
	if ck.conn.embedded != nil {
		return true, "", nil
	}
	top, err = ck.runtime.unpacked(ctx, cs, img.Target)
	if err != nil {
		return false, "", err
	}
	if top == "" {
		return false, "the image is not unpacked", nil
	}
	reason, err = ck.runtime.askCRI(ctx, cs, ref, img.Target)
	return reason == "" && err == nil, reason, err
}

// unlabelled is a blob that garbage collection does not find from its image's
// target by labels: somebody removed them (`ctr content prune references` does),
// and what is here now is gone soon.
func (c *Content) unlabelled(ctx context.Context, cs store, target digest.Digest, blobs []Blob) (digest.Digest, error) {
	kept := map[digest.Digest]bool{target: true}
	for _, b := range blobs { // parents come before their children
		if !kept[b.Digest] {
			return b.Digest, nil
		}
		info, err := cs.Info(ctx, b.Digest)
		if err != nil {
			return "", fmt.Errorf("look for blob %s: %w", b.Digest, c.conn.fail(err))
		}
		for label, child := range info.Labels {
			if strings.HasPrefix(label, labelContent) {
				kept[digest.Digest(child)] = true
			}
		}
	}
	return "", nil
}

// checkRecords says which of the records of ref is not as it should be.
func (ck *Checks) checkRecords(ctx context.Context, cl *client.Client, cs store, ref string, target ocispec.Descriptor) (reason string, err error) {
	records, err := ck.images.records(ctx, cs, ref, target)
	if err != nil {
		return "", err
	}
	for _, r := range records {
		img, err := cl.ImageService().Get(ctx, r.name)
		switch {
		case errdefs.IsNotFound(err):
			return "there is no record " + r.name, nil
		case err != nil:
			return "", fmt.Errorf("look up image %s: %w", r.name, ck.conn.fail(err))
		case !r.shared && img.Target.Digest != target.Digest:
			return "the record " + r.name + " is another one", nil
		case !hasLabels(img.Labels, r.labels):
			return fmt.Sprintf("labels are missing from the record %s of %v", r.name, r.labels), nil
		}
	}
	return "", nil
}
