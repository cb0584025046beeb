package chunk

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// bitmapOf is the set of those of n chunks.
func bitmapOf(n int, set ...int) Bitmap {
	b := NewBitmap(n)
	for _, i := range set {
		b.Set(i)
	}
	return b
}

// chunksOf is the content of b, ascending.
func chunksOf(b Bitmap) []int {
	out := []int{}
	b.Both(b, func(n int) bool { out = append(out, n); return true })
	return out
}

func TestBitmapRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 1000, MaxChunks} {
		for _, p := range []float64{0, 0.01, 0.5, 1} {
			b, want := NewBitmap(n), []int{}
			for i := range n {
				if rng.Float64() < p {
					b.Set(i)
					want = append(want, i)
				}
			}
			wire := b.AppendBinary([]byte("ab"), n)
			if len(wire) != 2+(n+7)/8 || string(wire[:2]) != "ab" {
				t.Fatalf("%d chunks: %d bytes", n, len(wire))
			}
			got, err := ParseBitmap(wire[2:], n)
			if err != nil {
				t.Fatalf("%d chunks: %v", n, err)
			}
			if !slices.Equal(got, b) || !slices.Equal(chunksOf(got), want) || got.Count() != len(want) {
				t.Fatalf("%d chunks: another set came back", n)
			}
		}
	}
}

// The wire form is for good: chunk i is bit i%8 of byte i/8.
func TestBitmapWireForm(t *testing.T) {
	got := bitmapOf(75, 0, 1, 8, 15, 64, 74).AppendBinary(nil, 75)
	want := []byte{3, 0x81, 0, 0, 0, 0, 0, 0, 1, 4}
	if !bytes.Equal(got, want) {
		t.Errorf("% x, want % x", got, want)
	}
	// A set with less room than the peer's has the missing chunks unset.
	if got := bitmapOf(3, 2).AppendBinary(nil, 75); !bytes.Equal(got, append([]byte{4}, make([]byte, 9)...)) {
		t.Errorf("% x", got)
	}
}

func TestParseBitmapRefuses(t *testing.T) {
	cases := []struct {
		name string
		p    []byte
		n    int
		want string
	}{
		{"too long", make([]byte, 3), 16, "3 bytes"},
		{"too short", make([]byte, 1), 16, "1 bytes"},
		{"nothing", nil, 1, "0 bytes"},
		{"something for nothing", make([]byte, 1), 0, "1 bytes"},
		{"a chunk beyond the last", []byte{0, 2}, 9, "beyond the last"},
		{"chunks beyond the last", []byte{0xff}, 1, "beyond the last"},
		{"too many chunks", make([]byte, MaxChunks/8+1), MaxChunks + 1, "at most"},
		{"fewer than none", nil, -1, "at most"},
	}
	for _, c := range cases {
		if b, err := ParseBitmap(c.p, c.n); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", c.name, b, err)
		}
	}
}

func TestBitmapSets(t *testing.T) {
	a, b := bitmapOf(200, 1, 63, 64, 199), bitmapOf(200, 63, 64)
	short := bitmapOf(64, 1, 63)
	if !a.Contains(b) || b.Contains(a) || !a.Contains(short) || short.Contains(b) || !a.Contains(nil) {
		t.Error("Contains")
	}
	if a.Contains(bitmapOf(200, 1, 2)) || a.Contains(bitmapOf(400, 1, 399)) {
		t.Error("contains what it has not")
	}
	if got := chunksOf(a.Without(b)); !slices.Equal(got, []int{1, 199}) {
		t.Errorf("without: %v", got)
	}
	if got := chunksOf(a.Without(short)); !slices.Equal(got, []int{64, 199}) {
		t.Errorf("without a set with less room: %v", got)
	}
	for _, i := range []int{-1, 64, 200, 1 << 40} {
		if short.Has(i) {
			t.Errorf("has %d", i)
		}
	}
	var seen []int
	a.Both(b, func(n int) bool { seen = append(seen, n); return false })
	if !slices.Equal(seen, []int{63}) {
		t.Errorf("stopped late: %v", seen)
	}
	c := a.Clone()
	c.Clear(199)
	if !a.Has(199) || c.Has(199) || c.Count() != 3 {
		t.Error("a copy that is none")
	}
}

// Whatever a peer sends: what is accepted holds only chunks that there are, and
// has one wire form.
func FuzzParseBitmap(f *testing.F) {
	f.Add([]byte{}, 0)
	f.Add([]byte{1}, 1)
	f.Add([]byte{0xff, 1}, 9)
	f.Add([]byte{0xff, 2}, 9)
	f.Add(make([]byte, 9), 65)
	f.Add(make([]byte, 8), 64)
	f.Fuzz(func(t *testing.T, p []byte, n int) {
		b, err := ParseBitmap(p, n)
		if err != nil {
			if b != nil {
				t.Error("refused, and returned all the same")
			}
			return
		}
		if b.Last() >= n || b.Count() > n || len(b) != (n+63)/64 {
			t.Errorf("%d chunks: last %d, %d in all, %d words", n, b.Last(), b.Count(), len(b))
		}
		if wire := b.AppendBinary(nil, n); !bytes.Equal(wire, p) {
			t.Errorf("% x has another wire form: % x", p, wire)
		}
	})
}
