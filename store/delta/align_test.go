package delta

import (
	"bytes"
	"context"
	"errors"
	"testing"
)

// balanced is p with every second piece of n bytes changed: as many bytes agree as differ.
func balanced(p []byte, n int) []byte {
	p = bytes.Clone(p)
	for i := range p {
		if i/n%2 == 1 {
			p[i] ^= 0x55
		}
	}
	return p
}

// TestStepsAreLinear: to align a segment takes at most so many steps for each of its bytes, also
// where the score of a stretch never falls.
func TestStepsAreLinear(t *testing.T) {
	for _, piece := range []int{8, 10, 11, 16, 20} {
		for _, n := range []int{64 << 10, 256 << 10} {
			base := noise(1, n)
			a := &aligner{seeds: newSeeds(2*int64(n), maxSeeds), allowed: 1 << 20}
			a.old = newCache(&fileSource{r: bytes.NewReader(base), size: int64(n)}, Header{})
			a.old.most = 1 << 20
			a.seeds.add(base, 0)
			if err := a.align(t.Context(), balanced(base, piece)); err != nil {
				t.Fatal(err)
			}
			t.Logf("pieces of %d of %d bytes: %d steps for each byte, %d bytes copied", piece, n, a.steps/int64(n), len(a.part.diff))
			if a.steps > int64(n)*reach/2 {
				t.Errorf("pieces of %d of %d bytes: %d steps for each byte, want at most %d", piece, n, a.steps/int64(n), reach/2)
			}
		}
	}
}

// cancelled is a blob that cancels a context when it is read.
type cancelled struct {
	Blob
	cancel context.CancelFunc
}

func (c cancelled) ReadAt(p []byte, off int64) (int, error) {
	c.cancel()
	return c.Blob.ReadAt(p, off)
}

// TestCancelEndsASegment: one of which nothing is written.
func TestCancelEndsASegment(t *testing.T) {
	base := noise(1, segmentBytes)
	ctx, cancel := context.WithCancel(t.Context())
	target := blob(noise(2, segmentBytes))
	target.ReaderAt = cancelled{blob(noise(2, segmentBytes)), cancel}
	var out bytes.Buffer
	_, _, err := Encode(ctx, &out, Bytes, blob(base), target, 0)
	if !errors.Is(err, context.Canceled) || out.Len() != HeaderBytes {
		t.Errorf("%d bytes are written, then %v; want the header of %d and %v", out.Len(), err, HeaderBytes, context.Canceled)
	}
}
