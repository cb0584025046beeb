package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"seeder/store/artifact"
	"seeder/store/chunk"
	"seeder/store/ctrd"
)

func TestMain(m *testing.M) {
	// containerd's event exchange cannot be closed; it lives as long as the
	// process that embeds the store.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/docker/go-events.(*Broadcaster).run"))
}

const (
	short = "k3s-dashboard:latest"
	full  = "docker.io/library/k3s-dashboard:latest"
)

// emptyDisk is this machine's disk as if nothing were on it: on one that is nearly full a
// store keeps no frames, rightly, and tests of what it keeps would fail.
func emptyDisk(dir string) (fileSystem, error) {
	f, err := statFS(dir)
	f.free, f.freeFiles = f.total, f.files
	return f, err
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{DataDir: dir, Containerd: ctrd.Config{Address: ctrd.Embedded, Pin: true}, Cache: Reserve{Share: 0.05}, statFS: emptyDisk,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// entry is a file of an archive.
type entry struct {
	name string
	data []byte
}

func tarOf(t testing.TB, files ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// dockerArchive packs layers as `docker save` does.
func dockerArchive(t testing.TB, ref string, layers ...[]byte) []byte {
	t.Helper()
	var files []entry
	var ids, names []string
	for _, l := range layers {
		sum := sha256.Sum256(l)
		ids = append(ids, "sha256:"+hex.EncodeToString(sum[:]))
		names = append(names, hex.EncodeToString(sum[:])+".tar")
		files = append(files, entry{names[len(names)-1], l})
	}
	config, err := json.Marshal(map[string]any{"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
	if err != nil {
		t.Fatal(err)
	}
	tags := []string{ref}
	if ref == "" {
		tags = nil
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": tags, "Layers": names}})
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, append(files, entry{"config.json", config}, entry{"manifest.json", manifest})...)
}

// layer is a tar of one text file.
func layer(t testing.TB, word string, n int) []byte {
	t.Helper()
	return tarOf(t, entry{word, bytes.Repeat([]byte(word+" "), n/(len(word)+1))})
}

// announceSide is a store with one image, prepared.
func announceSide(t testing.TB, layers ...[]byte) (*Store, chunk.Prepared) {
	t.Helper()
	s := open(t, t.TempDir())
	got, err := s.ImportArchive(t.Context(), bytes.NewReader(dockerArchive(t, short, layers...)), "")
	if err != nil || !slices.Equal(got.Names, []string{full}) {
		t.Fatalf("import: %v %v", got.Names, err)
	}
	p, err := s.Prepare(t.Context(), short, "", false)
	if err != nil {
		t.Fatal(err)
	}
	return s, p
}

func image(t testing.TB, s *Store, index []byte) *Image {
	t.Helper()
	img, err := s.Image(t.Context(), index)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

// move takes chunk n from one image to the other, as a frame travels.
func move(t testing.TB, from, to *Image, n int) {
	t.Helper()
	enc, size, r, err := opened(from.Frame(t.Context(), n))
	if err != nil {
		t.Fatal(err)
	}
	p, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil || int64(len(p)) != size {
		t.Fatalf("frame %d: %d of %d bytes, %v", n, len(p), size, err)
	}
	if ok, err := to.Put(t.Context(), n, enc, p); !ok || err != nil {
		t.Fatalf("put chunk %d: %v %v", n, ok, err)
	}
}

func has(set []uint64, n int) bool { return set[n/64]&(1<<(n%64)) != 0 }

func count(set []uint64, n int) (c int) {
	for i := range n {
		if has(set, i) {
			c++
		}
	}
	return c
}

func ready(t testing.TB, s *Store, p chunk.Prepared) {
	t.Helper()
	if ok, reason, err := s.Check(t.Context(), full, p.Target.Digest); !ok || err != nil {
		t.Fatalf("not ready: %s %v", reason, err)
	}
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
	q, err := b.Prepare(t.Context(), full, "", false)
	if err != nil || q.SeedDigest() != p.SeedDigest() {
		t.Errorf("the receiver's seed index is %s %v, the announcer's %s", q.SeedDigest(), err, p.SeedDigest())
	}
	// And it serves what it received, also to a third.
	c := image(t, open(t, t.TempDir()), p.Index)
	for n := range c.Len() {
		move(t, to, c, n)
	}
}

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
	p, err := s.Prepare(t.Context(), short, "", false)
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

func TestResumesAfterACrash(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "base", 2<<20))
	from := image(t, a, p.Index)
	dir := t.TempDir()
	b := open(t, dir)
	to := image(t, b, p.Index)
	ctx, cancel := context.WithCancel(t.Context())
	imported := make(chan error, 1)
	go func() { imported <- to.Import(ctx, full) }()
	half := to.Len() / 2
	for n := range half {
		move(t, from, to, n)
	}
	cancel()
	if err := <-imported; !errors.Is(err, context.Canceled) {
		t.Fatalf("import ended with %v", err)
	}
	if err := errors.Join(to.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}

	b = open(t, dir)
	to = image(t, b, p.Index)
	for n := range half {
		if !has(to.Have(), n) {
			t.Fatalf("chunk %d was verified before the crash and is to be fetched again", n)
		}
	}
	go func() { imported <- to.Import(t.Context(), full) }()
	for n := half; n < to.Len(); n++ {
		move(t, from, to, n)
	}
	if err := <-imported; err != nil {
		t.Fatal(err)
	}
	ready(t, b, p)
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

// TestRebuiltWithoutNetwork: an image that somebody removed comes back from the
// frames that were kept.
func TestRebuiltWithoutNetwork(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "base", 1<<20))
	b := open(t, t.TempDir())
	from, to := image(t, a, p.Index), image(t, b, p.Index)
	for n := range to.Len() {
		move(t, from, to, n)
	}
	if err := to.Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	to.Close()
	if _, err := b.Remove(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	if ok, _, _ := b.Check(t.Context(), full, p.Target.Digest); ok {
		t.Fatal("the image is still there")
	}
	to = image(t, b, p.Index)
	have, layers := to.Have(), 0
	for n := range to.Len() {
		if k, _ := to.index.Locate(n); artifact.IsLayer(to.index.Blobs[k].MediaType) && has(have, n) {
			layers++
		}
	}
	if layers == 0 {
		t.Fatal("no frame of the layer was kept")
	}
	for n := range to.Len() {
		if !has(have, n) {
			move(t, from, to, n)
		}
	}
	if err := to.Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	ready(t, b, p)
}

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

func TestBadInput(t *testing.T) {
	t.Parallel()
	s, p := announceSide(t, layer(t, "base", 400_000))
	_, err := s.Prepare(t.Context(), "k3s-dashbord:latest", "", false)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), full) {
		t.Errorf("unknown reference: %v, want the nearest named", err)
	}
	if _, err := s.Prepare(t.Context(), "Not A Reference", "", false); err == nil || !strings.Contains(err.Error(), "NAME[:TAG]") {
		t.Errorf("bad reference: %v, want the form", err)
	}
	archive := dockerArchive(t, "x:1", layer(t, "x", 300_000))
	before, _ := s.List(t.Context())
	for name, tc := range map[string]struct {
		data []byte
		ref  string
		want string
	}{
		"noise":       {bytes.Repeat([]byte("no tar "), 1000), "", "docker-archive or OCI-layout"},
		"empty":       {nil, "", "docker-archive or OCI-layout"},
		"cut off":     {archive[:len(archive)/2], "", ""},
		"no image":    {tarOf(t, entry{"readme", []byte("hello")}), "", "docker-archive or OCI-layout"},
		"no name":     {dockerArchive(t, "", layer(t, "y", 1000)), "", "no name"},
		"lost layer":  {lossy(t, archive), "", ""},
		"other names": {dockerArchive(t, "x:1", layer(t, "z", 1000)), "Bad Ref", "NAME[:TAG]"},
	} {
		if _, err := s.ImportArchive(t.Context(), bytes.NewReader(tc.data), tc.ref); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("archive %s: %v, want %q", name, err, tc.want)
		}
	}
	after, _ := s.List(t.Context())
	if len(before) != len(after) {
		t.Errorf("bad archives left names: %v, before %v", after, before)
	}
	ready(t, s, p)
	if _, err := s.Image(t.Context(), []byte("{}")); err == nil {
		t.Error("an empty seed index was opened")
	}
}

// lossy drops the first layer from an archive.
func lossy(t *testing.T, archive []byte) []byte {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(archive))
	var keep []entry
	for i := 0; ; i++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		b, err2 := io.ReadAll(r)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			keep = append(keep, entry{h.Name, b})
		}
	}
	return tarOf(t, keep...)
}

