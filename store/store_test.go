package store

import (
	"bytes"
	"compress/gzip"
	"io/fs"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"seeder/store/artifact"
	"seeder/store/chunk"
)

func TestMain(m *testing.M) {
	// containerd's event exchange cannot be closed; it lives as long as the
	// process that embeds the store.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/docker/go-events.(*Broadcaster).run"))
}

func TestImageTravels(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "base", 1<<20), layer(t, "app", 700_000))
	ready(t, a, p)
	b := open(t, t.TempDir())
	from, to := image(t, a, p.Index), image(t, b, p.Index)
	if got := count(from.Have(), from.Len()); got != from.Len() {
		t.Fatalf("the announcer has %d of %d chunks", got, from.Len())
	}
	if got := count(to.Have(), to.Len()); got != 0 {
		t.Fatalf("the receiver has %d chunks", got)
	}
	imported := make(chan error, 1)
	go func() { imported <- to.Import(t.Context(), full) }()
	for n := to.Len() - 1; n >= 0; n-- { // the last first: nothing may depend on the order
		if ok, _, _ := b.Check(t.Context(), full, p.Target.Digest); ok {
			t.Fatal("the image is visible before it is complete")
		}
		move(t, from, to, n)
	}
	if err := <-imported; err != nil {
		t.Fatal(err)
	}
	ready(t, b, p)
	if m := to.Missing(); len(m) != 0 {
		t.Errorf("missing after the import: %v", m)
	}
	// The receiver announces the same: one image has one seed index.
	q, err := b.Prepare(t.Context(), full, chunk.PrepareOptions{})
	if err != nil || q.SeedDigest() != p.SeedDigest() {
		t.Errorf("the receiver's seed index is %s %v, the announcer's %s", q.SeedDigest(), err, p.SeedDigest())
	}
	// And it serves what it received, also to a third.
	c := image(t, open(t, t.TempDir()), p.Index)
	for n := range c.Len() {
		move(t, to, c, n)
	}
}

func TestGzipLayersTravelRaw(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	raw := layer(t, "zipped", 2<<20)
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(raw)
	w.Close()
	if _, err := s.ImportArchive(t.Context(), bytes.NewReader(dockerArchive(t, short, buf.Bytes())), ""); err != nil {
		t.Fatal(err)
	}
	p, err := s.Prepare(t.Context(), short, chunk.PrepareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	img := image(t, s, p.Index)
	for n := range img.Len() {
		k, _ := img.index.Locate(n)
		enc, size, r, err := opened(img.Frame(t.Context(), n))
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		if artifact.IsLayer(img.index.Blobs[k].MediaType) && (enc != chunk.Raw || size != img.Bytes(n)) {
			t.Errorf("chunk %d of a gzip layer travels with encoding %d", n, enc)
		}
	}
}

func TestFileModes(t *testing.T) {
	t.Parallel()
	s, p := announceSide(t, layer(t, "base", 1<<20))
	img := image(t, s, p.Index)
	_, _, r, err := opened(img.Frame(t.Context(), img.Len()-1))
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	for _, dir := range []string{"seeds", "stage", "cache"} {
		err := filepath.WalkDir(filepath.Join(s.cfg.DataDir, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
