package chunk

import (
	"math/bits"
	"sync"
)

// Buffers are pooled byte slices in sizes between those of the smallest and the
// largest chunk. The zero value is ready; it is safe for concurrent use. What is
// not in use goes with the garbage.
type Buffers struct{ pools [5]sync.Pool }

// Get returns a slice of n bytes, 0 ≤ n ≤ MaxBytes, whose content is left over
// from its last use.
func (b *Buffers) Get(n int) []byte {
	class := sizeClass(n)
	if p, ok := b.pools[class].Get().(*[]byte); ok {
		return (*p)[:n]
	}
	return make([]byte, n, MinBytes<<class)
}

// Put takes a slice of Get back. Nobody may use it any more.
func (b *Buffers) Put(p []byte) {
	class := sizeClass(cap(p))
	if cap(p) != MinBytes<<class {
		return // not one of ours
	}
	p = p[:0]
	b.pools[class].Put(&p)
}

// sizeClass is the least k with MinBytes<<k ≥ n, at most 4.
func sizeClass(n int) int {
	if n <= MinBytes {
		return 0
	}
	return min(bits.Len64(uint64(n-1)/MinBytes), 4)
}
