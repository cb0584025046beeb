package matrix

import (
	"context"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/report"
	"seeder/store/chunk"
)

// Store tells what this host has of an image.
type Store interface {
	Has(ctx context.Context, target digest.Digest) bool
	SeedIndex(ctx context.Context, seed digest.Digest) ([]byte, error)
}

// maxLayers bounds the layers that a description of an image lists.
const maxLayers = 256

// Describe is what this node knows of an announced image, as far as it holds the seed index.
func (m *Matrix) Describe(ctx context.Context, ref string) report.ImageDetail {
	var out report.ImageDetail
	rec, ok := m.cfg.Catalog.Get(ref)
	if !ok {
		return out
	}
	a := rec.Announcement()
	for _, target := range m.cfg.Catalog.History(ref) {
		if target != a.Target.Digest && m.cfg.Store.Has(ctx, target) {
			out.Kept = append(out.Kept, target.String())
		}
	}
	b, err := m.cfg.Store.SeedIndex(ctx, a.Seed.Digest)
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
