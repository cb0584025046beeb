package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"seeder/store/chunk"
	"seeder/store/ctrd"
)

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

// TestSharedBlobs: two images with a base layer in common are open at once; what
// one of them got counts for the other, in staging and after the import.
func TestSharedBlobs(t *testing.T) {
	t.Parallel()
	base := layer(t, "base", 1<<20)
	a, p := announceSide(t, base, layer(t, "one", 300_000))
	q := second(t, a, "other:1", base, layer(t, "two", 300_000))
	b := open(t, t.TempDir())
	from1, from2 := image(t, a, p.Index), image(t, a, q.Index)
	to1, to2 := image(t, b, p.Index), image(t, b, q.Index)
	again := image(t, b, p.Index) // the same image, opened twice
	moveAll(t, from1, to1)
	if got := count(again.Have(), again.Len()); got != again.Len() {
		t.Errorf("the image opened twice has %d of %d chunks", got, again.Len())
	}
	shared := count(to2.Have(), to2.Len())
	if shared == 0 {
		t.Error("the shared layer's staged chunks do not count for the other image")
	}
	missing := len(to2.Missing())
	if err := to1.Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	if got := count(to2.Have(), to2.Len()); got != shared {
		t.Errorf("the other image had %d chunks before the import and has %d after it", shared, got)
	}
	if got := len(to2.Missing()); got != missing-1 {
		t.Errorf("%d blobs missing, %d before the shared layer was imported", got, missing)
	}
	for n := range to2.Len() { // late duplicates are no error
		move(t, from2, to2, n)
	}
	third := image(t, open(t, t.TempDir()), p.Index)
	for n := range again.Len() { // served by an object opened before the import
		move(t, again, third, n)
	}
	if err := to2.Import(t.Context(), "other:1"); err != nil {
		t.Fatal(err)
	}
	ready(t, b, p)
}

// TestConcurrentImports: two images that share blobs arrive and are imported at
// the same time, while peers read from both.
func TestConcurrentImports(t *testing.T) {
	t.Parallel()
	base := layer(t, "base", 4<<20)
	a, p := announceSide(t, base, noise(t, 1<<20), layer(t, "one", 300_000))
	q := second(t, a, "other:1", base, layer(t, "two", 300_000))
	b, c := open(t, t.TempDir()), open(t, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	for ref, index := range map[string][]byte{full: p.Index, "other:1": q.Index} {
		from, to, relay := image(t, a, index), image(t, b, index), image(t, c, index)
		group.Go(func() error { return to.Import(ctx, ref) })
		arrived := make(chan int, to.Len())
		group.Go(func() error {
			defer close(arrived)
			for n := range to.Len() {
				if err := pass(ctx, from, to, n); err != nil {
					return err
				}
				arrived <- n
			}
			return nil
		})
		for range 2 { // peers that read while blobs move to the content store
			group.Go(func() error {
				for n := range arrived {
					for range 3 {
						if err := pass(ctx, to, relay, n); err != nil {
							return err
						}
					}
				}
				return nil
			})
		}
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	ready(t, b, p)
}

// TestOtherCutsOfABlob: seed indexes may cut one blob differently (another
// version, or a liar). Their chunks are different things.
func TestOtherCutsOfABlob(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, noise(t, 3<<20))
	x, err := chunk.Decode(p.Index)
	if err != nil {
		t.Fatal(err)
	}
	blobs := append([]chunk.Blob(nil), x.Blobs...)
	last := &blobs[len(blobs)-1]
	ra, err := a.ctrd.Content.ReaderAt(t.Context(), last.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer ra.Close()
	last.ChunkBytes = chunk.MaxBytes
	if last.Sums, err = chunk.Sum(t.Context(), ra, last.Bytes, last.ChunkBytes); err != nil {
		t.Fatal(err)
	}
	coarse := encode(t, x, blobs)
	lies := append([]chunk.Blob(nil), x.Blobs...)
	liar := &lies[len(lies)-1]
	liar.Sums = append([][32]byte(nil), liar.Sums...)
	other := make([]byte, liar.ChunkLen(1))
	rand.Read(other)
	sums, err := chunk.Sum(t.Context(), bytes.NewReader(other), int64(len(other)), liar.ChunkBytes)
	if err != nil {
		t.Fatal(err)
	}
	liar.Sums[1] = sums[0]
	lying := encode(t, x, lies)

	b := open(t, t.TempDir())
	first, lied := image(t, b, coarse), image(t, b, lying)
	n := x.Start(len(lies)-1) + 1
	if ok, err := lied.Put(t.Context(), n, chunk.Raw, other); !ok || err != nil {
		t.Fatal(ok, err)
	}
	fine := image(t, b, p.Index)
	if has(fine.Have(), n) {
		t.Error("a chunk of a lying index counts for the true one")
	}
	moveAll(t, image(t, a, coarse), first)
	from := image(t, a, p.Index)
	moveAll(t, from, fine)
	for m := range fine.Len() {
		if m != n {
			move(t, from, lied, m)
		}
	}
	for range 2 {
		if err := lied.Import(t.Context(), full); err == nil || !strings.Contains(err.Error(), "announce") {
			t.Fatalf("import of an index that lies: %v", err)
		}
	}
	if err := fine.Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	ready(t, b, p)
	if _, _, r, err := opened(lied.Frame(t.Context(), n-1)); err != nil { // true, and in the content store now
		t.Error(err)
	} else {
		r.Close()
	}
}

// TestHandsOver: chunks that come while the import waits for them go on to it from
// memory, and none is kept when it is over.
func TestHandsOver(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "base", 6<<20))
	from, b := image(t, a, p.Index), open(t, t.TempDir())
	to := image(t, b, p.Index)
	last := to.blobs[len(to.blobs)-1]
	last.near.wantFrom(0)
	move(t, from, to, to.index.Start(len(to.blobs)-1))
	if last.near.take(0) == nil {
		t.Error("the chunk that an import waits for was not handed over")
	}
	last.near.end()
	imported := make(chan error, 1)
	go func() { imported <- to.Import(t.Context(), full) }()
	for n := to.Len() - 1; n >= 0; n-- {
		move(t, from, to, n)
	}
	if err := <-imported; err != nil {
		t.Fatal(err)
	}
	ready(t, b, p)
	if left := b.work.near.Load(); left != 0 {
		t.Errorf("%d bytes are still handed over", left)
	}
}

