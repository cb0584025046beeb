package delta

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"io"
	"strings"
	"testing"
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
