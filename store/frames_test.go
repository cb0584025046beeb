package store

import (
	"bytes"
	"io"
	"path/filepath"
	"sync"
	"testing"

	"seeder/store/chunk"
	"seeder/store/ctrd"
)

// TestFramesAreCompressedOnceAndKept: however many ask for a chunk at once, it is
// compressed for one of them; anyone who received it compresses nothing.
func TestFramesAreCompressedOnceAndKept(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "base", 4<<20))
	img := image(t, a, p.Index)
	ask := func(img *Image, n int) (chunk.Encoding, int64) {
		enc, size, r, err := opened(img.Frame(t.Context(), n))
		if err != nil {
			t.Error(err)
			return enc, 0
		}
		r.Close()
		return enc, size
	}
	var askers sync.WaitGroup
	for range 8 {
		askers.Go(func() {
			for n := range img.Len() {
				ask(img, n)
			}
		})
	}
	askers.Wait()
	var wire, frames int64
	for n := range img.Len() {
		enc, size := ask(img, n)
		if wire += size; enc == chunk.Zstd {
			frames++
		}
	}
	if wire > p.Bytes/3 {
		t.Errorf("%d bytes of text travel as %d", p.Bytes, wire)
	}
	if got := a.Compressed(); got != frames || frames < 16 {
		t.Errorf("%d chunks were compressed for %d frames", got, frames)
	}
	b := open(t, t.TempDir())
	to := image(t, b, p.Index)
	for n := range img.Len() {
		move(t, img, to, n)
		ask(to, n)
	}
	if err := to.Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	for n := range img.Len() {
		ask(to, n)
	}
	if got := b.Compressed(); got != 0 {
		t.Errorf("%d chunks were compressed where they came as frames", got)
	}
	kept, err := filepath.Glob(filepath.Join(a.cfg.DataDir, "cache", "*.frames"))
	if err != nil || len(kept) == 0 {
		t.Errorf("no frames were kept: %v", err)
	}
}

func TestWrongFramesAreRefused(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "base", 1<<20))
	from, to := image(t, a, p.Index), image(t, open(t, t.TempDir()), p.Index)
	enc, _, r, err := opened(from.Frame(t.Context(), to.Len()-1))
	if err != nil {
		t.Fatal(err)
	}
	good, err := io.ReadAll(r)
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(good)
	bad[len(bad)/2] ^= 1
	for name, tc := range map[string]struct {
		n   int
		enc chunk.Encoding
		p   []byte
	}{
		"changed byte": {to.Len() - 1, enc, bad}, "other chunk": {0, enc, good}, "other encoding": {to.Len() - 1, 1 - enc, good},
		"empty": {to.Len() - 1, enc, nil}, "no such chunk": {to.Len(), enc, good}, "negative": {-1, enc, good},
	} {
		if ok, err := to.Put(t.Context(), tc.n, tc.enc, tc.p); ok || err != nil {
			t.Errorf("%s: verified %v, %v", name, ok, err)
		}
	}
	if got := count(to.Have(), to.Len()); got != 0 {
		t.Errorf("%d chunks are held", got)
	}
}

func BenchmarkServe(b *testing.B) {
	s, p := announceSide(b, layer(b, "base", 8<<20))
	img := image(b, s, p.Index)
	n := img.Len() - 2
	b.SetBytes(img.Bytes(n))
	b.ReportAllocs()
	for b.Loop() {
		_, _, r, err := opened(img.Frame(b.Context(), n))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}

// TestCompressesAhead: who asks for a chunk has the next ones made for others.
func TestCompressesAhead(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "base", 2<<20))
	img := image(t, a, p.Index)
	k := len(img.blobs) - 1
	move(t, img, image(t, open(t, t.TempDir()), p.Index), img.index.Start(k))
	until(t, func() bool {
		for at := range 1 + aheadChunks {
			if !img.blobs[k].staged().Have(at) {
				return false
			}
		}
		return true
	})
}

// TestAheadIsBounded: compressing ahead leaves half of the cores to others.
func TestAheadIsBounded(t *testing.T) {
	t.Parallel()
	for cores, want := range map[int]int{1: 1, 2: 1, 4: 2, 8: 4, 64: 4} {
		if got := aheadWorkers(cores); got != want {
			t.Errorf("%d of %d cores, want %d", got, cores, want)
		}
	}
}

// TestServesWithoutRoomInTheCache: what cannot be kept is compressed each time.
func TestServesWithoutRoomInTheCache(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "base", 1<<20))
	dir := a.cfg.DataDir
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	small, err := Open(t.Context(), Config{DataDir: dir, Containerd: ctrd.Config{Address: ctrd.Embedded, Pin: true}, Cache: Reserve{Bytes: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	from, to := image(t, small, p.Index), image(t, open(t, t.TempDir()), p.Index)
	for range 2 {
		for n := range from.Len() {
			move(t, from, to, n)
		}
	}
	if kept, _ := filepath.Glob(filepath.Join(dir, "cache", "*")); len(kept) > 0 {
		t.Errorf("kept beyond the bound: %v", kept)
	}
}
