package chunk

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Bitmap is a set of chunk numbers 0 … n-1. The zero value holds nothing and
// has room for nothing.
type Bitmap []uint64

// NewBitmap returns an empty set with room for n chunks.
func NewBitmap(n int) Bitmap { return make(Bitmap, (n+63)/64) }

// Has reports whether i is in the set; numbers beyond its room are not.
func (b Bitmap) Has(i int) bool {
	return i >= 0 && i>>6 < len(b) && b[i>>6]&(1<<(i&63)) != 0
}

// Set adds i, which must be within the room given to NewBitmap.
func (b Bitmap) Set(i int) { b[i>>6] |= 1 << (i & 63) }

// Clear removes i.
func (b Bitmap) Clear(i int) { b[i>>6] &^= 1 << (i & 63) }

// Count is the number of chunks in the set.
func (b Bitmap) Count() int {
	c := 0
	for _, w := range b {
		c += bits.OnesCount64(w)
	}
	return c
}

// Clone returns a copy.
func (b Bitmap) Clone() Bitmap { return append(Bitmap(nil), b...) }

// Contains reports whether every chunk of c is in b.
func (b Bitmap) Contains(c Bitmap) bool {
	for i, w := range c {
		var have uint64
		if i < len(b) {
			have = b[i]
		}
		if w&^have != 0 {
			return false
		}
	}
	return true
}

// Without returns the chunks of b that are not in c.
func (b Bitmap) Without(c Bitmap) Bitmap {
	out := b.Clone()
	for i := range out {
		if i < len(c) {
			out[i] &^= c[i]
		}
	}
	return out
}

// Both calls fn with each chunk that is in both b and c, ascending, until fn
// returns false.
func (b Bitmap) Both(c Bitmap, fn func(n int) bool) {
	for i := range min(len(b), len(c)) {
		for w := b[i] & c[i]; w != 0; w &= w - 1 {
			if !fn(i<<6 + bits.TrailingZeros64(w)) {
				return
			}
		}
	}
}

// Last is the highest chunk in the set, -1 where it is empty.
func (b Bitmap) Last() int {
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] != 0 {
			return i<<6 + bits.Len64(b[i]) - 1
		}
	}
	return -1
}

// AppendBinary appends the wire form: ⌈n/8⌉ bytes, chunk i in bit i%8 of byte
// i/8, for a set with room for n chunks.
func (b Bitmap) AppendBinary(dst []byte, n int) []byte {
	for i := 0; i < (n+7)/8; i++ {
		var w uint64
		if i/8 < len(b) {
			w = b[i/8]
		}
		dst = append(dst, byte(w>>(8*(i%8))))
	}
	return dst
}

// ParseBitmap reads the wire form of a set with room for n chunks. It refuses
// another length and bits beyond n, so that each set has one wire form.
func ParseBitmap(p []byte, n int) (Bitmap, error) {
	if n < 0 || n > MaxChunks {
		return nil, fmt.Errorf("have-map for %d chunks: at most %d", n, MaxChunks)
	}
	if len(p) != (n+7)/8 {
		return nil, fmt.Errorf("have-map of %d bytes for %d chunks, want %d bytes", len(p), n, (n+7)/8)
	}
	if n%8 != 0 && p[len(p)-1]>>(n%8) != 0 {
		return nil, fmt.Errorf("have-map has chunks beyond the last of %d", n)
	}
	b := NewBitmap(n)
	var word [8]byte
	for i := range b {
		clear(word[:])
		copy(word[:], p[i*8:])
		b[i] = binary.LittleEndian.Uint64(word[:])
	}
	return b, nil
}
