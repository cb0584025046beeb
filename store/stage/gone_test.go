package stage

import (
	"os"
	"path/filepath"
	"testing"
)

// TestCachedFileGone: somebody empties the cache's directory below a running daemon, and
// then a blob whose frames were there has to be fetched again.
func TestCachedFileGone(t *testing.T) {
	t.Parallel()
	dir, f := t.TempDir(), newFixture(t, "gone")
	d := openDir(t, dir, 1<<20)
	serving := openBlob(t, d, f, false)
	defer serving.Close()
	f.put(t, serving, 0)
	found, err := filepath.Glob(filepath.Join(dir, "cache", "*"+suffix))
	if err != nil || len(found) != 1 {
		t.Fatalf("the cache holds %v, %v", found, err)
	}
	if err := os.Remove(found[0]); err != nil {
		t.Fatal(err)
	}
	fetching := openBlob(t, d, f, true)
	defer fetching.Close()
	if fetching.Have(0) {
		t.Error("a frame of which no file has a name counts as held")
	}
	for n := range f.pays {
		f.put(t, fetching, n)
	}
	if staged, err := filepath.Glob(filepath.Join(dir, "stage", "*"+suffix)); err != nil || len(staged) != 1 {
		t.Errorf("staged: %v, %v", staged, err)
	}
}
