package export_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"seeder/store"
	"seeder/store/ctrd"
	"seeder/store/export"
	"seeder/store/storetest"
)

// TestExportPlatform: of an index the blobs of one platform are exported, under the digest of
// the index and without attestations; without a platform, those of all.
func TestExportPlatform(t *testing.T) {
	t.Parallel()
	const ref = "docker.io/library/app:v1"
	img := storetest.NewIndex(t, ref, 1, "linux/amd64", "linux/arm64")
	s, err := store.Open(t.Context(), store.Config{DataDir: t.TempDir(), Containerd: ctrd.Config{Address: ctrd.Embedded}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if _, err := s.ImportArchive(t.Context(), bytes.NewReader(img.OCIArchive(t)), ""); err != nil {
		t.Fatal(err)
	}
	blobs := func(platforms ...int) (out []string) {
		out = append(out, img.Target.Digest.Encoded())
		for _, i := range platforms {
			m := img.Manifests[i]
			out = append(out, m.Descriptor.Digest.Encoded(), m.Config.Digest.Encoded())
			for _, l := range m.Layers {
				out = append(out, l.Digest.Encoded())
			}
		}
		slices.Sort(out)
		return out
	}
	for platform, want := range map[string][]string{"": blobs(0, 1), "linux/arm64": blobs(1), "linux/amd64": blobs(0)} {
		var p bytes.Buffer
		var target digest.Digest
		err := s.Export(t.Context(), export.Order{Ref: ref, Platform: platform}, func(ctx context.Context, a *export.Archive) error {
			target = a.Summary.Digest
			return a.Write(ctx, &p)
		})
		if err != nil || target != img.Target.Digest {
			t.Errorf("%q: %s, %v", platform, target, err)
			continue
		}
		var got []string
		for r := tar.NewReader(&p); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if d, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok {
				got = append(got, d)
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%q: blobs %q, want %q", platform, got, want)
		}
	}
}
