package p2p

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"
	"time"

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

// TestTraffic: ten minutes are kept, in and out apart, and what is older is gone.
func TestTraffic(t *testing.T) {
	t.Parallel()
	var x traffic
	start := time.Unix(1_800_000_000, 0)
	x.add(start, 5, 0)
	x.add(start.Add(time.Second), 1, 7)
	x.add(start.Add(trafficSlot), 2, 0)
	r := x.report(start.Add(trafficSlot))
	if n := len(r.In); n != trafficSlots || len(r.Out) != n || r.In[n-2] != 6 || r.In[n-1] != 2 || r.Out[n-2] != 7 || r.Slot != trafficSlot {
		t.Errorf("%+v", r)
	}
	r = x.report(start.Add(trafficSlots * trafficSlot))
	if r.In[0] != 2 || slices.Max(r.Out) != 0 {
		t.Errorf("after ten minutes: %+v", r)
	}
	x.add(start.Add(24*time.Hour), 3, 0)
	if r = x.report(start.Add(24 * time.Hour)); r.In[trafficSlots-1] != 3 || slices.Max(r.In[:trafficSlots-1]) != 0 {
		t.Errorf("after a day: %+v", r)
	}
}
