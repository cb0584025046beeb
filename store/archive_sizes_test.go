package store

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/archive"
	"seeder/store/artifact"
)

// TestDocumentOfManyBytes: a manifest that is larger than any is refused before it is read
// into memory, also where the archive says that it is small.
func TestDocumentOfManyBytes(t *testing.T) {
	t.Parallel()
	large := bytes.Repeat([]byte(" "), artifact.MaxDocBytes+1)
	said := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(large), Size: 2,
		Annotations: map[string]string{archive.ImageName: v1}}
	doc := func(v any) []byte {
		p, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	index := func(d ocispec.Descriptor) []byte {
		return doc(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d}})
	}
	blob := func(p []byte) entry { return entry{archive.BlobName(digest.FromBytes(p)), p} }
	layout := entry{"oci-layout", doc(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})}
	above := index(said)
	nested := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(above), Size: int64(len(above)), Annotations: said.Annotations}
	contents, err := archive.Contents{
		Image: archive.Called{Reference: v2, MediaType: said.MediaType, Digest: said.Digest, Size: said.Size},
		Since: archive.Called{Digest: digest.FromString("before")},
		Blobs: []archive.Piece{{Digest: said.Digest, Size: int64(len(large))}},
	}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	docker := doc([]map[string]any{{"Config": "layer.tar", "RepoTags": []string{v1}, "Layers": []string{"layer.tar"}}})
	s := open(t, t.TempDir())
	for name, p := range map[string][]byte{
		"OCI layout":     tarOf(t, layout, entry{"index.json", above}, blob(large)),
		"below an index": tarOf(t, layout, entry{"index.json", index(nested)}, blob(above), blob(large)),
		"docker-archive": tarOf(t, entry{"layer.tar", large}, entry{"manifest.json", docker}),
		"delta archive":  tarOf(t, entry{archive.ContentsName, contents}, blob(large)),
	} {
		if _, err := s.ImportArchive(t.Context(), bytes.NewReader(p), ""); err == nil || !strings.Contains(err.Error(), "has 8388609 bytes, at most 8388608") {
			t.Errorf("%s: %v", name, err)
		}
		if left := leftBehind(t, s); len(left) > 0 {
			t.Errorf("%s: left behind: %q", name, left)
		}
	}
}

// TestDocumentOfManyValues: a document whose text is short enough, and which would take many
// times as much memory once it is decoded, is refused before that.
func TestDocumentOfManyValues(t *testing.T) {
	t.Parallel()
	many := bytes.Repeat([]byte("1,"), artifact.MaxDocValues+2)
	list := func(before, after string) []byte {
		return append(append([]byte(before), many[:len(many)-1]...), after...)
	}
	manifest := list(`{"layers":[`, "]}")
	said := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest)),
		Annotations: map[string]string{archive.ImageName: v1}}
	index, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{said}})
	if err != nil {
		t.Fatal(err)
	}
	layout := entry{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	s := open(t, t.TempDir())
	for want, p := range map[string][]byte{
		"index.json":         tarOf(t, layout, entry{"index.json", list(`{"manifests":[`, "]}")}),
		"manifest.json":      tarOf(t, entry{"manifest.json", list("[", "]")}),
		archive.ContentsName: tarOf(t, entry{archive.ContentsName, list(`{"version":1,"deltas":[`, "]}")}),
		said.Digest.String(): tarOf(t, layout, entry{"index.json", index}, entry{archive.BlobName(said.Digest), manifest}),
	} {
		want += " has more than 100000 values"
		if _, err := s.ImportArchive(t.Context(), bytes.NewReader(p), ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if left := leftBehind(t, s); len(left) > 0 {
			t.Errorf("%s: left behind: %q", want, left)
		}
	}
}
