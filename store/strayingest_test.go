package store

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestTidyCollectsUnleasedIngests: an import was cut off in the middle of a blob, and what
// it was for is not announced any more. With its lease the ingest goes.
func TestTidyCollectsUnleasedIngests(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "one", 2<<20))
	dir := t.TempDir()
	b := open(t, dir)
	from, to := image(t, a, p.Index), image(t, b, p.Index)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- to.Import(ctx, full) }()
	for n := range to.Len() - 1 { // the last chunk of the layer is missing
		move(t, from, to, n)
	}
	ingests := filepath.Join(dir, "containerd", "content", "ingest", "*")
	for found := []string(nil); len(found) == 0; found, _ = filepath.Glob(ingests) {
		runtime.Gosched()
	}
	cancel()
	if err := <-ended; err == nil {
		t.Fatal("the import ended well without all chunks")
	}
	if err := b.Tidy(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if found, err := filepath.Glob(ingests); err != nil || len(found) > 0 {
		t.Errorf("ingests that nobody goes on with: %v, %v", found, err)
	}
}

// TestTidyCollectsIngests: what a database that could not be written has left of an
// ingest in the embedded content store is gone with the next look, not with the next start.
func TestTidyCollectsIngests(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	const ref = "k8s.io/1/stray"
	stray := filepath.Join(dir, "containerd", "content", "ingest", digest.FromString(ref).Encoded())
	if err := os.MkdirAll(stray, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"data", "ref", "startedat", "updatedat"} {
		if err := os.WriteFile(filepath.Join(stray, name), []byte(ref), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Tidy(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(stray); err == nil {
		t.Error("the ingest that nobody goes on with is still there")
	}
}

// TestTidyDropsTheLeaseOfAReadyImage: a kill between an image's name and the end of the
// import's lease leaves the lease, and the image is ready, so nobody imports it again.
func TestTidyDropsTheLeaseOfAReadyImage(t *testing.T) {
	t.Parallel()
	s, p := announceSide(t, layer(t, "one", 300<<10))
	name := forImport + p.Target.Digest.Encoded()
	if _, _, err := s.ctrd.Leases.Take(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if err := s.Tidy(t.Context(), []digest.Digest{p.SeedDigest()}, []digest.Digest{p.Target.Digest}); err != nil {
		t.Fatal(err)
	}
	if names, err := s.ctrd.Leases.Names(t.Context()); err != nil || len(names) > 0 {
		t.Errorf("leases of an image that is ready: %v, %v", names, err)
	}
}
