package store

import (
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestDamageOutlivesARestart: a blob of containerd that was found damaged, and of which a
// chunk has come again when the daemon ended, is found damaged again by that chunk. What
// is left of a whole one goes.
func TestDamageOutlivesARestart(t *testing.T) {
	t.Parallel()
	for _, damaged := range []bool{true, false} {
		a, p := announceSide(t, noise(t, 2<<20))
		dir := t.TempDir()
		b := open(t, dir)
		to := image(t, b, p.Index)
		moveAll(t, image(t, a, p.Index), to)
		if err := to.Import(t.Context(), full); err != nil {
			t.Fatal(err)
		}
		n := to.Len() - 2
		k, at := to.index.Locate(n)
		info := to.blobs[k].info
		path := filepath.Join(dir, "containerd", "content", "blobs", "sha256", info.Digest.Encoded())
		rot(t, path, int64(at)*info.ChunkBytes+7)
		if _, err := b.DropFrames(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if bad, err := to.Recheck(t.Context(), n); !bad || err != nil {
			t.Fatalf("damaged %v, %v", bad, err)
		}
		move(t, image(t, a, p.Index), image(t, b, p.Index), n)
		if !damaged {
			rot(t, path, int64(at)*info.ChunkBytes+7) // flips the same bit back
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		b = open(t, dir)
		if ok, reason, err := b.Check(t.Context(), full, p.Target.Digest); !ok || err != nil {
			t.Fatalf("before anybody looks: ready %v (%s), %v", ok, reason, err)
		}
		if err := b.Tidy(t.Context(), []digest.Digest{digest.FromBytes(p.Index)}, []digest.Digest{p.Target.Digest}); err != nil {
			t.Fatal(err)
		}
		if ok, reason, err := b.Check(t.Context(), full, p.Target.Digest); ok == damaged || err != nil {
			t.Errorf("damaged: %v; ready %v (%s), %v", damaged, ok, reason, err)
		}
		if staged := b.stage.Staged(); !damaged && len(staged) > 0 {
			t.Errorf("%v is left", staged)
		}
	}
}
