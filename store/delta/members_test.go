package delta

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"io"
	"strings"
	"testing"
	"unsafe"
)

// member is a gzip file of one member whose header has so long a name.
func member(t testing.TB, name int, p []byte) []byte {
	var b bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&b, stdgzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w.Name = strings.Repeat("n", name)
	return written(t, w, &b, p)
}

// TestManyMembers: to go through a file of many members, as eStargz and bgzf have them, reads it
// once and allocates for buffers only.
func TestManyMembers(t *testing.T) {
	for name, c := range map[string]struct {
		member []byte
		times  int64 // that the file may be read
	}{
		"empty":               {member(t, 0, nil), 1},
		"of 1,000 bytes":      {member(t, 0, noise(1, 1000)), 1},
		"with a name":         {member(t, 600, nil), 1},
		"with a long name":    {member(t, 50_000, nil), 1},
		"with a longest name": {member(t, 100_000, nil), 3},
	} {
		p := bytes.Repeat(c.member, (2<<20)/len(c.member))
		from := &fenced{t: t, p: p}
		pages, heads := 0, make([]byte, 0, 1<<20)
		tokens := make([]byte, 0, 1<<20)
		allocated := testing.AllocsPerRun(1, func() {
			from.read = 0
			z := newTokenizer(from, int64(len(p)))
			var err error
			for pages = 0; err == nil; pages++ {
				_, _, err = z.page(tokens[:0], heads[:0])
			}
			if !errors.Is(err, io.EOF) {
				t.Fatal(name, err)
			}
		})
		t.Logf("%s: %d of %d bytes, %d pages: %.0f allocations, %d bytes read", name, len(c.member), len(p), pages, allocated, from.read)
		if most := c.times*int64(len(p)) + 2*bitBuffer; allocated > 100 || from.read > most {
			t.Errorf("%s: %.0f allocations and %d bytes read, want at most 100 and %d", name, allocated, from.read, most)
		}
		roundTripAs(t, Deflate, member(t, 0, nil), p[:len(c.member)*5])
	}
}

// TestManyMembersAreWrittenTogether: who takes the target is not called for each of them.
func TestManyMembersAreWrittenTogether(t *testing.T) {
	p := bytes.Repeat(member(t, 0, nil), 20_000)
	delta := roundTripAs(t, Deflate, p, p)
	writes := 0
	_, err := Decode(t.Context(), writer(func(p []byte) (int, error) {
		writes++
		return len(p), nil
	}), bytes.NewReader(delta), blob(p))
	if most := len(p)/(bitBuffer/4) + 2; err != nil || writes > most {
		t.Errorf("%d writes, %v; want at most %d for %d bytes", writes, err, most, len(p))
	}
}

// openRuns is a gzip file of blocks with one literal, each with so many empty ones behind it: the
// run of literals stays open over them.
func openRuns(runs, empty int) []byte {
	w := writerOfGzip{out: []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}}
	for range runs {
		w.put(1<<1|0b10001110<<3, 3+8+7) // 'A' has the code 01110001
		for range empty {
			w.put(1<<1, 3+7)
		}
	}
	w.put(1|1<<1, 3+7)
	w.put(0, int(8-w.n)%8)
	return append(w.out, make([]byte, 8)...)
}

// TestPagesEnd: a page does not grow with the blocks that an open run of literals goes over, so a
// cache of pages is bounded.
func TestPagesEnd(t *testing.T) {
	const blockHead = 400 // at most
	stored := append(member(t, 0, nil)[:10], 0, 1, 0, 0xfe, 0xff, 'A')
	stored = append(stored, bytes.Repeat([]byte{0, 0, 0, 0xff, 0xff}, 100_000)...)
	stored = append(stored, 1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0)
	members := bytes.Repeat(member(t, 0, []byte("A")), 100)
	for i := range 100 {
		members = append(members, member(t, 100+i, nil)...)
	}
	for name, p := range map[string][]byte{"fixed": openRuns(3, 100_000), "stored": stored, "members": bytes.Repeat(members, 10)} {
		z := newTokenizer(bytes.NewReader(p), int64(len(p)))
		longest, pages, err := 0, 0, error(nil)
		for ; err == nil; pages++ {
			var heads []byte
			_, heads, err = z.page(nil, nil)
			longest = max(longest, len(heads))
		}
		t.Logf("%s: %d bytes, %d pages, at most %d bytes of headers", name, len(p), pages, longest)
		if !errors.Is(err, io.EOF) || pages < 5 || longest > 2*pageHeaders+blockHead {
			t.Errorf("%s: %d pages, at most %d bytes of headers, %v; want several, and at most %d", name, pages, longest, err, 2*pageHeaders+blockHead)
		}
		roundTripAs(t, Deflate, p, append(p[:len(p):len(p)], member(t, 0, noise(1, 100))...))
		roundTripAs(t, Deflate, member(t, 0, nil), p)
	}
}

// shortBlocks is a gzip file of blocks that have much to say about their codes in few bits.
func shortBlocks(n int) []byte {
	var lens [316]uint8 // 226 codes of 8 bits and 60 of 9 are complete
	for i := range lens {
		lens[i] = 8
		if i >= 226 && i < 286 {
			lens[i] = 9
		}
	}
	end := wordsOf(lens[:286])[endCode]
	w := writerOfGzip{out: []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}}
	for i := range n {
		last := 0
		if i == n-1 {
			last = 1
		}
		w.put(uint64(last|2<<1|29<<3|29<<8|3<<13), 17)
		w.put(1<<12|1<<18, 21) // of the lengths 8 and 9, in the order of RFC 1951
		for _, n := range lens {
			w.put(uint64(n-8), 1)
		}
		w.put(uint64(end.v), int(end.n))
	}
	w.put(0, int(8-w.n)%8)
	return append(w.out, make([]byte, 8)...)
}

// TestMarksAreFew: however densely a base is packed, what is kept for each page is bounded by its
// bytes, and so is a page.
func TestMarksAreFew(t *testing.T) {
	for name, p := range map[string][]byte{
		"pairs of 2 bits": packers()[18].pack(t, make([]byte, 64<<20)),
		"many codes":      shortBlocks(3000),
		"open runs":       openRuns(3, 100_000),
		"text":            packers()[16].pack(t, text(1, 4<<20)),
	} {
		s := newTokenSource(bytes.NewReader(p), int64(len(p)))
		var longest [2]int
		var err error
		for i := 0; err == nil; i++ {
			err = s.read(i)
			longest = [2]int{max(longest[0], len(s.t)), max(longest[1], len(s.h))}
		}
		if !errors.Is(err, io.EOF) {
			t.Fatal(name, err)
		}
		kept := 0
		for _, part := range s.marks.parts {
			kept += len(part) * int(unsafe.Sizeof(mark{}))
		}
		t.Logf("%s: %d bytes, %d marks of one byte for each %d, pages of %d and %d bytes", name, len(p), s.marks.n, len(p)/kept, longest[0], longest[1])
		if kept > len(p)/140+2*int(unsafe.Sizeof(mark{})) || longest[0] > 100_000 || longest[1] > 4*pageHeaders {
			t.Errorf("%s: %d bytes of marks for %d, pages of %d and %d bytes; want at most a byte for 140, 100,000 and %d bytes", name, kept, len(p), longest[0], longest[1], 4*pageHeaders)
		}
		roundTripAs(t, Deflate, p, append(p[:len(p):len(p)], member(t, 0, noise(1, 100))...))
	}
}
