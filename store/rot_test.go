package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/artifact"
)

// rot changes a byte of a file as a disk does that fails: no time of the file tells.
func rot(t *testing.T, path string, off int64) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p[off] ^= 4
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, st.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// TestRottenFrameIsMadeAnew: a byte of a cached frame that rots costs a compression.
func TestRottenFrameIsMadeAnew(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "rot", 1<<20))
	from := image(t, a, p.Index)
	moveAll(t, from, image(t, open(t, t.TempDir()), p.Index))
	damage(t, filepath.Join(a.cfg.DataDir, "cache", "*"))
	moveAll(t, from, image(t, open(t, t.TempDir()), p.Index))
}

// TestRottenBlobHeals: a byte of containerd's blob that rots after it was verified is
// found when a peer complains. The blob is not served, counts as missing, and is written
// anew with what another host has of it.
func TestRottenBlobHeals(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, noise(t, 2<<20))
	b := open(t, t.TempDir())
	moveAll(t, image(t, a, p.Index), image(t, b, p.Index)) // a has verified and sent all
	if err := image(t, b, p.Index).Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	img := image(t, a, p.Index)
	n := img.Len() - 2
	k, at := img.index.Locate(n)
	info := img.blobs[k].info
	path := filepath.Join(a.cfg.DataDir, "containerd", "content", "blobs", "sha256", info.Digest.Encoded())
	ready(t, a, p)
	rot(t, path, int64(at)*info.ChunkBytes+7)
	if damaged, err := img.Recheck(t.Context(), 0); damaged || err != nil {
		t.Errorf("a whole chunk: damaged %v, %v", damaged, err)
	}
	if damaged, err := img.Recheck(t.Context(), n); !damaged || err != nil {
		t.Errorf("a rotten chunk: damaged %v, %v", damaged, err)
	}
	if _, _, _, err := opened(img.Frame(t.Context(), n)); err == nil {
		t.Error("a rotten chunk is served")
	}
	if a.Intact(t.Context(), full) {
		t.Error("the image counts as intact")
	}
	if ok, reason, err := a.Check(t.Context(), full, p.Target.Digest); ok || err != nil {
		t.Errorf("ready %v (%s), %v", ok, reason, err)
	}
	healed := image(t, a, p.Index)
	if missing := healed.Missing(); len(missing) != 1 || missing[0] != info.Digest {
		t.Fatalf("missing: %v", missing)
	}
	moveAll(t, image(t, b, p.Index), healed)
	if err := healed.Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	ready(t, a, p)
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(got); hex.EncodeToString(sum[:]) != info.Digest.Encoded() {
		t.Error("the blob is still damaged")
	}
}

// TestRottenDocumentHeals: a manifest or config that rots in containerd's content store
// counts as missing, is never served, and is written anew with what another host has.
func TestRottenDocumentHeals(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "rot", 300_000))
	b := open(t, t.TempDir())
	moveAll(t, image(t, a, p.Index), image(t, b, p.Index)) // a has verified and sent all
	if err := image(t, b, p.Index).Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	documents := 0
	served := image(t, a, p.Index) // open all the time
	for k, blob := range served.blobs {
		info := blob.info
		if artifact.IsLayer(info.MediaType) {
			continue
		}
		documents++
		ready(t, a, p)
		path := filepath.Join(a.cfg.DataDir, "containerd", "content", "blobs", "sha256", info.Digest.Encoded())
		rot(t, path, info.Bytes/2)
		if _, _, r, err := opened(served.Frame(t.Context(), served.index.Start(k))); err == nil {
			sent, err := io.ReadAll(r)
			if rotten, rerr := os.ReadFile(path); err != nil || rerr != nil || bytes.Equal(sent, rotten) {
				t.Errorf("%s: its rotten bytes are served, %v %v", info.MediaType, err, rerr)
			}
			r.Close()
		}
		ok, reason, err := a.Check(t.Context(), full, p.Target.Digest)
		if ok || err != nil || !strings.Contains(reason, info.Digest.String()) {
			t.Errorf("%s: ready %v (%s), %v", info.MediaType, ok, reason, err)
		}
		healed := image(t, a, p.Index)
		if missing := healed.Missing(); len(missing) != 1 || missing[0] != info.Digest {
			t.Fatalf("%s: missing: %v", info.MediaType, missing)
		}
		moveAll(t, image(t, b, p.Index), healed)
		if err := healed.Import(t.Context(), full); err != nil {
			t.Fatal(err)
		}
		ready(t, a, p)
		if got, err := os.ReadFile(path); err != nil || digest.FromBytes(got) != info.Digest {
			t.Errorf("%s is still damaged, %v", info.MediaType, err)
		}
	}
	if documents < 2 {
		t.Errorf("%d manifests and configs were damaged", documents)
	}
}
