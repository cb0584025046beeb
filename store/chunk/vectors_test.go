package chunk

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/docs"
)

// TestVectors: chunk sizes, seed indexes and frames are what docs/protocol.md says.
func TestVectors(t *testing.T) {
	t.Parallel()
	v := docs.Protocol(t, "chunk-sizes")
	for _, key := range v.Keys() {
		blob, err := strconv.ParseInt(key, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		v.Is(key, fmt.Sprint(SizeFor(blob)))
	}

	v = docs.Protocol(t, "seed-index")
	layer := make([]byte, 307200)
	for i := range layer {
		layer[i] = byte(i % 251)
	}
	manifest := []byte(v.Text("manifest"))
	var blobs []Blob
	for _, b := range []struct {
		mediaType string
		content   []byte
	}{{ocispec.MediaTypeImageManifest, manifest}, {ocispec.MediaTypeImageLayer, layer}} {
		size := int64(len(b.content))
		sums, err := Sum(context.Background(), bytes.NewReader(b.content), size, SizeFor(size))
		if err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, Blob{Digest: digest.FromBytes(b.content), Bytes: size, MediaType: b.mediaType, ChunkBytes: SizeFor(size), Sums: sums})
	}
	blobs[1].Platforms = []string{"linux/amd64"}
	x, err := New(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: blobs[0].Digest, Size: blobs[0].Bytes}, blobs)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x.Encode()
	if err != nil {
		t.Fatal(err)
	}
	v.Is("json", string(encoded))
	v.Is("digest", digest.FromBytes(encoded).String())
	v.Is("bytes", fmt.Sprint(len(encoded)))
	v.Is("chunks", fmt.Sprint(x.Len()))
	if got, err := Decode([]byte(v.Text("json"))); err != nil || got.Len() != x.Len() {
		t.Errorf("decodes to %+v, %v", got, err)
	}

	v = docs.Protocol(t, "frame")
	last := layer[262144:]
	c := NewCodec()
	got, err := c.Decode(nil, Zstd, v.Hex("payload"), len(last))
	if err != nil || !bytes.Equal(got, last) {
		_, made, _ := c.Encode(nil, last, Fast, false)
		t.Errorf("the frame does not decode to the chunk: %v; this library makes\n%x", err, made)
	}
	v.Is("sha256", digest.FromBytes(last).Encoded())
}
