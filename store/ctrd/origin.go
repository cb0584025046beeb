package ctrd

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
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
