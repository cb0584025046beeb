package store

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

// builds are two builds of a layer of many files: in the second one a file is longer and one
// is new.
func builds(t testing.TB, packed bool) (before, after []byte) {
	t.Helper()
	var files []entry
	r := rand.New(rand.NewChaCha8([32]byte{1}))
	words := []string{"alpha", "beta", "gamma", "delta", "function", "return", "0x1f", "\n", " ", "{", "}"}
	for i := range 80 {
		var b bytes.Buffer
		for b.Len() < 30_000 {
			b.WriteString(words[r.IntN(len(words))])
			b.WriteByte(byte(r.IntN(256)))
		}
		files = append(files, entry{"app/" + strings.Repeat("x", i%7) + string(rune('a'+i%26)) + "/" + digest.FromBytes(b.Bytes()).Encoded()[:8], b.Bytes()})
	}
	before = tarOf(t, files...)
	files[3].data = append([]byte("// a change\n"), files[3].data...)
	after = tarOf(t, append([]entry{{"app/new", []byte("a file that was not there")}}, files...)...)
	if packed {
		before, after = packedWith(t, before, gzip.DefaultCompression), packedWith(t, after, gzip.DefaultCompression)
	}
	return before, after
}

func packedWith(t testing.TB, p []byte, level int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// offered waits until the delta of the only large layer of an image is there.
func offered(t testing.TB, from *Store, image digest.Digest, bases []digest.Digest) chunk.Offer {
	t.Helper()
	for {
		list, changed, err := from.Deltas.Offers(t.Context(), image, bases, true)
		if err != nil || len(list) != 1 {
			t.Fatalf("offers: %+v %v", list, err)
		}
		if !list[0].Pending() {
			return list[0]
		}
		if list[0].After <= 0 {
			t.Errorf("pending, and no estimate: %+v", list[0])
		}
		select {
		case <-changed:
		case <-time.After(30 * time.Second):
			t.Fatal("the delta was not made in 30 s")
		}
	}
}

// carry takes a delta from one store to another.
func carry(t testing.TB, from, to *Store, of digest.Digest, o chunk.Offer) {
	t.Helper()
	index, err := from.SeedIndex(t.Context(), o.Seed)
	if err != nil {
		t.Fatal(err)
	}
	if err := to.Deltas.Expect(of, o); err != nil {
		t.Fatal(err)
	}
	b, err := to.Image(t.Context(), index)
	if err != nil {
		t.Fatal(err)
	}
	moveAll(t, image(t, from, index), b)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// pairOfHosts are an announcing host with both builds of an image, and one that has the first.
func pairOfHosts(t testing.TB, packed bool) (from, to *Store, first, next chunk.Prepared) {
	t.Helper()
	small := layer(t, "small", 2000)
	before, after := builds(t, packed)
	from, first = announceSide(t, small, before)
	to = open(t, t.TempDir())
	a, b := image(t, from, first.Index), image(t, to, first.Index)
	for n := range a.Len() {
		move(t, a, b, n)
	}
	if err := b.Import(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	next = second(t, from, short, small, after)
	return from, to, first, next
}

// TestDelta: a host that has the build before gets the next one by a delta, whichever tool wrote
// the layer, and its chunks are there for others.
func TestDelta(t *testing.T) {
	for name, packed := range map[string]bool{"plain": false, "gzip": true} {
		t.Run(name, func(t *testing.T) {
			if packed && raceDetector {
				t.Skip("the race detector takes a minute; make unit runs this without, too")
			}
			from, to, first, next := pairOfHosts(t, packed)
			bases, err := to.Deltas.Bases(t.Context(), full, nil)
			if err != nil || len(bases) != 1 {
				t.Fatalf("bases: %v %v", bases, err)
			}
			o := offered(t, from, next.SeedDigest(), bases)
			if !o.Ready() || o.Base != bases[0] || o.Bytes > next.Bytes/50 {
				t.Fatalf("offer: %+v of %d bytes", o, next.Bytes)
			}
			carry(t, from, to, next.SeedDigest(), o)
			img := image(t, to, next.Index)
			var had []int
			if err := img.Rebuild(t.Context(), o, func(n int) { had = append(had, n) }); err != nil {
				t.Fatal(err)
			}
			big := img.index.Len() - img.index.Start(len(img.blobs)-1)
			if len(had) != big || !slices.IsSorted(had) {
				t.Errorf("told of chunks %v, want the last %d", had, big)
			}
			moveAll(t, image(t, from, next.Index), img)
			if err := img.Import(t.Context(), full); err != nil {
				t.Fatal(err)
			}
			ready(t, to, next)

			// It is there for others, and as long as the image is.
			if again := offered(t, to, next.SeedDigest(), bases); again != o {
				t.Errorf("the host that got %+v offers %+v", o, again)
			}
			if err := to.Tidy(t.Context(), []digest.Digest{next.SeedDigest()}, nil); err != nil {
				t.Fatal(err)
			}
			if !to.Deltas.holds(t.Context(), o.Seed) {
				t.Error("the delta is gone although the image is announced")
			}
			if err := to.Tidy(t.Context(), []digest.Digest{first.SeedDigest()}, nil); err != nil {
				t.Fatal(err)
			}
			if left := to.stage.Staged(); len(left) > 0 {
				t.Errorf("frames of a delta that nobody needs are left: %v", left)
			}
		})
	}
}

// TestDeltaAfterRestart: what was made is offered again, not made again.
func TestDeltaAfterRestart(t *testing.T) {
	from, to, _, next := pairOfHosts(t, false)
	bases, err := to.Deltas.Bases(t.Context(), full, nil)
	if err != nil {
		t.Fatal(err)
	}
	o := offered(t, from, next.SeedDigest(), bases)
	dir := from.cfg.DataDir
	leftover := filepath.Join(dir, "deltas", "building-1")
	if err := errors.Join(os.WriteFile(leftover, []byte("x"), 0o600), from.Close()); err != nil {
		t.Fatal(err)
	}
	from = open(t, dir)
	list, _, err := from.Deltas.Offers(t.Context(), next.SeedDigest(), bases, true)
	if err != nil || len(list) != 1 || list[0] != o {
		t.Errorf("after a restart: %+v %v, want %+v", list, err, o)
	}
	if _, err := os.Stat(leftover); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an unfinished delta is left: %v", err)
	}
}

// TestRebuildRefuses: a delta that does not make the layer stages nothing that is not of
// the layer, and a damaged base is named.
func TestRebuildRefuses(t *testing.T) {
	from, to, first, next := pairOfHosts(t, false)
	bases, err := to.Deltas.Bases(t.Context(), full, nil)
	if err != nil {
		t.Fatal(err)
	}
	o := offered(t, from, next.SeedDigest(), bases)
	none := func(int) {}

	t.Run("not here", func(t *testing.T) {
		if err := image(t, to, next.Index).Rebuild(t.Context(), o, none); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("rebuilt without the delta: %v", err)
		}
	})
	t.Run("another layer", func(t *testing.T) {
		wrong, err := to.Deltas.keep(t.Context(), bytes.NewReader([]byte("no delta")), 8)
		if err != nil {
			t.Fatal(err)
		}
		bad := o
		bad.Seed = wrong
		img := image(t, to, next.Index)
		if err := img.Rebuild(t.Context(), bad, none); err == nil {
			t.Error("rebuilt from bytes that are not a delta")
		}
		if n := count(img.Have(), img.Len()); n != count(image(t, to, next.Index).Have(), img.Len()) {
			t.Errorf("%d chunks came of it", n)
		}
	})
	carry(t, from, to, next.SeedDigest(), o)
	t.Run("of another layer", func(t *testing.T) {
		bad := o
		bad.Target = chunkIndex(t, first.Index).Blobs[len(chunkIndex(t, first.Index).Blobs)-1].Digest
		if err := image(t, to, first.Index).Rebuild(t.Context(), bad, none); !errors.Is(err, errOther) {
			t.Errorf("a delta of another layer: %v", err)
		}
	})
	t.Run("damaged base", func(t *testing.T) {
		damage(t, filepath.Join(to.cfg.DataDir, "containerd", "content", "blobs", "sha256", o.Base.Encoded()))
		img := image(t, to, next.Index)
		err := img.Rebuild(t.Context(), o, none)
		if err == nil || !strings.Contains(err.Error(), "the base is damaged in this host's containerd") {
			t.Errorf("from a damaged base: %v", err)
		}
		if !to.ctrd.Content.Damaged(t.Context(), o.Base) {
			t.Error("nobody knows that the base is damaged")
		}
		moveAll(t, image(t, from, next.Index), img)
		if err := img.Import(t.Context(), full); err != nil {
			t.Errorf("ordinary chunks after it: %v", err)
		}
	})
}

func chunkIndex(t testing.TB, b []byte) chunk.Index {
	t.Helper()
	x, err := chunk.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	return x
}
