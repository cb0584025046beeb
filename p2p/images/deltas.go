package images

import (
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
)

// maxLent bounds the deltas that are served at once.
const maxLent = 1024

// deltas are the deltas that are served beside the images.
type deltas struct {
	of       map[digest.Digest][]digest.Digest // by the seed of a delta: those of its images, oldest first
	withheld map[digest.Digest]bool            // seeds of images of which no delta is offered
}

// keep drops what belongs to no announced image.
func (d *deltas) keep(announced map[digest.Digest]bool) {
	for delta, of := range d.of {
		if d.of[delta] = slices.DeleteFunc(of, func(image digest.Digest) bool { return !announced[image] }); len(d.of[delta]) == 0 {
			delete(d.of, delta)
		}
	}
}

// Lend lets peers ask for a delta as long as image, or another one for which it was lent, is
// announced.
func (s *Set) Lend(image, delta digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.deltas.of[delta]
	if s.served[image] && !slices.Contains(of, image) && (len(s.deltas.of) < maxLent || len(of) > 0) {
		s.deltas.of[delta] = append(of, image)
	}
}

// Withhold has no deltas of an image offered by this node from now on, or again. It may be
// said before the image is announced.
func (s *Set) Withhold(image digest.Digest, yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.deltas.withheld) >= maxLent { // those that are not announced any more
		maps.DeleteFunc(s.deltas.withheld, func(old digest.Digest, _ bool) bool { return !s.served[old] })
	}
	if s.deltas.withheld[image] = yes; !yes {
		delete(s.deltas.withheld, image)
	}
}

func (s *Set) withheld(image digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deltas.withheld[image]
}
