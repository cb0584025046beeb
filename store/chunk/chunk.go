// Package chunk says how an image is cut for travelling: chunk sizes, the seed
// index, frames, and sets of chunks. It is what store and p2p have in common, and imports
// nothing of either.
//
// It owns their formats and bounds. It never reads a store and never keeps a
// byte.
//
// Words: a chunk is a fixed-size range of a blob as stored; the last one of a
// blob may be shorter. The chunks of all blobs of a seed index are numbered
// through. A frame is a chunk as it travels, raw or zstd.
//
// Invariant: a seed index is a pure function of the blobs it lists, so two hosts
// that hold the same image make the same one; a frame decodes to exactly the
// length that its chunk has, or not at all.
package chunk

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// MinBytes and MaxBytes bound the size of a chunk.
	MinBytes = 256 << 10
	MaxBytes = 4 << 20
	// MaxIndexBytes bounds an encoded seed index.
	MaxIndexBytes = 8 << 20
	// MaxChunks bounds the chunks of a seed index, and with it every have-map: 65,536
	// chunks are 8 KiB of bitmap and, at 4 MiB a chunk, 256 GiB.
	MaxChunks = 65536

	maxBlobs     = 8192
	maxPlatforms = 64
)

// SizeFor is the chunk size of a blob: a power of two, at most 4 MiB so that a frame is
// worth its memory. It is near blob/512, which brings a swarm within a few per cent of
// the optimum, or near blob/128 up to 1 MiB where that is more: what a chunk costs
// whatever its size is then spent a quarter as often, and it shrinks more. It is at
// least 256 KiB, so that a request is worth its round trip.
func SizeFor(blobBytes int64) int64 {
	return max(near(blobBytes/512, MaxBytes), near(blobBytes/128, enoughBytes))
}

// enoughBytes is a chunk for which its request, sum and frame cost little beside its
// bytes.
const enoughBytes = 1 << 20

// near is the power of two nearest to want, between MinBytes and most.
func near(want, most int64) int64 {
	size := int64(MinBytes)
	if want > MinBytes {
		size = 1 << (bits.Len64(uint64(want-1)) - 1) // the power of two at or below
		if want-size > size/2 {
			size *= 2
		}
	}
	return min(size, most)
}

// Blob is one blob of a seed index.
type Blob struct {
	Digest     digest.Digest
	Bytes      int64
	MediaType  string
	Platforms  []string // who needs it, e.g. linux/amd64; empty: everybody
	ChunkBytes int64
	Sums       [][sha256.Size]byte // SHA-256 of each chunk, raw
}

// Chunks is how many chunks a blob has.
func Chunks(blobBytes, chunkBytes int64) int {
	return int((blobBytes + chunkBytes - 1) / chunkBytes)
}

// ChunkLen is the length of chunk i of the blob in bytes.
func (b Blob) ChunkLen(i int) int {
	return int(min(b.ChunkBytes, b.Bytes-int64(i)*b.ChunkBytes))
}

// Index is a seed index: an image's blobs in the order in which they are
// imported (index, manifests, configs, layers from the bottom up).
type Index struct {
	Target ocispec.Descriptor // media type, digest, size
	Blobs  []Blob

	starts []int // number of the first chunk of each blob
	chunks int
}

// New checks the blobs and makes a seed index of them.
func New(target ocispec.Descriptor, blobs []Blob) (Index, error) {
	x := Index{
		Target: ocispec.Descriptor{MediaType: target.MediaType, Digest: target.Digest, Size: target.Size},
		Blobs:  blobs,
	}
	return x, x.number()
}

// number validates the index and numbers its chunks.
func (x *Index) number() error {
	if err := x.Target.Digest.Validate(); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if len(x.Blobs) == 0 || len(x.Blobs) > maxBlobs {
		return fmt.Errorf("%d blobs, want 1 to %d", len(x.Blobs), maxBlobs)
	}
	seen := map[digest.Digest]bool{}
	x.starts, x.chunks = make([]int, len(x.Blobs)), 0
	for i, b := range x.Blobs {
		if err := b.validate(); err != nil {
			return fmt.Errorf("blob %q: %w", b.Digest, err)
		}
		if seen[b.Digest] {
			return fmt.Errorf("blob %s is listed twice", b.Digest)
		}
		seen[b.Digest] = true
		x.starts[i] = x.chunks
		x.chunks += len(b.Sums)
		if x.chunks > MaxChunks {
			return fmt.Errorf("more than %d chunks", MaxChunks)
		}
	}
	if !seen[x.Target.Digest] {
		return fmt.Errorf("the target %s is not among the blobs", x.Target.Digest)
	}
	return nil
}

