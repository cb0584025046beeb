package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// fenced is a base that counts what is read of it, and fails the test outside it.
type fenced struct {
	t    testing.TB
	p    []byte
	read int64
}

func (f *fenced) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(f.p)) {
		f.t.Errorf("%d bytes at %d are read of a base of %d bytes", len(p), off, len(f.p))
		return 0, io.EOF
	}
	f.read += int64(len(p))
	return copy(p, f.p[off:]), nil
}

// decodeFenced decodes body behind a header and checks what every decoder must keep to, whatever
// body is: the bounds of base and target, and how much is read.
func decodeFenced(t testing.TB, kind Kind, base, target, body []byte) (read int64, err error) {
	from := &fenced{t: t, p: base}
	to := blob(base)
	to.ReaderAt = from
	h := Header{Kind: kind, Base: to.Digest, Target: blob(target).Digest, BaseBytes: to.Bytes, TargetBytes: int64(len(target))}
	head, err := h.encode()
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	_, err = Decode(context.Background(), writer(func(p []byte) (int, error) {
		if out = append(out, p...); len(out) > len(target) {
			t.Fatalf("%d bytes are written of a target of %d", len(out), len(target))
		}
		return len(p), nil
	}), bytes.NewReader(append(head, body...)), to)
	if err == nil && !bytes.Equal(out, target) {
		t.Fatalf("%d bytes are taken for the target of %d", len(out), len(target))
	}
	if err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrMismatch) {
		t.Fatalf("%v: neither %v nor %v", err, ErrInvalid, ErrMismatch)
	}
	// A load of a page of tokens reads its block's header and it, from a buffer each; forward
	// to a page reads what is before it once.
	streams := int64(kind)
	if most := streams*maxLoads(h)*3*pageBytes + 3*to.Bytes; from.read > most {
		t.Fatalf("%d bytes of the base are read, at most %d", from.read, most)
	}
	return from.read, err
}

// bodyOf is the body of a delta of one segment, and its end.
func bodyOf(t testing.TB, parts ...part) (body []byte) {
	z, err := newZstdWriter()
	if err != nil {
		t.Fatal(err)
	}
	var packed []byte
	for i := range parts {
		body = appendPart(body, z, &parts[i], &packed)
	}
	return append(body, make([]byte, len(parts))...)
}

// FuzzSteps: any steps through a base keep within it and the target.
func FuzzSteps(f *testing.F) {
	base := noise(3, 200_000)
	target := append(append(bytes.Clone(base[150_000:]), "between"...), base[:40_000]...)
	steps := binary.AppendVarint(binary.AppendUvarint([]byte{0}, 50_000), 150_000)
	steps = binary.AppendVarint(binary.AppendUvarint(binary.AppendUvarint(steps, 7), 40_000), -200_000)
	f.Add(steps, 90_000, []byte("between"))
	f.Add(binary.AppendVarint([]byte{0, 1}, -1), 1, []byte{})
	f.Add(binary.AppendVarint([]byte{0, 1}, 1<<62), 1, []byte{})
	f.Add(append(steps, 0, 0, 0), 90_000, []byte("between"))
	f.Fuzz(func(t *testing.T, ctrl []byte, diff int, extra []byte) {
		p := part{ctrl: ctrl, diff: make([]byte, max(0, min(diff, maxPart))), extra: extra}
		p.bytes = len(p.diff) + len(extra)
		_, _ = decodeFenced(t, Bytes, base, target, bodyOf(t, p))
	})
}

// FuzzTokens: any tokens and headers of blocks write no more than the target.
func FuzzTokens(f *testing.F) {
	target := packers()[16].pack(f, text(1, 3000))
	z := newTokenizer(bytes.NewReader(target), int64(len(target)))
	tokens, heads, err := z.page(nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tokens, heads)
	f.Add([]byte{0x80, 0, 0}, []byte{1, 0, 3, 1})
	f.Add([]byte{0, 1, 2}, []byte{1, 0, 0, 0, 1, 0})
	base := packers()[10].pack(f, text(2, 3000))
	f.Fuzz(func(t *testing.T, tokens, heads []byte) {
		_, _ = decodeFenced(t, Deflate, base, target, bodyOf(t, asExtra(tokens), asExtra(heads)))
	})
}

// TestDamagedDeltas: deltas of which bytes were changed by chance, and bases.
func TestDamagedDeltas(t *testing.T) {
	plain := append(text(1, 150_000), noise(2, 20_000)...)
	changed := append(append(bytes.Clone(plain[80_000:]), "between"...), plain...)
	r := rand.New(rand.NewPCG(1, 2))
	for kind, pair := range map[Kind][2][]byte{Bytes: {plain, changed}, Deflate: {packers()[16].pack(t, plain), packers()[16].pack(t, changed)}} {
		body := roundTripAs(t, kind, pair[0], pair[1])[HeaderBytes:]
		if _, err := decodeFenced(t, kind, pair[0], pair[1], body); err != nil {
			t.Fatalf("%s, not damaged: %v", kind, err)
		}
		for range 400 {
			p := bytes.Clone(body)
			for range 1 + r.IntN(3) {
				p[r.IntN(len(p))] = byte(r.Uint32())
			}
			_, _ = decodeFenced(t, kind, pair[0], pair[1], p)
			if p = bytes.Clone(pair[0]); r.IntN(2) == 0 {
				p[r.IntN(len(p))] ^= 1 << r.IntN(8)
			} else {
				clear(p[r.IntN(len(p)):])
			}
			_, _ = decodeFenced(t, kind, p, pair[1], body)
		}
	}
}

// TestJumpsAreBounded: a delta of nothing but jumps ends as one that is invalid, before it has
// read much more than others may.
func TestJumpsAreBounded(t *testing.T) {
	plain := noise(1, 8<<20) // twice what a cache holds
	for kind, base := range map[Kind][]byte{Bytes: plain, Deflate: packers()[4].pack(t, plain)} {
		p := part{}
		for at, i := int64(0), int64(0); len(p.ctrl) < maxPart-100; i++ {
			next := i * 97 % 120 * pageBytes
			p.ctrl = binary.AppendVarint(append(p.ctrl, 0, 1), next-at)
			at, p.bytes = next+1, p.bytes+1
		}
		p.diff = make([]byte, p.bytes)
		parts := []part{p, {}}[:kind] // one stream, or two
		read, err := decodeFenced(t, kind, base, noise(2, 1000), bodyOf(t, parts...))
		if !errors.Is(err, ErrInvalid) || read < 1000*pageBytes {
			t.Errorf("%s: %d bytes of the base are read, then %v; want a delta that jumps too often", kind, read, err)
		}
		t.Logf("%s: %d bytes of a base of %d are read, then %v", kind, read, len(base), err)
	}
}
