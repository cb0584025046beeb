package images

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/swarm"
	"seeder/store/chunk"
)

// slowImage is whole; reading a chunk of it again lasts until it may end.
type slowImage struct {
	Image
	began, end chan struct{}
}

func (slowImage) Len() int             { return 1 }
func (slowImage) Have() chunk.Bitmap   { return chunk.NewBitmap(1) }
func (slowImage) Wanted() chunk.Bitmap { return chunk.NewBitmap(1) }
func (slowImage) Close() error         { return nil }

func (i slowImage) Recheck(context.Context, int) (bool, error) {
	select {
	case i.began <- struct{}{}:
		<-i.end
	case <-i.end:
	case <-time.After(time.Second): // a second one, which nobody waits for
	}
	return false, nil
}

type oneStore struct{ img Image }

func (oneStore) SeedIndex(context.Context, digest.Digest) ([]byte, error) { return []byte("x"), nil }
func (s oneStore) Image(context.Context, []byte) (Image, error)           { return s.img, nil }

// TestOneRecheck: members may report as many damaged chunks as they like; this node reads
// one at a time for all of them, none of what is not announced, and loses nothing whole.
func TestOneRecheck(t *testing.T) {
	t.Parallel()
	img := slowImage{began: make(chan struct{}), end: make(chan struct{})}
	lost := 0
	s := New(Config{
		Store: oneStore{img}, Lost: func() { lost++ }, Log: slog.New(slog.DiscardHandler),
		NameOf: func(_, other string) string { return other },
	})
	defer s.Close()
	one, two := digest.FromString("one"), digest.FromString("two")
	s.SetServed(map[digest.Digest]bool{one: true, two: true})
	first := make(chan error, 1)
	go func() { first <- s.Recheck(t.Context(), one, 0, "a") }()
	<-img.began
	for _, seed := range []digest.Digest{one, two} {
		var busy *swarm.BusyError
		if err := s.Recheck(t.Context(), seed, 0, "b"); !errors.As(err, &busy) {
			t.Errorf("a second chunk is read at the same time: %v", err)
		}
	}
	if err := s.Recheck(t.Context(), digest.FromString("three"), 0, "b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not announced: %v", err)
	}
	close(img.end)
	if err := <-first; err != nil || lost > 0 {
		t.Errorf("a whole chunk: %v, lost %d", err, lost)
	}
}
