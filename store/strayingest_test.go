package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

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
