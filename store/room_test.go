package store

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
	"seeder/store/ctrd"
	"seeder/store/stage"
)

// madeUp are made-up file systems: each directory whose path begins with a key is on
// that one.
type madeUp struct {
	mu sync.Mutex
	fs map[string]*fileSystem
}

func (d *madeUp) stat(dir string) (fileSystem, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out fileSystem
	longest := -1
	for prefix, fs := range d.fs {
		if strings.HasPrefix(dir, prefix) && len(prefix) > longest {
			out, longest = *fs, len(prefix)
		}
	}
	out.dir = dir
	return out, nil
}

func (d *madeUp) change(prefix string, f func(*fileSystem)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d.fs[prefix])
}

// smallStore is a store on made-up disks, with the frames of one image in its cache, and a
// seed index of another image that it lacks.
func smallStore(t *testing.T, d *madeUp, dir string) (*Store, *Image) {
	t.Helper()
	s, err := Open(t.Context(), Config{DataDir: dir, Cache: Reserve{Share: 0.05}, MinFree: Reserve{Share: 0.1}, statFS: d.stat,
		Containerd: ctrd.Config{Address: ctrd.Embedded, Pin: true}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	finished := second(t, s, "old:1", layer(t, "old", 1<<20))
	img := image(t, s, finished.Index)
	for n := range img.Len() {
		_, _, r, err := opened(img.Frame(t.Context(), n))
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	if held, _ := s.Cache(); held == 0 {
		t.Fatal("nothing is cached")
	}
	_, p := announceSide(t, layer(t, "new", 1<<20))
	return s, image(t, s, p.Index)
}

// TestCacheGivesWayToAnImage: what waits for room gets that of the cache first, also
// that of images that are open; and what lacks is said with what would free it.
func TestCacheGivesWayToAnImage(t *testing.T) {
	for _, two := range []bool{false, true} {
		t.Run(map[bool]string{false: "one file system", true: "two"}[two], func(t *testing.T) {
			dir := t.TempDir()
			d := &madeUp{fs: map[string]*fileSystem{dir: {device: 1, free: 1 << 40, total: 1 << 30}}}
			if two {
				d.fs[dir+"/containerd"] = &fileSystem{device: 2, free: 1 << 40, total: 1 << 30}
			}
			s, img := smallStore(t, d, dir)
			d.change(dir, func(f *fileSystem) { f.free = 0 })
			var lacks *RoomError
			if err := img.room(t.Context()); !errors.As(err, &lacks) {
				t.Fatalf("on a full disk: %v", err)
			}
			if held, limit := s.Cache(); held != 0 || limit != 0 {
				t.Errorf("an image waits for room while the cache holds %d of %d bytes", held, limit)
			}
			for _, want := range []string{"images.min_free", "crictl rmi --prune", "seeder withdraw --purge", "frame cache"} {
				if !strings.Contains(lacks.Waiting(), want) {
					t.Errorf("%q does not name %s", lacks.Waiting(), want)
				}
			}
			d.change(dir, func(f *fileSystem) { f.free = 1 << 40 })
			if err := img.room(t.Context()); err != nil {
				t.Errorf("on an empty disk: %v", err)
			}
		})
	}
}

// TestCacheIsNotToBlame: where containerd's own file system is full the cache keeps
// what it has: it would free nothing.
func TestCacheIsNotToBlame(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := &madeUp{fs: map[string]*fileSystem{
		dir: {device: 1, free: 1 << 40, total: 1 << 30}, dir + "/containerd": {device: 2, free: 1 << 40, total: 1 << 30},
	}}
	s, img := smallStore(t, d, dir)
	held, limit := s.Cache()
	d.change(dir+"/containerd", func(f *fileSystem) { f.free = 0 })
	var lacks *RoomError
	if err := img.room(t.Context()); !errors.As(err, &lacks) {
		t.Fatalf("on a full disk: %v", err)
	}
	if now, may := s.Cache(); now != held || may != limit {
		t.Errorf("the cache gave up %d of %d bytes, and may hold %d of %d", now, held, may, limit)
	}
}

// TestRoomCountsInodes: small files use them up before the bytes.
func TestRoomCountsInodes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := &madeUp{fs: map[string]*fileSystem{dir: {device: 1, free: 1 << 40, total: 1 << 30, files: 1000, freeFiles: 900}}}
	s, img := smallStore(t, d, dir)
	d.change(dir, func(f *fileSystem) { f.freeFiles = 51 })
	var lacks *RoomError
	if err := img.room(t.Context()); !errors.As(err, &lacks) || !strings.Contains(lacks.Waiting(), "inodes") {
		t.Errorf("with 51 of 1000 inodes: %v", err)
	}
	if held, _ := s.Cache(); held != 0 {
		t.Errorf("the cache holds %d bytes", held)
	}
}

// TestCacheBound: how large the cache may be on a card of 8 GB and on a disk of 8 TB,
// and as the disk fills up.
func TestCacheBound(t *testing.T) {
	t.Parallel()
	const GB, TB = int64(1e9), int64(1e12)
	for name, tc := range map[string]struct {
		fs      fileSystem
		cache   Reserve
		minFree Reserve
		held    stage.Use
		want    int64
	}{
		"8 GB, empty":             {fs: fileSystem{total: 8 * GB, free: 7 * GB}, want: 400e6},
		"8 TB, empty":             {fs: fileSystem{total: 8 * TB, free: 7 * TB}, want: MaxCacheShare},
		"8 TB, a size":            {fs: fileSystem{total: 8 * TB, free: 7 * TB}, cache: Reserve{Bytes: 100 * GB}, want: 100 * GB},
		"8 GB, 82.5 % used":       {fs: fileSystem{total: 8 * GB, free: 1400e6}, held: stage.Use{Bytes: 100e6}, want: 140e6},
		"8 GB, 84 % used":         {fs: fileSystem{total: 8 * GB, free: 1280e6}, held: stage.Use{Bytes: 100e6}, want: 20e6},
		"8 GB, at the kubelet's":  {fs: fileSystem{total: 8 * GB, free: 1200e6}, held: stage.Use{Bytes: 100e6}, want: 0},
		"more is to stay free":    {fs: fileSystem{total: 8 * GB, free: 4 * GB}, minFree: Reserve{Share: 0.5}, held: stage.Use{Bytes: 1e6}, want: 1e6},
		"none wanted":             {fs: fileSystem{total: 8 * GB, free: 7 * GB}, cache: Reserve{Bytes: -1}, want: 0},
		"what it holds is no use": {fs: fileSystem{total: 8 * GB, free: 0}, held: stage.Use{Bytes: 400e6}, want: 0},
	} {
		if tc.cache == (Reserve{}) {
			tc.cache = Reserve{Share: 0.05}
		} else if tc.cache.Bytes < 0 {
			tc.cache = Reserve{}
		}
		if tc.minFree == (Reserve{}) {
			tc.minFree = Reserve{Share: 0.1}
		}
		d := &disks{cfg: Config{Cache: tc.cache, MinFree: tc.minFree, statFS: func(string) (fileSystem, error) { return tc.fs, nil }}}
		if got := d.cacheBound(tc.held).Bytes; got != tc.want {
			t.Errorf("%s: %d bytes, want %d", name, got, tc.want)
		}
	}
}

// TestGivesWayByItself: when others have taken the room.
func TestGivesWayByItself(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := &madeUp{fs: map[string]*fileSystem{dir: {device: 1, free: 1 << 40, total: 1 << 30}}}
	s, _ := smallStore(t, d, dir)
	d.change(dir, func(f *fileSystem) { f.free = f.total / 7 })
	s.disks.giveWay()
	if held, _ := s.Cache(); held != 0 {
		t.Errorf("at 86 %% used the cache holds %d bytes", held)
	}
}

// TestDropFrames: what no announced image has goes, in use or not; and what one has
// stays.
func TestDropFrames(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	keep := second(t, s, "keep:1", layer(t, "keep", 1<<19))
	gone := second(t, s, "gone:1", layer(t, "gone", 1<<19))
	for _, p := range []chunk.Prepared{keep, gone} {
		img := image(t, s, p.Index)
		for n := range img.Len() {
			_, _, r, err := opened(img.Frame(t.Context(), n))
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
		}
	}
	held, _ := s.Cache()
	freed, err := s.DropFrames(t.Context(), []digest.Digest{keep.SeedDigest()})
	if err != nil || freed == 0 || freed >= held {
		t.Fatalf("freed %d of %d: %v", freed, held, err)
	}
	if again, err := s.DropFrames(t.Context(), []digest.Digest{keep.SeedDigest()}); again != 0 || err != nil {
		t.Errorf("freed %d bytes once more: %v", again, err)
	}
	index, err := chunk.Decode(keep.Index)
	if err != nil {
		t.Fatal(err)
	}
	left := map[string]bool{}
	for _, b := range index.Blobs {
		left[stage.Name(b)] = true
	}
	for _, name := range s.stage.Cached() {
		if !left[name] {
			t.Errorf("%s is left", name)
		}
	}
	if now, _ := s.Cache(); now != held-freed {
		t.Errorf("%d bytes are counted of %d", now, held-freed)
	}
}
