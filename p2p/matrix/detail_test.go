package matrix

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/chunk"
)

// TestContents: of the blobs of an image its layers are listed, those of both formats, and
// for which platforms it is.
func TestContents(t *testing.T) {
	t.Parallel()
	var blobs []chunk.Blob
	for i, kind := range []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig,
		ocispec.MediaTypeImageLayerGzip, "application/vnd.docker.image.rootfs.diff.tar.gzip", ocispec.MediaTypeImageLayer} {
		b := chunk.Blob{Digest: digest.FromString(kind), Bytes: int64(i + 1), MediaType: kind, ChunkBytes: chunk.MinBytes, Sums: [][sha256.Size]byte{{}}}
		if i > 3 {
			b.Platforms = []string{"linux/arm64", "linux/amd64"}[i-4 : i-3]
		}
		blobs = append(blobs, b)
	}
	index, err := chunk.New(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: blobs[0].Digest, Size: 1}, blobs)
	if err != nil {
		t.Fatal(err)
	}
	platforms, layers := contents(index)
	if fmt.Sprint(platforms) != "[linux/amd64 linux/arm64]" || len(layers) != 3 {
		t.Fatalf("%v %+v", platforms, layers)
	}
	for i, l := range layers {
		if b := blobs[i+3]; l.Digest != b.Digest.String() || l.Bytes != b.Bytes || !slices.Equal(l.Platforms, b.Platforms) {
			t.Errorf("layer %d: %+v", i, l)
		}
	}
}
