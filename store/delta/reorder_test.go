package delta

import (
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// shuffled is p in pieces of about that many bytes, in another order.
func shuffled(p []byte, size int) []byte {
	var pieces [][]byte
	r := rand.New(rand.NewPCG(1, uint64(size)))
	for len(p) > 0 {
		n := min(len(p), size/2+r.IntN(size))
		pieces, p = append(pieces, p[:n]), p[n:]
	}
	r.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	return bytes.Join(pieces, nil)
}

// TestReordered: a target that is the base in another order needs more jumps than a decoder
// makes. So a part of it travels as it is: the delta is one that decodes, or it does not pay.
func TestReordered(t *testing.T) {
	plain := noise(5, 6<<20) // a cache of pages has 4 of them
	moved := shuffled(plain, 250)
	huffman := func(p []byte) []byte {
		var b bytes.Buffer
		w, err := stdgzip.NewWriterLevel(&b, stdgzip.HuffmanOnly)
		if err != nil {
			t.Fatal(err)
		}
		return written(t, w, &b, p)
	}
	for kind, pair := range map[Kind][2][]byte{Bytes: {plain, moved}, Deflate: {huffman(plain), huffman(moved)}} {
		n := len(roundTripAs(t, kind, pair[0], pair[1]))
		if t.Logf("%s: %d bytes of %d", kind, n, len(moved)); n > len(moved)*4/5 {
			t.Errorf("%s: the delta has %d bytes of %d, want at most four fifths", kind, n, len(moved))
		}
		_, _, err := Encode(context.Background(), io.Discard, kind, blob(pair[0]), blob(pair[1]), int64(n)/8)
		if !errors.Is(err, ErrNotWorth) {
			t.Errorf("%s, an eighth of the delta allowed: %v, want %v", kind, err, ErrNotWorth)
		}
	}
}
