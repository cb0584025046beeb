package ctrd_test

import (
	"bytes"
	"os"
	"testing"

	"seeder/store"
	"seeder/store/ctrd"
	"seeder/store/imageref"
	"seeder/store/storetest"
)

// FuzzImportArchive: whatever is in an archive, either nothing of it has a name
// afterwards, or all that it names is whole.
func FuzzImportArchive(f *testing.F) {
	img := storetest.NewImage(f, "docker.io/library/fuzz:1", 1)
	f.Add(img.OCIArchive(f), "")
	f.Add(img.DockerArchive(f), "docker.io/library/fuzz:1")
	f.Add(img.OCIArchive(f, img.Manifests[0].Layers[0].Digest), "")
	f.Add([]byte("no archive"), "")
	for _, p := range storetest.Corpus(f) {
		f.Add(p.Archive, p.Ref)
	}
	// In memory where there is such a place: containerd's metadata is synced with each
	// change.
	root, err := os.MkdirTemp("/dev/shm", "seeder-fuzz-")
	if err != nil {
		root = f.TempDir()
	}
	c, err := ctrd.Open(ctrd.Config{Address: ctrd.Embedded, Root: root})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		c.Close()
		os.RemoveAll(root)
	})
	const mostBytes = 256 << 10
	f.Fuzz(func(t *testing.T, b []byte, ref string) {
		if len(b) > mostBytes {
			return
		}
		if ref != "" {
			var err error
			if ref, err = imageref.Normalize(ref); err != nil {
				return
			}
		}
		got, err := store.Archives{Containerd: c}.Import(t.Context(), bytes.NewReader(b), ref)
		have, lerr := c.Images.List(t.Context())
		if lerr != nil {
			t.Fatal(lerr)
		}
		if err != nil && (len(got.Names) > 0 || len(have) > 0) {
			t.Fatalf("failed with %v, and left %v %v", err, got.Names, have)
		}
		for _, name := range got.Names {
			target, err := c.Images.Resolve(t.Context(), name)
			if err != nil {
				t.Fatalf("named %s: %v", name, err)
			}
			if _, err := c.Content.Walk(t.Context(), target); err != nil {
				t.Fatalf("%s is not whole: %v", name, err)
			}
		}
		for name := range have {
			if err := c.Images.Delete(t.Context(), name); err != nil {
				t.Logf("%s was gone with another name: %v", name, err)
			}
		}
	})
}
