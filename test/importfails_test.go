package test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestImportThatFailsLater: an archive of two images whose second one cannot be
// unpacked leaves no name, pin or lease, and what the name of the first one stood for
// before is what it stands for.
func TestImportThatFailsLater(t *testing.T) {
	t.Parallel()
	n := cluster(t, newest, 1, "")
	h := n.hosts[0]
	before := says(t, "good")
	h.run("announce", "--from", before.ociArchive(t, n.dir))
	records, leases := h.ctr("images", "ls"), h.leases() // with targets and labels

	good := newImage(t, imageSpec{ref: before.ref, says: "a later build", payload: 10_000})
	bad := packImage(t, "docker.io/library/bad:v1", false, tarOf(t, map[string][]byte{"a": []byte("a")}), []byte(strings.Repeat("not a tar file. ", 64)))
	if err := h.try(nil, "announce", "--from", twoImages(t, n.dir, good, bad)); exitCode(err) != 1 || !strings.Contains(err.Error(), "unpack") {
		t.Errorf("a layer that is not a tar file: %v", err)
	}
	if got := h.ctr("images", "ls"); got != records {
		t.Errorf("the images are\n%s\nwant\n%s", got, records)
	}
	if got := h.leases(); !slices.Equal(got, leases) {
		t.Errorf("the leases are %q, want %q", got, leases)
	}
	if got := h.runContainer(before.ref); got != "good" {
		t.Errorf("a container from %s prints %q", before.ref, got)
	}
}

// twoImages is an OCI archive of two images by their names.
func twoImages(t *testing.T, dir string, a, b *image) string {
	t.Helper()
	blobs := a.blobs()
	maps.Copy(blobs, b.blobs())
	var tops []ocispec.Descriptor
	for _, img := range []*image{a, b} {
		tops = append(tops, called(ocispec.MediaTypeImageManifest, img.manifest, map[string]string{images.AnnotationImageName: img.ref}))
	}
	return archiveOf(t, dir, blobs, tops...)
}
