package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
	"seeder/store/stage"
)

// Image is one image as its seed index cuts it, with whatever of it is on this
// host: in the content store, or as frames. It takes chunks and gives them, also
// both at once. It is safe for concurrent use.
type Image struct {
	store *Store
	index chunk.Index
	blobs []*blob

	mu      sync.Mutex
	arrived chan struct{} // closed and replaced whenever something came
	import1 sync.Mutex    // one Import at a time
}

// blob is one blob of an image.
type blob struct {
	info   chunk.Blob
	wanted bool // this host needs it
	frames *stage.Blob

	mu      sync.Mutex
	present bool // in the content store
	encode  keyLock[int]
}

// ExcludedError says that this host is not meant to hold an image.
type ExcludedError struct{ reason string }

func (e *ExcludedError) Error() string { return e.reason }

// Excluded is the reason.
func (e *ExcludedError) Excluded() string { return e.reason }

// Image opens the image that a seed index describes and keeps the index. Frames
// from before a restart are verified now. An image without this host's platform
// is an *ExcludedError.
func (s *Store) Image(ctx context.Context, index []byte) (*Image, error) {
	x, err := chunk.Decode(index)
	if err != nil {
		return nil, err
	}
	if err := s.suits(x); err != nil {
		return nil, err
	}
	if err := s.keepIndex(digest.FromBytes(index), index); err != nil {
		return nil, err
	}
	img := &Image{store: s, index: x, arrived: make(chan struct{})}
	for _, info := range x.Blobs {
		b, err := s.openBlob(ctx, info)
		if err != nil {
			return nil, errors.Join(err, img.Close())
		}
		img.blobs = append(img.blobs, b)
	}
	return img, nil
}

// suits refuses images that have no platform of this host. The embedded store
// runs nothing: it holds them all.
func (s *Store) suits(x chunk.Index) error {
	if s.ctrd.StoreOnly() {
		return nil
	}
	var has []string
	for _, b := range x.Blobs {
		if len(b.Platforms) == 0 || slices.ContainsFunc(b.Platforms, s.ctrd.Runs) {
			if len(b.Platforms) > 0 {
				return nil
			}
			continue
		}
		for _, p := range b.Platforms {
			if !slices.Contains(has, p) {
				has = append(has, p)
			}
		}
	}
	if len(has) == 0 {
		return nil // an index that names no platforms
	}
	return &ExcludedError{fmt.Sprintf("the image is for %s, this host runs %s", strings.Join(has, ", "), s.ctrd.Platform())}
}

func (s *Store) wants(info chunk.Blob) bool {
	return s.ctrd.StoreOnly() || len(info.Platforms) == 0 || slices.ContainsFunc(info.Platforms, s.ctrd.Runs)
}

func (s *Store) openBlob(ctx context.Context, info chunk.Blob) (*blob, error) {
	size, ok, err := s.ctrd.Has(ctx, info.Digest)
	if err != nil {
		return nil, err
	}
	b := &blob{info: info, wanted: s.wants(info), present: ok && size == info.Bytes}
	if b.frames, err = s.stage.Blob(info, !b.present); err != nil {
		return nil, err
	}
	return b, nil
}

// Close ends the use of the image; what is staged stays.
func (i *Image) Close() error {
	for _, b := range i.blobs {
		b.frames.Close()
	}
	return nil
}

// Len is the number of chunks.
func (i *Image) Len() int { return i.index.Len() }

// Bytes is the raw length of chunk n.
func (i *Image) Bytes(n int) int64 { return i.index.Bytes(n) }

// each calls fn for each chunk with its blob.
func (i *Image) each(fn func(n int, b *blob, at int)) {
	for k, b := range i.blobs {
		for at := range b.info.Sums {
			fn(i.index.Start(k)+at, b, at)
		}
	}
}

// Have is the set of chunks that are here, 64 to a word.
func (i *Image) Have() []uint64 {
	set := make([]uint64, (i.Len()+63)/64)
	i.each(func(n int, b *blob, at int) {
		if b.isPresent() || b.frames.Have(at) {
			set[n/64] |= 1 << (n % 64)
		}
	})
	return set
}

// Wanted is the set of chunks that this host needs, here or not.
func (i *Image) Wanted() []uint64 {
	set := make([]uint64, (i.Len()+63)/64)
	i.each(func(n int, b *blob, _ int) {
		if b.wanted {
			set[n/64] |= 1 << (n % 64)
		}
	})
	return set
}

// Missing lists the wanted blobs that the content store lacks.
func (i *Image) Missing() []digest.Digest {
	var out []digest.Digest
	for _, b := range i.blobs {
		if b.wanted && !b.isPresent() {
			out = append(out, b.info.Digest)
		}
	}
	return out
}

func (b *blob) isPresent() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.present
}

func (b *blob) setPresent(p bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.present = p
}

