package store

import (
	"io"
	"testing"

	"seeder/store/chunk"
)

// TestFastLinksGetRaw: where more goes out that way a chunk goes out as it is, is not
// taken for one that does not shrink, and a frame that is there is sent.
func TestFastLinksGetRaw(t *testing.T) {
	t.Parallel()
	a, p := announceSide(t, layer(t, "shrinks", 2<<20))
	img := image(t, a, p.Index)
	n := img.Len() - 3
	encoding := func(n int) chunk.Encoding {
		t.Helper()
		enc, size, r, err := opened(img.Frame(t.Context(), n))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, err := io.Copy(io.Discard, r); err != nil || got != size {
			t.Fatalf("%d bytes of %d: %v", got, size, err)
		}
		return enc
	}
	if got := encoding(n); got != chunk.Zstd {
		t.Errorf("at first: encoding %d", got)
	}
	a.work.pace.Turn(true)
	if got := encoding(n); got != chunk.Zstd {
		t.Errorf("of a frame that is there: encoding %d", got)
	}
	first := img.Len() - len(img.blobs[len(img.blobs)-1].info.Sums)
	if got := encoding(first); got != chunk.Raw {
		t.Errorf("on fast links: encoding %d", got)
	}
	a.work.pace.Turn(false)
	if got := encoding(first); got != chunk.Zstd {
		t.Errorf("on slow links: encoding %d", got)
	}
}
