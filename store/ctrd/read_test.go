package ctrd_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/ctrd"
)

// TestReadsFileOrAsks: a blob reads the same as the file that it is and, where the
// content store's directory cannot be read, through containerd.
func TestReadsFileOrAsks(t *testing.T) {
	t.Parallel()
	blob := bytes.Repeat([]byte("a blob "), 10_000)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	c, err := ctrd.Open(ctrd.Config{Address: ctrd.Embedded, Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, _, err := c.Leases.Take(t.Context(), "read")
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.Content.Ingest(ctx, desc)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(blob)
	if err := errors.Join(err, w.Commit(ctx, nil), w.Close()); err != nil {
		t.Fatal(err)
	}
	for _, file := range []bool{true, false} {
		if !file {
			c.HideBlobs()
		}
		ra, err := c.Content.ReaderAt(t.Context(), desc.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := ra.(*ctrd.File); ok != file {
			t.Errorf("read as a file: %v, want %v", ok, file)
		}
		got := make([]byte, ra.Size())
		if _, err := ra.ReadAt(got, 0); err != nil || !bytes.Equal(got, blob) {
			t.Errorf("read as a file %v: %d bytes, %v", file, len(got), err)
		}
		if err := ra.Close(); err != nil {
			t.Error(err)
		}
	}
}
