package unpack

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// tree makes directories below a new one; those in old have the time of a layer.
func tree(t *testing.T, dirs []string, old ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	when := time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, d := range old {
		if err := os.Chtimes(filepath.Join(root, d), when, when); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// TestUnlisted: directories that have no time of a layer are those that it does not list.
func TestUnlisted(t *testing.T) {
	start := time.Now()
	root := tree(t, []string{"a/b/c", "a/d", "e/f"}, "a/b", "a/d", "e")
	if err := os.WriteFile(filepath.Join(root, "a", "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := unlisted(root, start)
	slices.Sort(got)
	if want := []string{".", "a", "a/b/c", "e/f"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v %v, want %v", got, err, want)
	}
}

// TestUnlistedTooMany: a layer of more directories than are looked at is told.
func TestUnlistedTooMany(t *testing.T) {
	s := search{root: tree(t, []string{"a/b"}), seen: maxDirectories - 2}
	if err := s.below("."); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
}

// TestInherits: what a directory would have from the first layer below that has it, from
// the top down; another kind of file on the way is left to containerd.
func TestInherits(t *testing.T) {
	upper := tree(t, []string{"a/b", "none", "link/x"})
	top, bottom := tree(t, []string{"a"}), tree(t, []string{"a/b", "real"})
	if err := os.Symlink("real", filepath.Join(bottom, "link")); err != nil {
		t.Fatal(err)
	}
	lowers := []string{top, bottom}
	for rel, want := range map[string]string{".": "", "a": "", "a/b": "", "none": "", "link/x": "not a directory in a layer below"} {
		if got := inherits(upper, rel, lowers); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", rel, got, want)
		}
	}
	if err := os.Chmod(filepath.Join(bottom, "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(bottom, "a"), 0o700); err != nil { // that of top counts
		t.Fatal(err)
	}
	if got := inherits(upper, "a/b", lowers); !strings.Contains(got, `"a/b"`) {
		t.Errorf("another mode below: %q", got)
	}
	if got := inherits(upper, "a", lowers); got != "" {
		t.Errorf("another mode two below: %q", got)
	}
}
