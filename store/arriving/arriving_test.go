package arriving

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

// chunks are those of content, all of them here.
type chunks struct {
	content []byte
	bytes   int
	asked   int
	open    int
}

func (c *chunks) Chunk(_ context.Context, at int, dst []byte) ([]byte, error) {
	c.asked++
	return append(dst, c.content[at*c.bytes:min(len(c.content), (at+1)*c.bytes)]...), nil
}

func (c *chunks) Here() bool { return true }
func (c *chunks) Release()   { c.open-- }

func blobOf(t *testing.T, content []byte, chunkBytes int, d digest.Digest) (*Blob, *chunks) {
	t.Helper()
	c := &chunks{content: content, bytes: chunkBytes, open: 1}
	info := chunk.Blob{Digest: d, Bytes: int64(len(content)), ChunkBytes: int64(chunkBytes), Sums: make([][sha256.Size]byte, chunk.Chunks(int64(len(content)), int64(chunkBytes)))}
	return New(t.Context(), info, c), c
}

// TestBlob: a blob reads as its bytes at every size around a chunk's, each chunk is decoded
// once by a reader of the whole, and Close releases it once.
func TestBlob(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 99, 100, 101, 200, 250} {
		content := bytes.Repeat([]byte("0123456789"), 25)[:n]
		b, c := blobOf(t, content, 100, digest.FromBytes(content))
		if err := iotest.TestReader(b.Whole(), content); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
		c.asked = 0
		b.at = -1
		if got, err := io.ReadAll(iotest.OneByteReader(b.Whole())); err != nil || !bytes.Equal(got, content) || c.asked != (n+99)/100 {
			t.Errorf("%d bytes: read %d, %d chunks asked for, %v", n, len(got), c.asked, err)
		}
		if _, err := b.ReadAt(make([]byte, 1), -1); err == nil {
			t.Error("a negative offset is read")
		}
		for range 2 {
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if c.open != 0 {
			t.Errorf("it was released %d times", 1-c.open)
		}
	}
}

// TestOther: of chunks that are not the blob the last bytes never come.
func TestOther(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("x"), 250)
	b, _ := blobOf(t, content, 100, digest.FromString("another"))
	if got, err := io.ReadAll(b.Whole()); !errors.Is(err, ErrOther) || len(got) >= len(content) {
		t.Errorf("%d of %d bytes, %v", len(got), len(content), err)
	}
	b, c := blobOf(t, content, 100, digest.FromBytes(content))
	c.content = c.content[:120] // a chunk that is too short
	if _, err := b.ReadAt(make([]byte, 10), 190); err == nil {
		t.Error("a short chunk is read")
	}
}
