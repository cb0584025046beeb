package chunk

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// schema is the version of the encoded form.
const schema = 1

// indexJSON is the encoded form. Fields that are not known are passed over:
// deltas are to come.
type indexJSON struct {
	Schema int        `json:"schema"`
	Target targetJSON `json:"target"`
	Blobs  blobsJSON  `json:"blobs"`
}

type targetJSON struct {
	MediaType string        `json:"media_type"`
	Digest    digest.Digest `json:"digest"`
	Bytes     int64         `json:"bytes"`
}

type blobJSON struct {
	Digest     digest.Digest `json:"digest"`
	Bytes      int64         `json:"bytes"`
	MediaType  string        `json:"media_type"`
	Platforms  stringsJSON   `json:"platforms,omitempty"`
	ChunkBytes int64         `json:"chunk_bytes"`
	Sums       string        `json:"sums"` // all SHA-256 sums, concatenated, in standard base64
}

// blobsJSON and stringsJSON are arrays that stop at their bound while they are
// read: an array of empty objects would otherwise take many times the memory
// of its text.
type (
	blobsJSON   []blobJSON
	stringsJSON []string
)

// UnmarshalJSON implements json.Unmarshaler.
func (b *blobsJSON) UnmarshalJSON(p []byte) error {
	out, err := array[blobJSON](p, maxBlobs)
	*b = out
	return err
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *stringsJSON) UnmarshalJSON(p []byte) error {
	out, err := array[string](p, maxPlatforms)
	*s = out
	return err
}

func array[T any](p []byte, most int) ([]T, error) {
	d := json.NewDecoder(bytes.NewReader(p))
	if open, err := d.Token(); err != nil || open != json.Delim('[') {
		return nil, fmt.Errorf("%v where an array is expected", open)
	}
	var out []T
	for d.More() {
		if len(out) == most {
			return nil, fmt.Errorf("an array of more than %d", most)
		}
		var v T
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// Encode is the one encoding of an index; its SHA-256 names it.
func (x Index) Encode() ([]byte, error) {
	t := x.Target
	out := indexJSON{Schema: schema, Target: targetJSON{MediaType: t.MediaType, Digest: t.Digest, Bytes: t.Size}}
	for _, b := range x.Blobs {
		sums := make([]byte, 0, len(b.Sums)*sha256.Size)
		for _, s := range b.Sums {
			sums = append(sums, s[:]...)
		}
		out.Blobs = append(out.Blobs, blobJSON{
			Digest: b.Digest, Bytes: b.Bytes, MediaType: b.MediaType, Platforms: b.Platforms,
			ChunkBytes: b.ChunkBytes, Sums: base64.StdEncoding.EncodeToString(sums),
		})
	}
	p, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encode seed index: %w", err)
	}
	if len(p) > MaxIndexBytes {
		return nil, fmt.Errorf("seed index of %d bytes, at most %d", len(p), MaxIndexBytes)
	}
	return p, nil
}

// Decode reads an index and checks every bound of it.
func Decode(p []byte) (Index, error) {
	if len(p) > MaxIndexBytes {
		return Index{}, fmt.Errorf("seed index of %d bytes, at most %d", len(p), MaxIndexBytes)
	}
	var in indexJSON
	if err := json.Unmarshal(p, &in); err != nil {
		return Index{}, fmt.Errorf("seed index: %w", err)
	}
	if in.Schema != schema {
		return Index{}, fmt.Errorf("seed index of schema %d; this version of seeder knows %d", in.Schema, schema)
	}
	blobs := make([]Blob, 0, len(in.Blobs))
	for _, b := range in.Blobs {
		sums, err := decodeSums(b.Sums)
		if err != nil {
			return Index{}, fmt.Errorf("seed index: blob %q: %w", b.Digest, err)
		}
		blobs = append(blobs, Blob{
			Digest: b.Digest, Bytes: b.Bytes, MediaType: b.MediaType, Platforms: b.Platforms,
			ChunkBytes: b.ChunkBytes, Sums: sums,
		})
	}
	t := in.Target
	x, err := New(ocispec.Descriptor{MediaType: t.MediaType, Digest: t.Digest, Size: t.Bytes}, blobs)
	if err != nil {
		return Index{}, fmt.Errorf("seed index: %w", err)
	}
	return x, nil
}

// decodeSums is bounded by the bound of the index.
func decodeSums(s string) ([][sha256.Size]byte, error) {
	p, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("sums: %w", err)
	}
	if len(p)%sha256.Size != 0 || len(p)/sha256.Size > MaxChunks {
		return nil, fmt.Errorf("%d bytes of sums", len(p))
	}
	out := make([][sha256.Size]byte, len(p)/sha256.Size)
	for i := range out {
		copy(out[i][:], p[i*sha256.Size:])
	}
	return out, nil
}
