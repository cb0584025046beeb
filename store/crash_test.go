package store

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"seeder/internal/disk/disktest"
	"seeder/store/chunk"
	"seeder/store/ctrd"
)

// keeper is a store for seed indexes: its containerd is never asked.
func keeper(t testing.TB, dir string) *Store {
	s, err := Open(context.Background(), Config{DataDir: dir, Containerd: ctrd.Config{Address: "/none/containerd.sock"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestSeedIndexCut: a seed index is there with all of it or not at all, and once
// it was kept it is there.
func TestSeedIndexCut(t *testing.T) {
	t.Parallel()
	index := bytes.Repeat([]byte("index "), 1000)
	d := digest.FromBytes(index)
	disktest.Crashes(t, nil, func(dir string, ack func(string)) {
		if err := keeper(t, dir).seeds.keep(d, index); err != nil {
			panic(err)
		}
		ack("kept")
	}, func(t *testing.T, s disktest.State) {
		k := keeper(t, s.Dir)
		if left, _ := filepath.Glob(filepath.Join(s.Dir, "seeds", ".*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		b, err := k.SeedIndex(t.Context(), d)
		switch {
		case err == nil && bytes.Equal(b, index), errors.Is(err, fs.ErrNotExist) && !s.Has("kept"):
		default:
			t.Errorf("%d bytes, %v", len(b), err)
		}
		if err := k.seeds.keep(d, index); err != nil {
			t.Error(err)
		}
	})
}

// TestKeepFixesASeedIndex: announcing again fixes an index that is damaged, for it
// may be the only one.
func TestKeepFixesASeedIndex(t *testing.T) {
	t.Parallel()
	index := []byte("index")
	d := digest.FromBytes(index)
	for name, put := range map[string]func(path string) error{
		"damaged":     func(path string) error { return os.WriteFile(path, []byte("damage"), 0o600) },
		"empty":       func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		var log bytes.Buffer
		s := keeper(t, t.TempDir())
		s.seeds.log = slog.New(slog.NewTextHandler(&log, nil))
		if err := put(s.seeds.file(d)); err != nil {
			t.Fatal(err)
		}
		if err := s.seeds.keep(d, index); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if b, err := s.SeedIndex(t.Context(), d); err != nil || !bytes.Equal(b, index) {
			t.Errorf("%s: %q %v", name, b, err)
		}
		if bytes.Count(log.Bytes(), []byte("\n")) != 1 || !bytes.Contains(log.Bytes(), []byte(s.seeds.file(d))) {
			t.Errorf("%s: it says %q", name, log.String())
		}
	}
}

// TestKilledWithEmbeddedStore: a kill at any step of taking in and preparing an
// image leaves a store that opens, names nothing incomplete, and can go on.
func TestKilledWithEmbeddedStore(t *testing.T) {
	t.Parallel()
	archive := dockerArchive(t, short, layer(t, "crash", 3000))
	disktest.KilledCrashes(t, func(dir string, ack func(string)) {
		s := open(t, dir)
		ack("open")
		if _, err := s.ImportArchive(t.Context(), bytes.NewReader(archive), ""); err != nil {
			panic(err)
		}
		if _, err := s.Prepare(t.Context(), short, chunk.PrepareOptions{}); err != nil {
			panic(err)
		}
		ack("prepared")
	}, func(t *testing.T, st disktest.State) {
		s := open(t, st.Dir)
		defer s.Close()
		names, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, there := names[full]; there {
			if p, err := s.Prepare(t.Context(), full, chunk.PrepareOptions{}); err != nil {
				t.Errorf("it has a name and is not complete: %v", err)
			} else {
				ready(t, s, p)
			}
		} else if st.Has("prepared") {
			t.Error("the image is lost")
		}
		if _, err := s.ImportArchive(t.Context(), bytes.NewReader(archive), ""); err != nil {
			t.Error(err)
		}
		p, err := s.Prepare(t.Context(), short, chunk.PrepareOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ready(t, s, p)
	})
}

// TestSeedIndexDisk: an index that cannot be written is an error with its reason,
// and nothing of it stays.
func TestSeedIndexDisk(t *testing.T) {
	t.Parallel()
	if !disktest.Alone(t) {
		return
	}
	index := bytes.Repeat([]byte("index "), 5000)
	d := digest.FromBytes(index)
	root, readOnly := disktest.SmallDisk(t, 256<<10)
	s := keeper(t, root)
	fails := func(why string) {
		t.Helper()
		if err := s.seeds.keep(d, index); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%v, want %s", err, why)
		}
		if left, err := os.ReadDir(s.seeds.dir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	}
	free := disktest.Fill(t, root)
	fails("no space left")
	free()
	readOnly()
	fails("read-only file system")
}
