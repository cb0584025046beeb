package store

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"seeder/store/chunk"

	"github.com/opencontainers/go-digest"
)

func TestRepairsWhatCheckFindsLacking(t *testing.T) {
	t.Parallel()
	s, p := announceSide(t, layer(t, "base", 1<<20))
	list, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byDigest := "docker.io/library/k3s-dashboard@" + p.Target.Digest.String()
	if list[byDigest] != p.Target.Digest {
		t.Fatalf("no record by digest: %v", list)
	}
	img := image(t, s, p.Index)
	if err := img.Import(t.Context(), "docker.io/library/other:2"); err != nil { // two names of one digest
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	if err := image(t, s, p.Index).Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	ready(t, s, p)
	if list, _ = s.List(t.Context()); list["docker.io/library/other:2"] != p.Target.Digest {
		t.Errorf("the other name is gone: %v", list)
	}
}

func TestVanishedBlobIsSaidAtOnce(t *testing.T) {
	t.Parallel()
	s, p := announceSide(t, layer(t, "base", 1<<20))
	img := image(t, s, p.Index) // sees every blob
	if _, err := s.Remove(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := img.Import(ctx, full); err == nil || !strings.Contains(err.Error(), "is gone") {
		t.Fatalf("import: %v, want that a blob is gone", err)
	}
	if _, _, _, err := opened(img.Frame(t.Context(), img.Len()-1)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("frame of a blob that is gone: %v, want ErrNotExist", err)
	}
}

func TestDamagedSeedIndexIsFetchedAgain(t *testing.T) {
	t.Parallel()
	s, p := announceSide(t, layer(t, "base", 1000))
	if b, err := s.SeedIndex(t.Context(), p.SeedDigest()); err != nil || !bytes.Equal(b, p.Index) {
		t.Fatalf("kept index: %v", err)
	}
	if err := os.WriteFile(s.seeds.file(p.SeedDigest()), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.SeedIndex(t.Context(), p.SeedDigest()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("damaged index: %v, want ErrNotExist", err)
	}
	if _, err := s.SeedIndex(t.Context(), digest.FromString("unknown")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown index: %v, want ErrNotExist", err)
	}
}

// TestDamagedIngest: what containerd has of an unfinished blob was changed on
// disk. It is found out at the commit, and written anew without the network.
func TestDamagedIngest(t *testing.T) {
	t.Parallel()
	b, p, from, to, ingest := cutOffIngest(t)
	damage(t, ingest)
	move(t, from, to, to.Len()-1)
	if err := to.Import(t.Context(), full); err == nil {
		t.Fatal("a damaged blob was imported")
	}
	if got := count(to.Have(), to.Len()); got != to.Len() {
		t.Errorf("%d of %d chunks are held after the failed import", got, to.Len())
	}
	if err := to.Import(t.Context(), full); err != nil {
		t.Fatalf("second try: %v", err)
	}
	ready(t, b, p)
}

// TestDamagedStaging: a staged frame was changed on disk after it was verified.
// It is not imported, and fetched again.
func TestDamagedStaging(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, noise(t, 2<<20))
	from, dir := image(t, a, p.Index), t.TempDir()
	b := open(t, dir)
	to := image(t, b, p.Index)
	moveAll(t, from, to)
	damage(t, filepath.Join(dir, "stage", "*.frames"))
	if err := to.Import(t.Context(), full); err == nil {
		t.Fatal("a damaged frame was imported")
	}
	if moved := moveAll(t, from, to); moved != 1 {
		t.Errorf("%d chunks were fetched again, want the damaged one", moved)
	}
	if err := to.Import(t.Context(), full); err != nil {
		t.Fatalf("second try: %v", err)
	}
	ready(t, b, p)
}

// TestDamagedBlob: a blob in the announcer's content store was changed on disk.
// It is neither announced nor served.
func TestDamagedBlob(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, noise(t, 2<<20))
	img := image(t, a, p.Index)
	blobs := filepath.Join(a.cfg.DataDir, "containerd", "content", "blobs", "sha256", "*")
	found, err := filepath.Glob(blobs)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		os.Chmod(path, 0o600)
	}
	damage(t, blobs)
	if _, err := a.Prepare(t.Context(), short, chunk.PrepareOptions{}); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged blob was prepared: %v", err)
	}
	refused := 0
	for n := range img.Len() {
		_, _, r, err := opened(img.Frame(t.Context(), n))
		if err != nil {
			refused++
			continue
		}
		r.Close()
	}
	if refused == 0 {
		t.Error("a damaged blob was served")
	}
}

// TestDamagedAfterServing: a blob that was verified and served is changed on disk.
// It is not served again.
func TestDamagedAfterServing(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, noise(t, 2<<20))
	img := image(t, a, p.Index)
	for n := range img.Len() {
		move(t, img, img, n)
	}
	n := img.Len() - 2
	blob, at := img.index.Locate(n)
	info := img.blobs[blob].info
	path := filepath.Join(a.cfg.DataDir, "containerd", "content", "blobs", "sha256", info.Digest.Encoded())
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("damage"), int64(at)*info.ChunkBytes)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := opened(img.Frame(t.Context(), n)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a chunk that was damaged after it had been served: %v", err)
	}
}

// TestVanishedBlobIsFetchedAgain through the image that was open when it went.
func TestVanishedBlobIsFetchedAgain(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, noise(t, 1<<20), layer(t, "base", 300_000))
	from, b := image(t, a, p.Index), open(t, t.TempDir())
	to := image(t, b, p.Index)
	moveAll(t, from, to)
	if err := to.Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Remove(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	for tries := 0; ; tries++ { // each finds one blob gone
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err := to.Import(ctx, full)
		cancel()
		if err == nil {
			break
		}
		if tries > len(to.blobs) {
			t.Fatal(err)
		}
		moveAll(t, from, to)
	}
	ready(t, b, p)
}
