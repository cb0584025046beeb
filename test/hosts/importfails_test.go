package hosts

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/test/harness"
)

// TestImportThatFailsLater: an archive of two images whose second one cannot be
// unpacked leaves no name, pin or lease, and what the name of the first one stood for
// before is what it stands for.
func TestImportThatFailsLater(t *testing.T) {
	t.Parallel()
	n := harness.NewCluster(t, harness.Newest, 1, "")
	h := n.Hosts[0]
	before := says(t, "good")
	h.Run("announce", "--from", before.OCIArchive(t, n.Dir))
	records, leases := h.Ctr("images", "ls"), leasesOn(h) // with targets and labels

	good := harness.NewImage(t, harness.ImageSpec{Ref: before.Ref, Says: "a later build", Payload: 10_000})
	bad := harness.PackImage(t, "docker.io/library/bad:v1", false, harness.TarOf(t, map[string][]byte{"a": []byte("a")}), []byte(strings.Repeat("not a tar file. ", 64)))
	if err := h.Try(nil, "announce", "--from", twoImages(t, n.Dir, good, bad)); harness.ExitCode(err) != 1 || !strings.Contains(err.Error(), "unpack") {
		t.Errorf("a layer that is not a tar file: %v", err)
	}
	if got := h.Ctr("images", "ls"); got != records {
		t.Errorf("the images are\n%s\nwant\n%s", got, records)
	}
	if got := leasesOn(h); !slices.Equal(got, leases) {
		t.Errorf("the leases are %q, want %q", got, leases)
	}
	if got := h.RunContainer(before.Ref); got != "good" {
		t.Errorf("a container from %s prints %q", before.Ref, got)
	}
}

// twoImages is an OCI archive of two images by their names.
func twoImages(t *testing.T, dir string, a, b *harness.Image) string {
	t.Helper()
	blobs := a.Blobs()
	maps.Copy(blobs, b.Blobs())
	var tops []ocispec.Descriptor
	for _, img := range []*harness.Image{a, b} {
		tops = append(tops, called(ocispec.MediaTypeImageManifest, img.Manifest, map[string]string{images.AnnotationImageName: img.Ref}))
	}
	return archiveOf(t, dir, blobs, tops...)
}
