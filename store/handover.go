package store

import "sync"

// handover has the verified chunks of a blob that the import which runs wants next. They
// are staged, too: nothing is lost with it. It is safe for concurrent use.
type handover struct {
	work *work

	mu     sync.Mutex
	chunks map[int][]byte // nil while no import runs
	next   int            // the chunk that the import wants next
}

// give hands a verified chunk over to the import that will want it next, so that it
// need not be read and decompressed again. It is staged anyway. False: there
// is no such import, or it has enough.
func (h *handover) give(at int, raw []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.chunks == nil || at < h.next || at >= h.next+nearChunks || h.chunks[at] != nil {
		return false
	}
	if h.work.near.Add(int64(len(raw))) > nearBytes {
		h.work.near.Add(-int64(len(raw)))
		return false
	}
	h.chunks[at] = raw
	return true
}

const (
	// nearChunks is how far ahead of the import chunks are handed over, nearBytes
	// how much of them there is, of all blobs.
	nearChunks = 8
	nearBytes  = 8 << 20
)

// wantFrom says which chunk the import wants next. What was handed over before it
// is freed.
func (h *handover) wantFrom(at int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.chunks == nil {
		h.chunks = map[int][]byte{}
	}
	h.next = at
	for k := range h.chunks {
		if k < at {
			h.work.buffers.Put(h.unhand(k))
		}
	}
}

// take is chunk at where it was handed over, else nil. The buffer is the caller's.
func (h *handover) take(at int) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.unhand(at)
}

// unhand takes back what was handed over. The caller holds the mutex.
func (h *handover) unhand(at int) []byte {
	p := h.chunks[at]
	h.work.near.Add(-int64(len(p)))
	delete(h.chunks, at)
	return p
}

// end ends the handing over.
func (h *handover) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for at := range h.chunks {
		h.work.buffers.Put(h.unhand(at))
	}
	h.chunks = nil
}
