package ctrd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
)

// labelSource begins the labels that containerd's and CRI's pull leave on every
// blob that came from a registry.
const labelSource = "containerd.io/distribution.source."

// FromRegistry reports whether ref was pulled from a registry, as a label on its
// target says. What was imported, loaded or built has none, but for what Preloaded
// tells: newer versions of k3s label that for their embedded registry.
func (im *Images) FromRegistry(ctx context.Context, ref string) (bool, error) {
	named, err := im.ResolveNamed(ctx, ref)
	if err != nil {
		return false, err
	}
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return false, err
	}
	info, err := cl.ContentStore().Info(ctx, named.Target.Digest)
	if err != nil {
		return false, fmt.Errorf("find the origin of %s: %w", ref, im.conn.fail(err))
	}
	for label := range info.Labels {
		if strings.HasPrefix(label, labelSource) {
			return true, nil
		}
	}
	return false, nil
}

// labelK3s is what k3s puts on the images that it has brought from the files in its
// agent/images.
const labelK3s = "io.cattle.k3s.pinned"

// Preloaded reports whether k3s has brought ref from its agent/images: as an archive,
// or pulled since a list there names it.
func (im *Images) Preloaded(ctx context.Context, ref string) (bool, error) {
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return false, err
	}
	img, err := cl.ImageService().Get(ctx, ref)
	if errdefs.IsNotFound(err) {
		return false, nil // k3s gives its images the names that CRI looks for
	}
	if err != nil {
		return false, fmt.Errorf("find the origin of %s: %w", ref, im.conn.fail(err))
	}
	return img.Labels[labelK3s] != "", nil
}

// criContainer is the extension in which CRI keeps what it knows of a container.
const criContainer = "io.cri-containerd.container.metadata"

// InUse names the containers, running or not, that were made from the image that
// ref stands for: pods as namespace/name, others by their ids. The error wraps
// fs.ErrNotExist where there is no such image.
func (im *Images) InUse(ctx context.Context, ref string) ([]string, error) {
	target, err := im.Resolve(ctx, ref)
	if err != nil || im.conn.embedded != nil {
		return nil, err
	}
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return nil, err
	}
	all, err := cl.ImageService().List(ctx, "target.digest=="+target.Digest.String())
	if err != nil {
		return nil, fmt.Errorf("find the containers that use %s: %w", ref, im.conn.fail(err))
	}
	names := map[string]bool{}
	for _, i := range all {
		names[i.Name] = true
	}
	if config, err := images.Config(ctx, im.content.once(cl), target, im.conn.platform); err == nil {
		names[config.Digest.String()] = true
	}
	list, err := cl.ContainerService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("find the containers that use %s: %w", ref, im.conn.fail(err))
	}
	var out []string
	for _, ctr := range list {
		if names[imageOf(ctr)] {
			out = append(out, containerName(ctr))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// imageOf is the image that a container was made from: the id where CRI made it,
// since the name may stand for another build by now, else the name.
func imageOf(ctr containers.Container) string {
	if ext, ok := ctr.Extensions[criContainer]; ok {
		var meta struct{ Metadata struct{ ImageRef string } }
		if json.Unmarshal(ext.GetValue(), &meta) == nil && meta.Metadata.ImageRef != "" {
			return meta.Metadata.ImageRef
		}
	}
	return ctr.Image
}

func containerName(ctr containers.Container) string {
	if pod := ctr.Labels["io.kubernetes.pod.name"]; pod != "" {
		return ctr.Labels["io.kubernetes.pod.namespace"] + "/" + pod
	}
	return ctr.ID[:min(12, len(ctr.ID))]
}

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
	return im.conn.collect(ctx)
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

// Find returns the descriptor of an image's target that is here, be it named or
// kept. The error of an unknown one wraps fs.ErrNotExist.
func (im *Images) Find(ctx context.Context, target digest.Digest) (ocispec.Descriptor, error) {
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	all, err := cl.ImageService().List(ctx, "target.digest=="+target.String())
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("look for %s: %w", target, im.conn.fail(err))
	}
	if len(all) > 0 {
		return all[0].Target, nil
	}
	info, err := cl.ContentStore().Info(ctx, target)
	if errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, absentf("this host has no image %s and does not keep it as an earlier version (images.keep_previous says how many are kept)", target)
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("look for %s: %w", target, im.conn.fail(err))
	}
	desc := ocispec.Descriptor{Digest: target, Size: info.Size}
	if desc.MediaType, err = im.content.mediaType(ctx, cl, desc); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("%s is in containerd, but is not an image: %w", target, err)
	}
	return desc, nil
}

// mediaType reads what a manifest or index says that it is.
func (c *Content) mediaType(ctx context.Context, cl *client.Client, desc ocispec.Descriptor) (string, error) {
	if desc.Size > artifact.MaxDocBytes {
		return "", fmt.Errorf("%d bytes are too many for a manifest", desc.Size)
	}
	p, err := content.ReadBlob(ctx, c.once(cl), desc)
	if err != nil {
		return "", c.conn.fail(err)
	}
	var doc struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
		Config    json.RawMessage   `json:"config"`
	}
	if err := json.Unmarshal(p, &doc); err != nil {
		return "", err
	}
	switch {
	case images.IsIndexType(doc.MediaType) || images.IsManifestType(doc.MediaType):
		return doc.MediaType, nil
	case doc.MediaType == "" && doc.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	case doc.MediaType == "" && doc.Config != nil:
		return ocispec.MediaTypeImageManifest, nil
	}
	return "", fmt.Errorf("its media type is %q", doc.MediaType)
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

// Local is an image as other programs on this host may know it.
type Local struct {
	Digest  digest.Digest   `json:"digest"`           // of the target
	IDs     []digest.Digest `json:"ids"`              // of target, manifests and configs
	Created time.Time       `json:"created,omitzero"` // as the config for this host's platform says
}

// Local describes what ref stands for. The error of an unknown reference wraps
// fs.ErrNotExist.
func (im *Images) Local(ctx context.Context, ref string) (Local, error) {
	named, err := im.ResolveNamed(ctx, ref)
	if err != nil {
		return Local{}, err
	}
	target := named.Target
	blobs, err := im.content.Walk(ctx, target)
	if err != nil {
		return Local{}, err
	}
	out := Local{Digest: target.Digest}
	for _, b := range blobs {
		if !isLayerType(b.MediaType) {
			out.IDs = append(out.IDs, b.Digest)
		}
	}
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return Local{}, err
	}
	cs := im.content.once(cl)
	config, err := images.Config(ctx, cs, target, im.conn.platform)
	if err != nil {
		return out, nil // of another platform
	}
	p, err := content.ReadBlob(ctx, cs, config)
	if err != nil {
		return Local{}, fmt.Errorf("read config %s: %w", config.Digest, im.conn.fail(err))
	}
	var doc struct {
		Created time.Time `json:"created"`
	}
	if json.Unmarshal(p, &doc) == nil {
		out.Created = doc.Created
	}
	return out, nil
}

func isLayerType(mediaType string) bool {
	return strings.Contains(mediaType, ".layer.") || strings.Contains(mediaType, ".rootfs.")
}
