package ctrd

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/blobfile"
)

// TestIntact: a blob that goes is missed, whether its directory has been as it is for
// long or has just changed; only the stamp of the former vouches for its files.
func TestIntact(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dir := filepath.Join(root, "sha256")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := func(d digest.Digest) string { return filepath.Join(dir, d.Encoded()) }
	var blobs []digest.Digest
	for _, s := range []string{"a", "b", "c"} {
		blobs = append(blobs, digest.FromString(s))
		if err := os.WriteFile(file(digest.FromString(s)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	age := func(by time.Duration) {
		t.Helper()
		then := time.Now().Add(-by)
		if err := os.Chtimes(dir, then, then); err != nil {
			t.Fatal(err)
		}
	}
	c := newContainerd(&Conn{})
	c.Files.dir, c.Files.known = root, true
	c.Checks.keepChecked("image", checked{blobs: blobs})
	want := func(what string, intact, vouched bool) {
		t.Helper()
		if got := c.Checks.Intact(t.Context(), "image"); got != intact {
			t.Errorf("%s: intact is %v, want %v", what, got, intact)
		}
		stamp := blobfile.SettledStamp(dir)
		if got := stamp != (Stamp{}) && c.Checks.checked["image"].dir == stamp; got != vouched {
			t.Errorf("%s: the directory vouches for its files: %v, want %v", what, got, vouched)
		}
	}

	want("a directory that has just changed", true, false)
	age(blobfile.Settled + time.Hour)
	want("one that has been as it is for an hour", true, true)
	want("the same again", true, true)
	if err := os.WriteFile(file(digest.FromString("of another image")), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	age(blobfile.Settled + time.Hour)
	want("a blob has come", true, true)
	if err := os.Remove(file(blobs[2])); err != nil {
		t.Fatal(err)
	}
	want("a blob went just now", false, false)
	age(blobfile.Settled + time.Hour)
	want("a blob went an hour ago", false, false)

	// What a Check found meanwhile counts, not what was looked at before.
	c.Checks.keepChecked("image", checked{blobs: blobs[:2]})
	stamp := blobfile.SettledStamp(dir)
	c.Checks.keepDir("image", blobs, stamp)
	if c.Checks.checked["image"].dir != (Stamp{}) {
		t.Error("the stamp of other blobs is kept")
	}
}