// Put verifies a frame and stages it. verified is false with a nil error where
// it does not decode to the chunk: its sender is at fault. payload is not kept.
func (i *Image) Put(ctx context.Context, n int, enc chunk.Encoding, payload []byte) (verified bool, err error) {
	if n < 0 || n >= i.Len() {
		return false, nil
	}
	if err := ctx.Err(); err != nil {
		return false, context.Cause(ctx)
	}
	k, at := i.index.Locate(n)
	b := i.blobs[k]
	buf := i.store.buffer()
	defer i.store.giveBack(buf)
	raw, err := i.store.codec.Decode(*buf, enc, payload, b.info.ChunkLen(at))
	if err != nil || sha256.Sum256(raw) != b.info.Sums[at] {
		return false, nil
	}
	if b.isPresent() {
		return true, nil
	}
	if err := b.frames.Put(at, enc, payload); err != nil {
		return false, err
	}
	i.signal()
	return true, nil
}

// signal wakes whoever waits for chunks.
func (i *Image) signal() {
	i.mu.Lock()
	defer i.mu.Unlock()
	close(i.arrived)
	i.arrived = make(chan struct{})
}

// news is closed at the next arrival.
func (i *Image) news() <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.arrived
}

// Frame opens a chunk as it travels: as it was received, else from the content
// store, compressed where that helps, once. The error wraps fs.ErrNotExist where
// the chunk is not here.
func (i *Image) Frame(ctx context.Context, n int) (chunk.Encoding, int64, io.ReadCloser, error) {
	if n < 0 || n >= i.Len() {
		return 0, 0, nil, fmt.Errorf("chunk %d of %d: %w", n, i.Len(), fs.ErrNotExist)
	}
	k, at := i.index.Locate(n)
	b := i.blobs[k]
	enc, size, r, err := b.frames.Frame(at)
	if err == nil || !errors.Is(err, fs.ErrNotExist) || !b.isPresent() {
		return enc, size, r, err
	}
	unlock, err := b.encode.lock(ctx, at) // whoever comes second finds the frame
	if err != nil {
		return 0, 0, nil, err
	}
	defer unlock()
	if enc, size, r, err = b.frames.Frame(at); err == nil {
		return enc, size, r, nil
	}
	return i.makeFrame(ctx, b, at)
}

// makeFrame reads chunk at of b from the content store, verifies it, and keeps
// its frame where compressing it was worth it.
func (i *Image) makeFrame(ctx context.Context, b *blob, at int) (chunk.Encoding, int64, io.ReadCloser, error) {
	raw, err := i.readChunk(ctx, b, at)
	if err != nil {
		return 0, 0, nil, err
	}
	if !chunk.Compressible(b.info.MediaType, head(raw, at)) {
		return chunk.Raw, int64(len(raw)), io.NopCloser(bytes.NewReader(raw)), nil
	}
	buf := i.store.buffer()
	defer i.store.giveBack(buf)
	enc, payload, err := i.store.codec.Encode(*buf, raw)
	if err != nil {
		return 0, 0, nil, fmt.Errorf("compress chunk %d of %s: %w", at, b.info.Digest, err)
	}
	if enc == chunk.Raw {
		return chunk.Raw, int64(len(raw)), io.NopCloser(bytes.NewReader(raw)), nil
	}
	if err := b.frames.Put(at, enc, payload); err != nil {
		i.store.log.Warn("cannot cache a frame", "blob", b.info.Digest, "err", err)
		return enc, int64(len(payload)), io.NopCloser(bytes.NewReader(bytes.Clone(payload))), nil
	}
	return b.frames.Frame(at)
}

// head is the beginning of a blob where raw is its first chunk; later chunks
// tell nothing.
func head(raw []byte, at int) []byte {
	if at == 0 {
		return raw[:min(len(raw), 8)]
	}
	return nil
}

// readChunk reads a chunk from the content store and verifies it. A blob that is
// no longer there is not present from then on.
func (i *Image) readChunk(ctx context.Context, b *blob, at int) ([]byte, error) {
	ra, err := i.store.ctrd.ReaderAt(ctx, b.info.Digest)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			b.setPresent(false)
		}
		return nil, err
	}
	defer ra.Close()
	raw := make([]byte, b.info.ChunkLen(at))
	if n, err := ra.ReadAt(raw, int64(at)*b.info.ChunkBytes); n < len(raw) {
		return nil, fmt.Errorf("read chunk %d of %s: %w", at, b.info.Digest, err)
	}
	if sha256.Sum256(raw) != b.info.Sums[at] {
		i.store.log.Error("a blob in containerd's content store does not have its digest; it is not served", "blob", b.info.Digest, "chunk", at)
		b.setPresent(false)
		return nil, fmt.Errorf("chunk %d of %s is damaged: %w", at, b.info.Digest, fs.ErrNotExist)
	}
	return raw, nil
}