func (b Blob) validate() error {
	if err := b.Digest.Validate(); err != nil || b.Digest.Algorithm() != digest.SHA256 {
		return errors.New("invalid digest: want sha256")
	}
	size := b.ChunkBytes
	switch {
	case size < MinBytes || size > MaxBytes || size&(size-1) != 0:
		return fmt.Errorf("chunks of %d bytes: want a power of two between %d and %d", size, MinBytes, MaxBytes)
	case b.Bytes < 0 || b.Bytes > MaxChunks*size:
		return fmt.Errorf("%d bytes in chunks of %d are too many", b.Bytes, size)
	case len(b.Sums) != Chunks(b.Bytes, size):
		return fmt.Errorf("%d chunk sums for %d bytes in chunks of %d, want %d", len(b.Sums), b.Bytes, size, Chunks(b.Bytes, size))
	case len(b.Platforms) > maxPlatforms || len(b.MediaType) > 256:
		return errors.New("too many platforms, or too long a media type")
	}
	for _, p := range b.Platforms {
		if p == "" || len(p) > 64 {
			return fmt.Errorf("platform %q", p)
		}
	}
	return nil
}

// Len is the number of chunks.
func (x Index) Len() int { return x.chunks }

// Start is the number of the first chunk of blob i.
func (x Index) Start(i int) int { return x.starts[i] }

// Locate finds chunk n, 0 ≤ n < Len: its blob and its number within it.
func (x Index) Locate(n int) (blob, i int) {
	lo, hi := 0, len(x.starts)
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; x.starts[mid] <= n {
			lo = mid
		} else {
			hi = mid
		}
	}
	for len(x.Blobs[lo].Sums) == 0 || n-x.starts[lo] >= len(x.Blobs[lo].Sums) {
		lo-- // an empty blob starts where the next one does
	}
	return lo, n - x.starts[lo]
}

// Bytes is the raw length of chunk n.
func (x Index) Bytes(n int) int64 {
	b, i := x.Locate(n)
	return int64(x.Blobs[b].ChunkLen(i))
}

// Sum reads a blob of size bytes, each byte once and in order, and returns the
// sums of its chunks.
func Sum(ctx context.Context, r io.ReaderAt, size, chunkBytes int64) ([][sha256.Size]byte, error) {
	out := make([][sha256.Size]byte, 0, Chunks(size, chunkBytes))
	buf := make([]byte, min(chunkBytes, size))
	for off := int64(0); off < size; off += chunkBytes {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		p := buf[:min(chunkBytes, size-off)]
		if n, err := r.ReadAt(p, off); n < len(p) {
			return nil, fmt.Errorf("read %d bytes at %d: %w", len(p), off, short(err))
		}
		out = append(out, sha256.Sum256(p))
	}
	return out, nil
}

// SumWhole is Sum, and the digest of the whole blob. The blob is read once, and the two are made
// beside each other.
func SumWhole(ctx context.Context, r io.ReaderAt, size, chunkBytes int64) ([][sha256.Size]byte, digest.Digest, error) {
	whole := &digested{r: r, digester: digest.SHA256.Digester()}
	sums, err := Sum(ctx, whole, size, chunkBytes)
	whole.behind.Wait()
	return sums, whole.digester.Digest(), err
}

// digested digests what is read through it, from the beginning and in order, while its
// reader works on the same bytes. That must be done with them when it reads again.
type digested struct {
	r        io.ReaderAt
	digester digest.Digester
	behind   sync.WaitGroup
}

// ReadAt implements io.ReaderAt.
func (d *digested) ReadAt(p []byte, off int64) (int, error) {
	d.behind.Wait()
	n, err := d.r.ReadAt(p, off)
	d.behind.Go(func() { d.digester.Hash().Write(p[:n]) })
	return n, err
}

func short(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
