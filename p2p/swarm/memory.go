package swarm

import (
	"sync"
	"sync/atomic"
)

// memoryBytes is what the frames on their way in may take, over all fetches of a
// node: with chunks of 4 MiB twelve of them.
const memoryBytes = 48 << 20

// Memory lends the fetches of a node the memory for frames on their way in. They
// have equal shares of it, so that many images at once take no more than one. The
// zero value is ready; it is safe for concurrent use.
type Memory struct {
	fetches atomic.Int32 // that run
	pool    sync.Pool
}

// room is how many chunks of so many bytes a fetch may have in memory now.
func (m *Memory) room(chunkBytes int64) int {
	return int(memoryBytes / max(int64(m.fetches.Load()), 1) / max(chunkBytes, 1))
}

// take lends memory for a frame. What is not in use goes with the garbage.
func (m *Memory) take(bytes int64) []byte {
	if p, ok := m.pool.Get().(*[]byte); ok && int64(cap(*p)) >= bytes {
		return (*p)[:bytes]
	}
	const step = 64 << 10 // so that frames of about the same length share
	return make([]byte, bytes, (bytes+step)/step*step)
}

// give takes it back; nil is nothing.
func (m *Memory) give(p []byte) {
	if p != nil {
		m.pool.Put(&p)
	}
}
