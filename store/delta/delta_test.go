package delta

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"
)

func blob(p []byte) Blob {
	return Blob{ReaderAt: bytes.NewReader(p), Digest: digest.FromBytes(p), Bytes: int64(len(p))}
}

// roundTrip returns the delta after it gave the target back.
func roundTrip(t testing.TB, base, target []byte) []byte {
	t.Helper()
	return roundTripAs(t, Bytes, base, target)
}

func roundTripAs(t testing.TB, kind Kind, base, target []byte) []byte {
	t.Helper()
	var delta, out bytes.Buffer
	h, n, err := Encode(context.Background(), &delta, kind, blob(base), blob(target), 0)
	if err != nil || n != int64(delta.Len()) {
		t.Fatalf("encode: %d bytes of %d, %v", n, delta.Len(), err)
	}
	got, err := Decode(context.Background(), &out, bytes.NewReader(delta.Bytes()), blob(base))
	if err != nil || got != h || !bytes.Equal(out.Bytes(), target) {
		t.Fatalf("decode: header %+v, want %+v; equal bytes: %v; %v", got, h, bytes.Equal(out.Bytes(), target), err)
	}
	return delta.Bytes()
}

func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(p)
	return p
}

// TestAnyPairComesBack: whatever the two blobs are.
func TestAnyPairComesBack(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		base := noise(uint64(rapid.IntRange(0, 9).Draw(r, "seed")), rapid.IntRange(0, 200_000).Draw(r, "bytes"))
		target := append([]byte(nil), rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(r, "first")...)
		for range rapid.IntRange(0, 8).Draw(r, "stretches") {
			from := rapid.IntRange(0, len(base)).Draw(r, "from")
			p := bytes.Clone(base[from:rapid.IntRange(from, len(base)).Draw(r, "to")])
			for i := 0; i < len(p); i += 1 + rapid.IntRange(20, 9000).Draw(r, "apart") {
				p[i]++
			}
			target = append(append(target, p...), rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(r, "new")...)
		}
		roundTrip(t, base, target)
	})
}

// TestWhatChangedTravels: some insertions and changed bytes in blobs of several segments cost
// hardly more than themselves.
func TestWhatChangedTravels(t *testing.T) {
	base := noise(1, 3*segmentBytes+12345)
	target := append(append(bytes.Clone(base[:1000]), []byte("a file near the front")...), base[1000:]...)
	for i := 0; i < len(target); i += 50_000 {
		target[i] ^= 0x55
	}
	if n := len(roundTrip(t, base, target)); n > 8000 {
		t.Errorf("the delta has %d bytes, want at most 8000", n)
	}
	if n := len(roundTrip(t, base, base)); n > 400 {
		t.Errorf("the delta to the same has %d bytes, want at most 400", n)
	}
}

func TestRefusals(t *testing.T) {
	base, target := noise(1, 300_000), noise(2, 300_000)
	ctx := context.Background()
	if _, _, err := Encode(ctx, &bytes.Buffer{}, Bytes, blob(base), blob(target), 1000); !errors.Is(err, ErrNotWorth) {
		t.Errorf("a delta that does not pay: %v", err)
	}
	wrong := blob(target)
	wrong.Digest = digest.FromString("another")
	if _, _, err := Encode(ctx, &bytes.Buffer{}, Bytes, blob(base), wrong, 0); !errors.Is(err, ErrMismatch) {
		t.Errorf("a target that is not its digest: %v", err)
	}
	if _, _, err := Encode(ctx, &bytes.Buffer{}, Kind(7), blob(base), blob(target), 0); err == nil {
		t.Error("a kind that is not known was taken")
	}
	if _, err := KindOf([]byte{0x1f, 0x8b, 8, 0}, []byte("plain")); !errors.Is(err, ErrRefused) {
		t.Errorf("gzip as a base: %v", err)
	}
	delta := roundTrip(t, base, base[100:])
	if _, err := Decode(ctx, &bytes.Buffer{}, bytes.NewReader(delta), blob(target)); !errors.Is(err, ErrMismatch) {
		t.Errorf("another base: %v", err)
	}
	damaged := blob(base)
	other := bytes.Clone(base)
	other[5000]++
	damaged.ReaderAt = bytes.NewReader(other)
	if _, err := Decode(ctx, &bytes.Buffer{}, bytes.NewReader(delta), damaged); !errors.Is(err, ErrMismatch) {
		t.Errorf("a damaged base: %v", err)
	}
	for _, d := range [][]byte{delta[:len(delta)-1], delta[:50], append(bytes.Clone(delta), 0)} {
		if _, err := Decode(ctx, &bytes.Buffer{}, bytes.NewReader(d), blob(base)); !errors.Is(err, ErrInvalid) {
			t.Errorf("a delta of %d bytes instead of %d: %v", len(d), len(delta), err)
		}
	}
}

// FuzzDecode: any bytes behind a valid header, the lengths of segments and pieces too.
func FuzzDecode(f *testing.F) {
	base := noise(3, 100_000)
	target := append(append(bytes.Clone(base[50_000:]), "between"...), base[:40_000]...)
	f.Add(roundTrip(f, base, target)[HeaderBytes:])
	f.Add([]byte{0})
	f.Add(bytes.Repeat([]byte{0xff}, 11)) // no length has as many bytes
	f.Add(append([]byte{1}, bytes.Repeat([]byte{0xff}, 11)...))
	f.Fuzz(func(t *testing.T, body []byte) { _, _ = decodeFenced(t, Bytes, base, target, body) })
}

// FuzzPair: any two blobs.
func FuzzPair(f *testing.F) {
	f.Add([]byte("one blob, the base of the other"), []byte("one blob, the target of the other"))
	f.Add([]byte{}, bytes.Repeat([]byte{0}, 100))
	f.Fuzz(func(t *testing.T, base, target []byte) { roundTrip(t, base, target) })
}
