package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"seeder/store/artifact"
	"seeder/store/chunk"
)

// Image is one image as its seed index cuts it, with whatever of it is on this
// host: in the content store, or as frames. It takes chunks and gives them, also
// both at once, before, during and after the import. It is safe for concurrent
// use; the last use is Close.
type Image struct {
	store  *Store
	index  chunk.Index
	blobs  []*blob
	wanted []bool // by blob: this host needs it
	// excluded is why this host should not hold the image; empty where it is. It
	// serves what it has of it anyway.
	excluded string
	closed   sync.Once
	// unpacked and layers are those of the import that runs, 0 before it knows them.
	unpacked, layers atomic.Int64
}

// Excluded is why this host should not hold the image, empty where it is.
func (i *Image) Excluded() string { return i.excluded }

// Image opens the image that a seed index describes and keeps the index. Frames
// from before a restart are verified now. Of an image without this host's platform
// nothing is wanted here, as Room says.
func (s *Store) Image(ctx context.Context, index []byte) (*Image, error) {
	x, err := chunk.Decode(index)
	if err != nil {
		return nil, err
	}
	wanted, excluded := s.wanted(x)
	if err := s.seeds.keep(digest.FromBytes(index), index); err != nil {
		return nil, err
	}
	img := &Image{store: s, index: x, wanted: wanted, excluded: excluded}
	for k, info := range x.Blobs {
		b, err := s.openBlob(ctx, info)
		if err != nil {
			return nil, errors.Join(err, img.Close())
		}
		if wanted[k] {
			b.wanted.Store(true)
		}
		img.blobs = append(img.blobs, b)
	}
	return img, nil
}

// wanted says for each blob whether this host needs it: those of its own
// platform, or else of platforms that it can run, and those that belong to none.
// An embedded store that is given no platform runs nothing and holds them all.
func (s *Store) wanted(x chunk.Index) (wanted []bool, excluded string) {
	wanted = make([]bool, len(x.Blobs))
	var has []string
	for _, b := range x.Blobs {
		has = append(has, b.Platforms...)
	}
	needs := s.ctrd.Conn.Runs
	if own := s.ctrd.Conn.Platform(); slices.Contains(has, own) {
		needs = func(p string) bool { return p == own }
	}
	if !s.ctrd.Conn.HoldsAll() && len(has) > 0 && !slices.ContainsFunc(has, needs) {
		slices.Sort(has)
		return wanted, fmt.Sprintf(artifact.OtherPlatform+"%s, this host runs %s",
			strings.Join(slices.Compact(has), ", "), s.ctrd.Conn.Platform())
	}
	for i, b := range x.Blobs {
		wanted[i] = s.ctrd.Conn.HoldsAll() || len(b.Platforms) == 0 || slices.ContainsFunc(b.Platforms, needs)
	}
	return wanted, ""
}

// Close ends the use of the image; what is staged stays.
func (i *Image) Close() error {
	i.closed.Do(func() {
		for _, b := range i.blobs {
			b.close()
		}
	})
	return nil
}

// Len is the number of chunks.
func (i *Image) Len() int { return i.index.Len() }

// Bytes is the raw length of chunk n.
func (i *Image) Bytes(n int) int64 { return i.index.Bytes(n) }

// set is the set of chunks for which in is true. in is called with the blob's mutex held.
func (i *Image) set(in func(blob, at int) bool) chunk.Bitmap {
	set := chunk.NewBitmap(i.Len())
	for k, b := range i.blobs {
		b.mu.Lock()
		for at, start := 0, i.index.Start(k); at < len(b.info.Sums); at++ {
			if n := start + at; in(k, at) {
				set.Set(n)
			}
		}
		b.mu.Unlock()
	}
	return set
}

// Have is the set of chunks that are here.
func (i *Image) Have() chunk.Bitmap {
	return i.set(func(k, at int) bool { return i.blobs[k].content.present || i.blobs[k].frames.Have(at) })
}

// Wanted is the set of chunks that this host needs, here or not.
func (i *Image) Wanted() chunk.Bitmap {
	return i.set(func(k, _ int) bool { return i.wanted[k] })
}

// Missing lists the wanted blobs that the content store lacks.
func (i *Image) Missing() []digest.Digest {
	var out []digest.Digest
	for k, b := range i.blobs {
		if i.wanted[k] && !b.isPresent() {
			out = append(out, b.info.Digest)
		}
	}
	return out
}

// Put verifies a frame and stages it. verified is false with a nil error where
// it does not decode to the chunk: its sender is at fault. payload is not kept.
func (i *Image) Put(ctx context.Context, n int, enc chunk.Encoding, payload []byte) (verified bool, err error) {
	if n < 0 || n >= i.Len() {
		return false, nil
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	k, at := i.index.Locate(n)
	return i.blobs[k].put(at, enc, payload)
}

// Frame opens a chunk as it travels: as it was received, else from the content
// store, compressed where that helps, once. Where more goes out uncompressed it
// travels as it is. The error wraps fs.ErrNotExist where
// the chunk is not here.
func (i *Image) Frame(ctx context.Context, n int) (chunk.Frame, error) {
	if n < 0 || n >= i.Len() {
		return chunk.Frame{}, fmt.Errorf("chunk %d of %d: %w", n, i.Len(), fs.ErrNotExist)
	}
	k, at := i.index.Locate(n)
	b := i.blobs[k]
	compressible := b.isPresent() && chunk.Compressible(b.info.MediaType, nil)
	enc, size, r, err := b.frame(ctx, at, chunk.Fast, true)
	if err != nil {
		return chunk.Frame{}, err
	}
	if enc == chunk.Zstd {
		i.store.ahead.want(b, at+1)
	}
	if compressible {
		r = i.store.work.pace.Measured(r, int64(b.info.ChunkLen(at)), size)
	}
	return chunk.Frame{Encoding: enc, Bytes: size, Payload: r}, nil
}
