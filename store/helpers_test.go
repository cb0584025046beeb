package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"seeder/store/chunk"
	"seeder/store/ctrd"
)

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
	p, err := s.Prepare(t.Context(), short, chunk.PrepareOptions{})
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

// opened takes what Image.Frame returns apart.
func opened(f chunk.Frame, err error) (chunk.Encoding, int64, io.ReadCloser, error) {
	return f.Encoding, f.Bytes, f.Payload, err
}

// noise is a gzip layer: it travels raw, and any changed byte of it still is a
// frame.
func noise(t testing.TB, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	rand.Read(p)
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(tarOf(t, entry{"noise", p})); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// second adds an image with the given layers to s and prepares it.
func second(t testing.TB, s *Store, ref string, layers ...[]byte) chunk.Prepared {
	t.Helper()
	if _, err := s.ImportArchive(t.Context(), bytes.NewReader(dockerArchive(t, ref, layers...)), ""); err != nil {
		t.Fatal(err)
	}
	p, err := s.Prepare(t.Context(), ref, chunk.PrepareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// damage changes a byte in the middle of the one file that matches.
func damage(t testing.TB, pattern string) {
	t.Helper()
	var largest string
	var size int64
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		t.Fatalf("no file %s: %v", pattern, err)
	}
	for _, path := range found {
		if st, err := os.Stat(path); err == nil && st.Size() > size {
			largest, size = path, st.Size()
		}
	}
	f, err := os.OpenFile(largest, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, size/2); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, size/2); err != nil {
		t.Fatal(err)
	}
}

func moveAll(t testing.TB, from, to *Image) (moved int) {
	t.Helper()
	have := to.Have()
	for n := range to.Len() {
		if !has(have, n) {
			move(t, from, to, n)
			moved++
		}
	}
	return moved
}

// pass is move for goroutines.
func pass(ctx context.Context, from, to *Image, n int) error {
	enc, _, r, err := opened(from.Frame(ctx, n))
	if err != nil {
		return err
	}
	p, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		return err
	}
	if ok, err := to.Put(ctx, n, enc, p); err != nil || !ok {
		return errors.Join(errors.New("not verified"), err)
	}
	return nil
}

func encode(t testing.TB, x chunk.Index, blobs []chunk.Blob) []byte {
	t.Helper()
	y, err := chunk.New(x.Target, blobs)
	if err != nil {
		t.Fatal(err)
	}
	p, err := y.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// until waits for a condition.
func until(t testing.TB, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("waited for 20 s")
		}
		<-tick.C
	}
}

// cutOffIngest is a store that lacks an image's last chunk, and whose import of the rest was
// cut off: ingest is the file that containerd keeps of the unfinished blob.
func cutOffIngest(t *testing.T) (s *Store, p chunk.Prepared, from, to *Image, ingest string) {
	t.Helper()
	a, p := announceSide(t, noise(t, 2<<20))
	from, dir := image(t, a, p.Index), t.TempDir()
	s = open(t, dir)
	to = image(t, s, p.Index)
	ctx, cancel := context.WithCancel(t.Context())
	imported := make(chan error, 1)
	go func() { imported <- to.Import(ctx, full) }()
	for n := range to.Len() - 1 {
		move(t, from, to, n)
	}
	until(t, func() bool {
		select {
		case err := <-imported:
			t.Fatalf("the import ended before it was cut off: %v", err)
		default:
		}
		found, _ := filepath.Glob(filepath.Join(dir, "containerd", "content", "ingest", "*", "data"))
		for _, ingest = range found {
			if st, err := os.Stat(ingest); err == nil && st.Size() > 1<<20 {
				return true
			}
		}
		return false
	})
	cancel()
	<-imported
	return s, p, from, to, ingest
}
