package offers

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/delta"
)

// shelf are the layers of a host, in memory.
type shelf struct {
	mu     sync.Mutex
	blobs  map[digest.Digest][]byte
	budget int64
	kept   map[digest.Digest]int64
}

type held struct {
	*bytes.Reader
	io.Closer
}

func (s *shelf) put(p []byte) Layer {
	d := digest.FromBytes(p)
	s.blobs[d] = p
	return Layer{Digest: d, Bytes: int64(len(p))}
}

func (s *shelf) maker(t *testing.T, dir string) *Maker {
	t.Helper()
	m, err := New(Config{
		Dir: dir,
		Open: func(_ context.Context, d digest.Digest) (Blob, error) {
			if p, ok := s.blobs[d]; ok {
				return held{bytes.NewReader(p), io.NopCloser(nil)}, nil
			}
			return nil, fmt.Errorf("layer %s: %w", d, fs.ErrNotExist)
		},
		Keep: func(_ context.Context, r io.ReaderAt, n int64) (digest.Digest, error) {
			p := make([]byte, n)
			if _, err := r.ReadAt(p, 0); err != nil {
				return "", err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.kept[digest.FromBytes(p)] = n
			return digest.FromBytes(p), nil
		},
		Holds: func(_ context.Context, seed digest.Digest) bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.kept[seed] > 0
		},
		Room:   func(context.Context, int64) error { return nil },
		Budget: func() int64 { return s.budget },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func newShelf() *shelf {
	return &shelf{blobs: map[digest.Digest][]byte{}, budget: 1 << 30, kept: map[digest.Digest]int64{}}
}

// tree is a tar of files that depend on seed, of which those from changed on depend on it.
func tree(t *testing.T, seed byte, files, changed int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := range files {
		own := seed
		if i < changed {
			own = 0
		}
		r := rand.NewChaCha8([32]byte{own, byte(i), byte(i >> 8)})
		p := make([]byte, 20_000)
		r.Read(p)
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: fmt.Sprintf("%d/%d", own, i), Mode: 0o644, Size: int64(len(p))})); err != nil {
			t.Fatal(err)
		}
		w.Write(p)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zip(t *testing.T, p []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(p)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

var image = digest.FromString("an image")

// wait is the offer of one layer once it is made.
func wait(t *testing.T, m *Maker, l Layer, bases ...digest.Digest) (base, seed digest.Digest, why string) {
	t.Helper()
	for {
		list, changed, err := m.Offers(t.Context(), image, []Layer{l}, bases, true)
		if err != nil || len(list) != 1 {
			t.Fatalf("offers: %+v %v", list, err)
		}
		if !list[0].Pending() {
			return list[0].Base, list[0].Seed, list[0].Why
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Second):
			t.Fatal("no delta in 20 s")
		}
	}
}

// TestBaseIsWhatIsLike: the base is the layer that shares the most, wherever it is in the
// list, and one of the same kind.
func TestBaseIsWhatIsLike(t *testing.T) {
	s := newShelf()
	m := s.maker(t, t.TempDir())
	next := s.put(tree(t, 2, 100, 90))
	same := s.put(tree(t, 3, 100, 90)).Digest       // nine of ten files
	less := s.put(tree(t, 4, 100, 30)).Digest       // three of ten
	other := s.put(tree(t, 5, 100, 0)).Digest       // none
	packed := s.put(zip(t, s.blobs[same])).Digest   // the same, and cannot be a base
	noTar := s.put(make([]byte, 3<<20)).Digest      // looks like nothing
	absent := digest.FromString("not on this host") // the other one has it alone
	for _, order := range [][]digest.Digest{
		{absent, other, less, same, packed, noTar}, {noTar, packed, same, less, other}, {packed, less, absent, same},
	} {
		if base, seed, why := wait(t, m, next, order...); base != same || seed == "" {
			t.Errorf("of %v it is made from %s (%s), want %s", order, base, why, same)
		}
	}
	if base, seed, why := wait(t, m, next, absent, other, packed, noTar); base != "" || seed != "" || why == "" {
		t.Errorf("made from %s although nothing is like it (%q)", base, why)
	}
	gz := s.put(zip(t, s.blobs[next.Digest]))
	if base, _, why := wait(t, m, gz, same, packed); base != packed {
		t.Errorf("a gzip layer is made from %s (%s), want %s", base, why, packed)
	}
}

// TestBaseOfMostHosts: of bases that are nearly as like the layer, the one that most hosts have
// that ask for the image is taken: one delta is made for all. One that is much less like it is
// not, no matter how many hosts have it.
func TestBaseOfMostHosts(t *testing.T) {
	t.Parallel()
	s := newShelf()
	m := s.maker(t, t.TempDir())
	target := s.put(tree(t, 5, 100, 100))
	newest, older, oldest := s.put(tree(t, 1, 100, 99)), s.put(tree(t, 2, 100, 97)), s.put(tree(t, 3, 100, 60))
	ask := func(layer Layer, bases ...digest.Digest) {
		if _, _, err := m.Offers(t.Context(), image, []Layer{layer}, bases, false); err != nil {
			t.Fatal(err)
		}
	}
	ask(target, newest.Digest, older.Digest, oldest.Digest)
	if base, _, err := m.choose(t.Context(), target.Digest, []digest.Digest{older.Digest, newest.Digest}, m.hosts(image)); err != nil || base != newest.Digest {
		t.Errorf("of one host the base is %s, want the one that is most like the layer: %v", base, err)
	}
	for range 3 {
		ask(target, oldest.Digest)
	}
	ask(target, older.Digest)
	ask(target, older.Digest)
	if base, seed, why := wait(t, m, target, newest.Digest, older.Digest, oldest.Digest); base != older.Digest || seed == "" {
		t.Errorf("the base is %s (%s), want the one of three hosts that is nearly as like", base, why)
	}
	// The hosts that have the older build alone get the same delta.
	if base, _, why := wait(t, m, target, older.Digest); base != older.Digest || len(s.kept) != 1 {
		t.Errorf("the base is %s (%s), %d deltas were made", base, why, len(s.kept))
	}
	for i := range 2 * maxAsked {
		if _, _, err := m.Offers(t.Context(), digest.FromString(fmt.Sprint(i)), nil, []digest.Digest{older.Digest}, false); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.asked) != maxAsked || m.hosts(image)(older.Digest) != 0 {
		t.Errorf("%d images are remembered", len(m.asked))
	}
}

// TestNotOffered: what is small, what the other host has, and what does not pay.
func TestNotOffered(t *testing.T) {
	s := newShelf()
	m := s.maker(t, t.TempDir())
	big := s.put(tree(t, 2, 100, 90))
	small := s.put(tree(t, 2, 3, 2))
	base := s.put(tree(t, 3, 100, 90)).Digest
	list, _, err := m.Offers(t.Context(), image, []Layer{big, small}, []digest.Digest{base, big.Digest}, true)
	if err != nil || len(list) > 0 {
		t.Errorf("offers of what is small or there: %+v %v", list, err)
	}
	s.budget = 10
	if _, seed, why := wait(t, m, big, base); seed != "" || why == "" {
		t.Errorf("a delta above the budget: %s %q", seed, why)
	}
}

// TestBookIsKept: deltas are offered after a restart, as long as their image is announced
// and all of them is there; a damaged book begins anew.
func TestBookIsKept(t *testing.T) {
	s, dir := newShelf(), t.TempDir()
	m := s.maker(t, dir)
	next, base := s.put(tree(t, 2, 100, 90)), s.put(tree(t, 3, 100, 90)).Digest
	_, seed, why := wait(t, m, next, base)
	if seed == "" {
		t.Fatal(why)
	}
	m.Close()
	m = s.maker(t, dir)
	list, _, err := m.Offers(t.Context(), image, []Layer{next}, []digest.Digest{base}, true)
	if err != nil || len(list) != 1 || list[0].Seed != seed {
		t.Fatalf("after a restart: %+v %v", list, err)
	}
	if got := m.Tidy([]digest.Digest{image}); !slices.Equal(got, []digest.Digest{seed}) {
		t.Errorf("kept for an announced image: %v", got)
	}
	s.mu.Lock()
	clear(s.kept) // its bytes are lost
	s.mu.Unlock()
	if _, again, why := wait(t, m, next, base); again != seed || s.kept[seed] == 0 {
		t.Errorf("a delta whose bytes were lost: %s %q", again, why)
	}
	if got := m.Tidy(nil); len(got) > 0 || m.book.bytes() > 0 {
		t.Errorf("kept for no image: %v", got)
	}
	if _, again, why := wait(t, m, next, base); again != seed {
		t.Errorf("a delta of an image that is announced again: %s %q", again, why)
	}
	m.Close()
	for name, text := range map[string]string{"no json": "{", "invalid": `[{"base":"x"}]`} {
		if err := os.WriteFile(filepath.Join(dir, bookName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := openBook(dir, m.cfg.Log)
		if err != nil || len(b.list) > 0 {
			t.Errorf("%s: %v %v", name, b, err)
		}
	}
}

// TestBoundsHold: whatever is asked for, what is remembered is bounded.
func TestBoundsHold(t *testing.T) {
	s := newShelf()
	m := s.maker(t, t.TempDir())
	for i := range 2 * maxKept {
		d := digest.FromString(fmt.Sprint(i))
		if err := m.book.add(entry{Images: []digest.Digest{image}, Base: d, Layer: d, Kind: "bytes", Seed: d, Bytes: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if got := m.book.bytes(); got != maxKept {
		t.Errorf("%d deltas are kept, want %d", got, maxKept)
	}
	m.mu.Lock()
	for i := range 2 * maxPairs {
		d := digest.FromString(fmt.Sprint(i))
		m.remember(&build{pair: pair{d, d}, kind: delta.Bytes, ended: true})
	}
	if len(m.pairs) > maxPairs {
		t.Errorf("%d pairs are remembered, at most %d", len(m.pairs), maxPairs)
	}
	m.mu.Unlock()
}

// TestTriedAgain: what failed for another reason than the two layers is tried again a minute
// later, and not before; what failed for them is not looked at again.
func TestTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		m := s.maker(t, t.TempDir())
		defer m.Close()
		next, base := s.put(tree(t, 2, 100, 90)), s.put(tree(t, 3, 100, 90)).Digest
		rooms, full := 0, errors.New("no room")
		m.cfg.Room = func(context.Context, int64) error { rooms++; return full }
		for range 3 {
			if _, seed, why := wait(t, m, next, base); seed != "" || why == "" || rooms != 1 {
				t.Fatalf("without room: %s %q, %d tries", seed, why, rooms)
			}
		}
		time.Sleep(retryAfter + time.Second)
		full = nil
		if _, seed, why := wait(t, m, next, base); seed == "" || rooms != 2 {
			t.Errorf("a minute later: %q, %d tries", why, rooms)
		}
	})
}

// TestBookOrder: of too many deltas the one that was used the longest ago goes, and one that
// two images use stays for either.
func TestBookOrder(t *testing.T) {
	s := newShelf()
	m := s.maker(t, t.TempDir())
	other := digest.FromString("another image")
	of := func(i int) entry {
		d := digest.FromString(fmt.Sprint(i))
		return entry{Images: []digest.Digest{image}, Base: d, Layer: d, Kind: "bytes", Seed: d, Bytes: 1}
	}
	for i := range maxKept {
		if err := m.book.add(of(i)); err != nil {
			t.Fatal(err)
		}
	}
	m.book.use(of(0), image)
	if err := m.book.add(of(maxKept)); err != nil {
		t.Fatal(err)
	}
	if _, ok := m.book.find(pair{of(0).Base, of(0).Layer}); !ok {
		t.Error("the delta that was used last is gone")
	}
	m.book.use(of(7), other)
	if err := m.book.add(of(7)); err != nil { // by the image before
		t.Fatal(err)
	}
	for _, announced := range []digest.Digest{other, image} {
		if seeds := m.Tidy([]digest.Digest{image, announced}); !slices.Contains(seeds, of(7).Seed) {
			t.Errorf("a delta of an announced image is gone")
		}
	}
	if seeds := m.Tidy([]digest.Digest{other}); !slices.Equal(seeds, []digest.Digest{of(7).Seed}) {
		t.Errorf("for the other image alone %d deltas are kept, want its one", len(seeds))
	}
}
