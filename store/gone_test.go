package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

// TestBlobFileGone: the file of each blob of an image that is ready goes away below
// containerd, which still knows the blob. Check says so, and the image comes back.
func TestBlobFileGone(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "one", 300_000))
	index, err := chunk.Decode(p.Index)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	b := open(t, dir)
	from := image(t, a, p.Index)
	to := image(t, b, p.Index)
	moveAll(t, from, to)
	if err := to.Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	for _, blob := range index.Blobs {
		found, err := filepath.Glob(filepath.Join(dir, "*", "content", "blobs", "sha256", blob.Digest.Encoded()))
		if err != nil || len(found) != 1 {
			t.Fatalf("the file of %s: %v %v", blob.Digest, found, err)
		}
		if err := os.Remove(found[0]); err != nil {
			t.Fatal(err)
		}
		ok, reason, err := b.Check(t.Context(), full, p.Target.Digest)
		if ok || err != nil || !strings.Contains(reason, blob.Digest.String()) {
			t.Errorf("without %s (%s): ready %v %q %v", blob.Digest, blob.MediaType, ok, reason, err)
		}
		again := image(t, b, p.Index)
		if got := again.Missing(); len(got) != 1 || got[0] != digest.Digest(blob.Digest) {
			t.Errorf("without %s (%s): %v are missing", blob.Digest, blob.MediaType, got)
		}
		moveAll(t, from, again)
		if err := again.Import(t.Context(), full); err != nil {
			t.Fatalf("without %s (%s): import: %v", blob.Digest, blob.MediaType, err)
		}
		ready(t, b, p)
	}
}
