package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

// TestTidy: what a superseded fetch has left goes, what one that will go on needs
// stays, and so does whatever is in use.
func TestTidy(t *testing.T) {
	t.Parallel()
	announcer, old := announceSide(t, layer(t, "old", 900<<10))
	next := second(t, announcer, "next:latest", layer(t, "next", 900<<10))
	s := open(t, t.TempDir())
	half := func(p chunk.Prepared) *Image { // a fetch that was cut off after a chunk
		from, to := image(t, announcer, p.Index), image(t, s, p.Index)
		move(t, from, to, to.Len()-1)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := to.Import(ctx, p.Reference); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if _, _, err := s.ctrd.Leases.Take(t.Context(), forImport+p.Target.Digest.Encoded()); err != nil {
			t.Fatal(err)
		}
		return to
	}
	a, b := half(old), half(next)
	tidy := func(keep ...chunk.Prepared) {
		t.Helper()
		var seeds, targets []digest.Digest
		for _, p := range keep {
			seeds, targets = append(seeds, p.SeedDigest()), append(targets, p.Target.Digest)
		}
		if err := s.Tidy(t.Context(), seeds, targets); err != nil {
			t.Error(err)
		}
	}
	left := func() (staged, leases int) {
		files, _ := filepath.Glob(filepath.Join(s.cfg.DataDir, "stage", "*"))
		names, err := s.ctrd.Leases.Names(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(files), len(names)
	}
	want := func(what string, staged, leases int) {
		t.Helper()
		if s, l := left(); s != staged || l != leases {
			t.Errorf("%s: %d staged blobs and %d leases, want %d and %d", what, s, l, staged, leases)
		}
	}
	want("before", 2, 2)
	unlock, err := s.locks.imports.lock(t.Context(), old.Target.Digest)
	if err != nil {
		t.Fatal(err)
	}
	tidy(next)
	want("while both are open and one imports", 2, 2)
	unlock()
	a.Close()
	b.Close()
	tidy(next)
	want("after the one was superseded", 1, 1)
	if got := image(t, s, next.Index); got.Have()[0] == 0 {
		t.Error("what was verified of the other is gone")
	}
	tidy()
	want("in use", 1, 0)

	// An archive whose import was cut off by a kill; one that is being imported.
	for _, running := range []bool{true, false} {
		if _, _, err := s.ctrd.Leases.Take(t.Context(), forArchive+"CUTOFF"); err != nil {
			t.Fatal(err)
		}
		if running {
			s.locks.archives.RLock()
		}
		tidy()
		if running {
			want("while an archive is imported", 1, 1)
			s.locks.archives.RUnlock()
		} else {
			want("after an import that was cut off", 1, 0)
		}
	}

	// An index that nothing names stays for the minute in which it is announced.
	for _, age := range []time.Duration{0, 2 * youngIndex} {
		then := time.Now().Add(-age)
		if err := os.Chtimes(s.seeds.file(next.SeedDigest()), then, then); err != nil {
			t.Fatal(err)
		}
		tidy()
		_, err := s.SeedIndex(t.Context(), next.SeedDigest())
		if gone := errors.Is(err, fs.ErrNotExist); gone != (age > 0) {
			t.Errorf("a seed index that is %v old and not announced: %v", age, err)
		}
	}
	if names, err := s.ctrd.Leases.Names(t.Context()); err != nil || slices.Contains(names, "") {
		t.Errorf("leases %q, %v", names, err)
	}
}