func TestArchiveTakesTheNameGiven(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	got, err := s.ImportArchive(t.Context(), bytes.NewReader(dockerArchive(t, "", layer(t, "y", 1000))), "mine:3")
	if err != nil || !slices.Equal(got.Names, []string{"docker.io/library/mine:3"}) {
		t.Fatalf("got %v %v", got.Names, err)
	}
}

func TestDamagedSeedIndexIsFetchedAgain(t *testing.T) {
	t.Parallel()
	s, p := announceSide(t, layer(t, "base", 1000))
	if b, err := s.SeedIndex(t.Context(), p.SeedDigest()); err != nil || !bytes.Equal(b, p.Index) {
		t.Fatalf("kept index: %v", err)
	}
	if err := os.WriteFile(s.indexPath(p.SeedDigest()), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.SeedIndex(t.Context(), p.SeedDigest()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("damaged index: %v, want ErrNotExist", err)
	}
	if _, err := s.SeedIndex(t.Context(), digest.FromString("unknown")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown index: %v, want ErrNotExist", err)
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

func BenchmarkImport(b *testing.B) {
	a, p := announceSide(b, layer(b, "base", 32<<20))
	from := image(b, a, p.Index)
	b.SetBytes(p.Bytes)
	b.ReportAllocs()
	for b.Loop() {
		s := open(b, b.TempDir())
		to := image(b, s, p.Index)
		for n := range to.Len() {
			move(b, from, to, n)
		}
		if err := to.Import(b.Context(), full); err != nil {
			b.Fatal(err)
		}
	}
}

// opened takes what Image.Frame returns apart.
func opened(f chunk.Frame, err error) (chunk.Encoding, int64, io.ReadCloser, error) {
	return f.Encoding, f.Bytes, f.Payload, err
}
