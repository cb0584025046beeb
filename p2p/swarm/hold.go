package swarm

import (
	"sync"

	"seeder/store/chunk"
)

// Hold are chunks that a fetch does not ask for now, although they are missing, because they
// are on their way by other means. What was asked for before is taken when it comes. It is
// safe for concurrent use; a nil Hold holds nothing back.
type Hold struct {
	mu      sync.Mutex
	chunks  chunk.Bitmap
	changed chan struct{} // closed and replaced by Set
}

// NewHold returns a Hold of nothing.
func NewHold() *Hold { return &Hold{changed: make(chan struct{})} }

// Set says what is held back from now on. The fetch also reads again what is here: chunks that
// have come by other means are not missing any more.
func (h *Hold) Set(chunks chunk.Bitmap) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.chunks = chunks
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *Hold) read() (chunks chunk.Bitmap, changed <-chan struct{}) {
	if h == nil {
		return nil, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.chunks, h.changed
}
