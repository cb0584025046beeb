package p2p

import (
	"context"
	"slices"
	"strings"

	"seeder/p2p/report"
	"seeder/store/chunk"
)

// maxLayers bounds the layers that a description of an image lists.
const maxLayers = 256

// Describe is what this node knows of an announced image, as far as it holds the seed index.
func (n *Node) Describe(ctx context.Context, ref string) report.ImageDetail {
	var out report.ImageDetail
	rec, ok := n.catalog.Get(ref)
	if !ok {
		return out
	}
	a := rec.Announcement()
	for _, target := range n.catalog.History(ref) {
		if target != a.Target.Digest && n.store.Has(ctx, target) {
			out.Kept = append(out.Kept, target.String())
		}
	}
	b, err := n.store.SeedIndex(ctx, a.Seed.Digest)
	if err != nil {
		return out
	}
	index, err := chunk.Decode(b)
	if err != nil {
		return out
	}
	out.Platforms, out.Layers = contents(index)
	return out
}

// contents are the platforms and the layers of an image.
func contents(index chunk.Index) (platforms []string, layers []report.Layer) {
	for _, blob := range index.Blobs {
		for _, p := range blob.Platforms {
			if !slices.Contains(platforms, p) {
				platforms = append(platforms, p)
			}
		}
		if isLayer(blob.MediaType) && len(layers) < maxLayers {
			layers = append(layers, report.Layer{Digest: blob.Digest.String(), Bytes: blob.Bytes, MediaType: blob.MediaType, Platforms: blob.Platforms})
		}
	}
	slices.Sort(platforms)
	return platforms, layers
}

// isLayer reports whether a media type is that of a layer, of the OCI or of Docker.
func isLayer(mediaType string) bool {
	return strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.") || strings.HasPrefix(mediaType, "application/vnd.docker.image.rootfs.")
}
