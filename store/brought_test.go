package store

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"seeder/store/artifact"
	"seeder/store/chunk"
)

// TestArchiveEndsAFetch: an import that waits for chunks which nobody has goes on when
// somebody brings the image as an archive: in the middle of a layer, and where a document
// is damaged.
func TestArchiveEndsAFetch(t *testing.T) {
	t.Parallel()
	archive := dockerArchive(t, short, noise(t, 4<<20))
	a := open(t, t.TempDir())
	if _, err := a.ImportArchive(t.Context(), bytes.NewReader(archive), ""); err != nil {
		t.Fatal(err)
	}
	p, err := a.Prepare(t.Context(), short, chunk.PrepareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, t.TempDir())
	img := image(t, b, p.Index)
	brings := func(img *Image) {
		t.Helper()
		done := make(chan error, 1)
		go func() { done <- img.Import(t.Context(), full) }()
		if !waiting(t, b, done) {
			return
		}
		if _, err := b.ImportArchive(t.Context(), bytes.NewReader(archive), ""); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the import goes on waiting")
		}
		ready(t, b, p)
	}
	for n := range img.Len() - 1 { // the last chunk of the layer is on no host
		move(t, image(t, a, p.Index), img, n)
	}
	brings(img)
	for _, blob := range img.blobs {
		if artifact.IsLayer(blob.info.MediaType) {
			continue
		}
		rot(t, filepath.Join(b.cfg.DataDir, "containerd", "content", "blobs", "sha256", blob.info.Digest.Encoded()), blob.info.Bytes/2)
		if ok, reason, err := b.Check(t.Context(), full, p.Target.Digest); ok || err != nil {
			t.Fatalf("ready %v (%s), %v", ok, reason, err)
		}
		brings(image(t, b, p.Index))
	}
}

// waiting returns true once an import of s has a lease, and with that its first blob in
// hand, and false where it needed nobody: a document may be in the cache of frames. done is
// where the import says that it has ended.
func waiting(t *testing.T, s *Store, done <-chan error) (waits bool) {
	t.Helper()
	until(t, func() bool {
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("the import does not wait: %v", err)
			}
			return true
		default:
		}
		names, err := s.ctrd.Leases.Names(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		waits = len(names) > 0
		return waits
	})
	return waits
}
