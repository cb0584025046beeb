package images

import (
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestDeltaOfTwoImages: a delta of a layer that two images have is served while one of them
// is announced, and what was sent of it counts for one image at a time.
func TestDeltaOfTwoImages(t *testing.T) {
	t.Parallel()
	before, after, delta := digest.FromString("before"), digest.FromString("after"), digest.FromString("delta")
	s := New(Config{})
	s.SetServed(map[digest.Digest]bool{before: true, after: true})
	s.Lend(before, delta)
	s.Lend(after, delta)
	s.addSent(delta, 5)
	if b, a := s.SentBytes(before), s.SentBytes(after); b != 5 || a != 0 {
		t.Errorf("sent %d of the first image and %d of the second one, want 5 and 0", b, a)
	}
	s.SetServed(map[digest.Digest]bool{after: true})
	if a := s.SentBytes(after); !s.isServed(delta) || a != 5 {
		t.Errorf("of the second image alone: served %v, %d sent", s.isServed(delta), a)
	}
	s.SetServed(nil)
	if s.isServed(delta) {
		t.Error("a delta of no announced image is served")
	}
}