// TestReaderOutlivesTheSwitch: a frame that a peer is reading while its blob
// moves from staging to the content store is read to its end.
func TestReaderOutlivesTheSwitch(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, noise(t, 1<<20))
	from, to := image(t, a, p.Index), image(t, open(t, t.TempDir()), p.Index)
	moveAll(t, from, to)
	n := to.Len() - 2
	_, size, r, err := opened(to.Frame(t.Context(), n))
	if err != nil {
		t.Fatal(err)
	}
	if err := to.Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || int64(len(got)) != size {
		t.Errorf("%d of %d bytes: %v", len(got), size, err)
	}
	r.Close()
}

// TestPutRacesWithImport puts every chunk from several sides at once, duplicates
// included, while the import runs.
func TestPutRacesWithImport(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "base", 2<<20), noise(t, 1<<20))
	from, b := image(t, a, p.Index), open(t, t.TempDir())
	to := image(t, b, p.Index)
	imported := make(chan error, 1)
	go func() { imported <- to.Import(t.Context(), full) }()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for n := range to.Len() {
				if err := pass(t.Context(), from, to, n); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := <-imported; err != nil {
		t.Fatal(err)
	}
	ready(t, b, p)
	if left, _ := filepath.Glob(filepath.Join(b.cfg.DataDir, "stage", "*")); len(left) > 0 {
		t.Errorf("left in staging: %v", left)
	}
}

func TestWanted(t *testing.T) {
	t.Parallel()
	blobFor := func(i int, platforms ...string) chunk.Blob {
		p := []byte{byte(i)}
		sums, err := chunk.Sum(t.Context(), bytes.NewReader(p), 1, chunk.MinBytes)
		if err != nil {
			t.Fatal(err)
		}
		return chunk.Blob{Digest: digest.FromBytes(p), Bytes: 1, ChunkBytes: chunk.MinBytes, Sums: sums, Platforms: platforms}
	}
	for name, tc := range map[string]struct {
		host string
		has  [][]string
		want []bool // nil: excluded
	}{
		"its own":           {"linux/arm64", [][]string{nil, {"linux/amd64"}, {"linux/arm64"}, {"linux/amd64", "linux/arm64"}}, []bool{true, false, true, true}},
		"nothing for it":    {"linux/arm64", [][]string{nil, {"linux/amd64"}, {"linux/s390x"}}, nil},
		"no platform named": {"linux/arm64", [][]string{nil, nil}, []bool{true, true}},
		"the best only":     {"linux/amd64", [][]string{nil, {"linux/386"}, {"linux/amd64"}}, []bool{true, false, true}},
		"one that runs":     {"linux/amd64", [][]string{nil, {"linux/386"}, {"linux/arm64"}}, []bool{true, true, false}},
	} {
		s, err := Open(t.Context(), Config{DataDir: t.TempDir(), Containerd: ctrd.Config{Address: "/there/is/no/such.sock", Platform: tc.host}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var blobs []chunk.Blob
		for i, platforms := range tc.has {
			blobs = append(blobs, blobFor(i, platforms...))
		}
		x, err := chunk.New(ocispec.Descriptor{Digest: blobs[0].Digest}, blobs)
		if err != nil {
			t.Fatal(err)
		}
		got, excluded := s.wanted(x)
		if (excluded != "") != (tc.want == nil) || excluded == "" && !slices.Equal(got, tc.want) || excluded != "" && slices.Contains(got, true) {
			t.Errorf("%s: %v %v, want %v", name, got, excluded, tc.want)
		}
		if tc.want == nil && !strings.Contains(excluded, "linux/amd64, linux/s390x, this host runs linux/arm64") {
			t.Errorf("%s: %s", name, excluded)
		}
	}
}

// TestClosed: an image that was closed writes nothing any more.
func TestClosed(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, noise(t, 1<<20))
	from, b := image(t, a, p.Index), open(t, t.TempDir())
	to := image(t, b, p.Index)
	if err := errors.Join(to.Close(), to.Close()); err != nil {
		t.Fatal(err)
	}
	if err := pass(t.Context(), from, to, to.Len()-1); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("put into a closed image: %v", err)
	}
	if len(b.open) != 0 {
		t.Errorf("%d blobs are still open", len(b.open))
	}
	if left, _ := filepath.Glob(filepath.Join(b.cfg.DataDir, "stage", "*")); len(left) > 0 {
		t.Errorf("staged: %v", left)
	}
}
