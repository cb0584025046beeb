package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// asExtra is a part whose bytes all travel as they are.
func asExtra(p []byte) part {
	if len(p) == 0 {
		return part{}
	}
	return part{bytes: len(p), ctrl: binary.AppendUvarint(nil, uint64(len(p))), extra: p}
}

// TestInvalidSteps: each fault of a part has an error of its own, before the digest.
func TestInvalidSteps(t *testing.T) {
	base, target := noise(1, 100_000), noise(2, 50)
	step := func(extra, copied uint64, jump int64) []byte {
		return binary.AppendVarint(binary.AppendUvarint(binary.AppendUvarint(nil, extra), copied), jump)
	}
	short := bodyOf(t, asExtra(target[:20]))
	length := bytes.Clone(short)
	length[0]++                                                   // the part
	raw := append([]byte{20, 1, 0}, short[1:]...)                 // ctrl of 1 byte, packed to none
	unpack := bytes.Clone(bodyOf(t, asExtra(target[:20])))        // its piece of 20 bytes gives 20,
	unpack[bytes.LastIndexByte(unpack[:len(unpack)-25], 20)] = 21 // not 21
	for name, c := range map[string]struct {
		body []byte
		want string
	}{
		"too large a part":     {binary.AppendUvarint(nil, maxPart+1), "a stream of 4194305 bytes, at most"},
		"a length of 11 bytes": {bytes.Repeat([]byte{0xff}, 11), "length of a stream: "},
		"pieces of another":    {length, "a stream of 21 bytes from 0 and 20"},
		"a piece is missing":   {raw, "ctrl of 1 bytes is missing"},
		"a piece unpacks else": {unpack, "unpack extra: 20 bytes of 21"},
		"steps too many":       {bodyOf(t, part{bytes: 2, ctrl: append(step(0, 2, 5), 0), diff: make([]byte, 2)}), "steps too many"},
		"step of nothing":      {bodyOf(t, part{bytes: 2, ctrl: append(step(0, 0, 0), step(0, 2, 5)...), diff: make([]byte, 2)}), "does nothing"},
		"too far":              {bodyOf(t, part{bytes: 2, ctrl: step(0, 2, 1<<62), diff: make([]byte, 2)}), "a jump of"},
		"before the base":      {bodyOf(t, part{bytes: 2, ctrl: step(0, 2, -1), diff: make([]byte, 2)}), "offset -1 of the base"},
		"behind the base":      {bodyOf(t, part{bytes: 2, ctrl: step(0, 2, 99_999), diff: make([]byte, 2)}), "offset 100000 of the base"},
		"more than the diff":   {bodyOf(t, part{bytes: 2, ctrl: step(0, 3, 0), diff: make([]byte, 2)}), "a length of 3"},
		"shorter":              {short, "ends 30 bytes before the target"},
		"longer":               {bodyOf(t, asExtra(noise(2, 51))), "more bytes than the target has"},
	} {
		if _, err := decodeFenced(t, Bytes, base, target, c.body); err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestUnreadIsNotInvalid: where a delta cannot be read, nothing is said about the delta.
func TestUnreadIsNotInvalid(t *testing.T) {
	base := noise(1, 1000)
	delta := roundTrip(t, base, noise(2, 1000))
	lost := errors.New("the connection is lost")
	for n := range len(delta) {
		from := io.MultiReader(bytes.NewReader(delta[:n]), iotest.ErrReader(lost))
		if _, err := Decode(context.Background(), io.Discard, from, blob(base)); !errors.Is(err, lost) || errors.Is(err, ErrInvalid) {
			t.Errorf("after %d bytes: %v, want only %v", n, err, lost)
		}
	}
}

// TestOtherBaseWritesNothing: it is refused by the header.
func TestOtherBaseWritesNothing(t *testing.T) {
	base, other := noise(1, 1000), noise(2, 1000)
	var out bytes.Buffer
	_, err := Decode(context.Background(), &out, bytes.NewReader(roundTrip(t, base, base[:900])), blob(other))
	if !errors.Is(err, ErrMismatch) || out.Len() > 0 {
		t.Errorf("%v, %d bytes written; want %v and none", err, out.Len(), ErrMismatch)
	}
}

// TestInvalidTokens: each fault of tokens and headers has an error of its own.
func TestInvalidTokens(t *testing.T) {
	member := append([]byte{itemMember, 10}, 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255)
	const fixed, stored, codes = 3, 1, 5
	// Codes for the lengths 0, 1 and runs of zeros; lit are then the lengths of the codes.
	dynamic := func(lit ...byte) []byte {
		return append([]byte{codes, 0, 0, 15, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0}, lit...)
	}
	only0 := dynamic(1, 155, 134, 1, 0) // codes for literal 0 and the end
	for name, c := range map[string]struct {
		tokens, heads []byte
		want          string
	}{
		"literal without code":   {[]byte{0, 'A'}, append(only0, 1), "literal 65 has no code"},
		"pair without code":      {[]byte{0x80, 0, 0}, append(only0, 1), "a pair that has no code"},
		"pair in a stored block": {[]byte{0x80, 0, 0}, []byte{stored, 0, 3, 0}, "a pair that has no code"},
		"pair behind codes":      {[]byte{0x80, 0, 0}, []byte{fixed - 1, 0, stored, 0, 3, 0}, "a pair that has no code"},
		"cut pair":               {[]byte{0x80, 0}, []byte{fixed}, "a pair that has no code"},
		"end without code":       {nil, append(dynamic(1, 1, 155, 134, 0), 0), "end has no code"},
		"run that is cut":        {[]byte{5, 'A'}, []byte{fixed}, "a run of literals that is cut"},
		"no block":               {nil, nil, "the tokens end within a member"},
		"fewer tokens":           {[]byte{2, 'A', 'B', 'C'}, []byte{fixed, 5}, "3 tokens of 5"},
		"length without a code":  {nil, dynamic(2), "a length without a code"},
		"too many lengths":       {nil, dynamic(155, 155, 155), "more lengths of codes"},
		"repeat of nothing":      {nil, dynamic(16), "repeated before the first"},
		"too many literals":      {nil, []byte{codes, 30, 0, 15}, "287, 1 and 19 codes"},
		"too many distances":     {nil, []byte{codes, 0, 30, 15}, "257, 31 and 19 codes"},
		"too many length codes":  {nil, append([]byte{codes, 0, 0, 16}, make([]byte, 20)...), "257, 1 and 20 codes"},
		"length code too long":   {nil, append([]byte{codes, 0, 0, 0}, 8, 0, 0, 0), "a length code of 8 bits"},
		"codes too many":         {nil, append([]byte{codes, 0, 0, 0}, 1, 1, 1, 0), "more codes than there are"},
		"type 3":                 {nil, []byte{7}, "a block of type 3"},
		"cut header":             {nil, []byte{codes, 0}, "a header that is cut"},
		"behind the end":         {[]byte{0, 'A'}, []byte{fixed, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, itemEnd, 0, 9}, "tokens behind the end"},
	} {
		body := bodyOf(t, asExtra(c.tokens), asExtra(slices.Concat(member, c.heads)))
		base := packers()[10].pack(t, text(1, 3000))
		if _, err := decodeFenced(t, Deflate, base, noise(1, 5000), body); err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	first := bodyOf(t, asExtra([]byte{2, 'A', 'B', 'C'}), asExtra(append(member, fixed)))
	body := append(first[:len(first)-2], bodyOf(t, part{}, asExtra([]byte{1}))...)
	if _, err := decodeFenced(t, Deflate, packers()[10].pack(t, nil), noise(1, 5000), body); err == nil || !strings.Contains(err.Error(), "a block of 1 tokens, 3 were there already") {
		t.Errorf("fewer tokens than the page before had: %v", err)
	}
}

// TestGzipThatIsRefusedFor: what a valid file cannot have, or is not worth keeping.
func TestGzipThatIsRefusedFor(t *testing.T) {
	good := packers()[11].pack(t, text(1, 1000))
	bits := func(v uint64, k int) []byte {
		w := writerOfGzip{out: bytes.Clone(good[:10])}
		w.put(v, k)
		return append(w.out, make([]byte, 40)...)
	}
	store := packers()[4].pack(t, noise(1, 100_000))
	for name, c := range map[string]struct {
		target []byte
		want   string
	}{
		"codes for literals":        {bits(5|30<<3, 48), "287 and 1 codes"},
		"codes for distances":       {bits(5|30<<8, 48), "257 and 31 codes"},
		"a length code of none":     {bits(5, 48), "a length code that is none"},
		"too much behind it":        {append(bytes.Clone(good), make([]byte, maxTail+1)...), "no header of gzip that is known"},
		"cut in a stored block":     {store[:50_000], "it ends within a stored block"},
		"cut at the buffer's end":   {store[:bitBuffer], "it ends within a stored block"},
		"cut in the trailer":        {good[:len(good)-1], "too soon"},
		"length 258 as 227 and 31":  {bits(3|0b00100011<<3|31<<11, 48), "227 and 31"},
		"distance that has no code": {bits(3|0b1000000<<3|0b01111<<10, 48), "a code that is none"},
	} {
		_, _, err := Encode(context.Background(), io.Discard, Deflate, blob(good), blob(c.target), 0)
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if n := len(roundTripAs(t, Deflate, good, append(bytes.Clone(good), make([]byte, maxTail)...))); n > 2000 {
		t.Errorf("%d bytes for the most that may be behind it", n)
	}
}

// TestPagesInAnyOrder: a page of a gzip base has the same bytes whatever was read before it.
func TestPagesInAnyOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	w := newWriterOfGzip(r, r)
	made := w.file(3, 150_000)
	for name, p := range map[string][]byte{"Go": packers()[16].pack(t, text(1, 4<<20)), "stored": packers()[4].pack(t, noise(1, 1<<20)), "by chance": made} {
		s := newTokenSource(bytes.NewReader(p), int64(len(p)))
		var pages [2][]page
		for stream := range pages {
			v := view{s, stream}
			for off := int64(0); ; {
				i, err := v.find(off)
				if errors.Is(err, io.EOF) {
					break
				}
				var q page
				if err = errors.Join(err, v.load(i, &q)); err != nil || q.at != off || v.end(i) != off+int64(len(q.data)) {
					t.Fatalf("%s: page %d of stream %d: at %d to %d, want from %d: %v", name, i, stream, q.at, v.end(i), off, err)
				}
				off += int64(len(q.data))
				pages[stream] = append(pages[stream], q)
			}
		}
		t.Logf("%s: %d and %d pages", name, len(pages[0]), len(pages[1]))
		if len(pages[0]) < 5 {
			t.Fatalf("%s: %d pages, want several", name, len(pages[0]))
		}
		for range 300 {
			stream := r.IntN(2)
			want := pages[stream][r.IntN(len(pages[stream]))]
			var got page
			i, err := view{s, stream}.find(want.at + r.Int64N(int64(len(want.data))))
			if err = errors.Join(err, view{s, stream}.load(i, &got)); err != nil || !bytes.Equal(got.data, want.data) {
				t.Fatalf("%s: page %d of stream %d has other bytes: %v", name, i, stream, err)
			}
		}
	}
}

// TestPagesThatStay: a cache gives up the page that was not used for the longest.
func TestPagesThatStay(t *testing.T) {
	var l lru
	for i := range cachePages {
		l.visit(i)
	}
	l.visit(0)
	l.visit(cachePages)
	if !l.has(0) || l.has(1) || !l.has(cachePages) || l.loads != cachePages+1 {
		t.Errorf("%d loads; page 0 there: %v, page 1: %v; want %d, and 1 given up", l.loads, l.has(0), l.has(1), cachePages+1)
	}
}

// TestInvalidHeader: what is not a header of a delta says why.
func TestInvalidHeader(t *testing.T) {
	good := roundTrip(t, noise(1, 100), noise(2, 100))[:HeaderBytes]
	for want, at := range map[string]struct {
		offset int
		value  byte
	}{"it begins with": {0, 'x'}, "version 9": {len(magic), 9}, "kind 9": {len(magic) + 1, 9}, "a blob of": {HeaderBytes - 1, 0x80}, "want 0 to": {HeaderBytes - 9, 1}} {
		p := bytes.Clone(good)
		p[at.offset] = at.value
		if _, err := ReadHeader(bytes.NewReader(p)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("byte %d: %v, want %q", at.offset, err, want)
		}
	}
	if _, err := ReadHeader(bytes.NewReader(good[:HeaderBytes-1])); !errors.Is(err, ErrInvalid) {
		t.Errorf("a header that is cut: %v", err)
	}
}
