package fetch

import (
	"sync"

	"github.com/opencontainers/go-digest"
)

// claims says which missing blobs a running fetch brings, so that a layer which
// several images share crosses the network once.
type claims struct {
	mu    sync.Mutex
	held  map[digest.Digest]string // blob → reference that fetches it
	freed chan struct{}            // closed and replaced at each release
}

func newClaims() *claims {
	return &claims{held: map[digest.Digest]string{}, freed: make(chan struct{})}
}

// take claims all blobs for ref or none. Where another reference holds one of
// them, it is named and freed is closed at the next release.
func (c *claims) take(ref string, blobs []digest.Digest) (holder string, freed <-chan struct{}, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range blobs {
		if other, taken := c.held[b]; taken && other != ref {
			return other, c.freed, false
		}
	}
	for _, b := range blobs {
		c.held[b] = ref
	}
	return "", nil, true
}

// release frees every blob that ref claimed.
func (c *claims) release(ref string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for b, r := range c.held {
		if r == ref {
			delete(c.held, b)
		}
	}
	close(c.freed)
	c.freed = make(chan struct{})
}
