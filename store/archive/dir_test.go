package archive_test

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/archive"
	"seeder/store/storetest"
)

func readDir(t *testing.T, img *storetest.Image) (*archive.Dir, archive.Image) {
	t.Helper()
	d, err := archive.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	imgs, leftOut, err := d.Read(t.Context(), bytes.NewReader(img.OCIArchive(t)), img.Ref)
	if err != nil || len(imgs) != 1 || len(leftOut) != 0 || imgs[0].Reference != img.Ref || imgs[0].Target.Digest != img.Target.Digest {
		t.Fatalf("read %v, left out %v, %v", imgs, leftOut, err)
	}
	return d, imgs[0]
}

// TestDir: all blobs of an archive's image are there, a manifest after what it names; of an
// index a manifest may be missing, of a manifest nothing.
func TestDir(t *testing.T) {
	t.Parallel()
	img := storetest.NewIndex(t, "docker.io/library/app:v1", 5, "linux/amd64", "linux/arm64")
	d, got := readDir(t, img)
	blobs, manifests, err := d.Blobs(t.Context(), got.Target)
	if err != nil || len(blobs)+len(manifests) != len(img.Blobs) || len(manifests) < 3 {
		t.Fatalf("%d blobs and %d manifests of %d, %v", len(blobs), len(manifests), len(img.Blobs), err)
	}
	if last := manifests[len(manifests)-1]; last.Digest != img.Target.Digest {
		t.Errorf("the last is %v, want the index", last)
	}
	for _, desc := range append(blobs, manifests...) {
		r, err := d.Open(t.Context(), desc)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil || digest.FromBytes(b) != desc.Digest || int64(len(b)) != desc.Size || r.Close() != nil {
			t.Errorf("%v: %d bytes, %v", desc, len(b), err)
		}
	}
	if err := d.Remove(t.Context(), manifests[0].Digest); err != nil {
		t.Fatal(err)
	}
	all := len(manifests)
	blobs, manifests, err = d.Blobs(t.Context(), got.Target)
	if err != nil || len(manifests) != all-1 {
		t.Errorf("without one platform: %v %v, %v", blobs, manifests, err)
	}
	if err := d.Remove(t.Context(), blobs[0].Digest); err != nil {
		t.Fatal(err)
	}
	if _, _, err = d.Blobs(t.Context(), got.Target); err == nil || !strings.Contains(err.Error(), "the archive is incomplete: "+blobs[0].Digest.String()) {
		t.Errorf("without a layer: %v", err)
	}
	if _, _, err = d.Blobs(t.Context(), ocispec.Descriptor{MediaType: got.Target.MediaType, Digest: digest.FromString("none")}); err == nil {
		t.Error("an image that is not there has blobs")
	}
}
