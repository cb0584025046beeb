package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"seeder/store/arriving"
)

// OpenArriving opens a blob that this host needs of an image that is open: its readers wait
// for the chunks that are not here yet, until ctx ends. The error wraps fs.ErrNotExist where
// no open image has such a blob.
func (s *Store) OpenArriving(ctx context.Context, d digest.Digest) (*arriving.Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.open {
		if b.info.Digest == d && b.wanted.Load() {
			b.users++
			return arriving.New(ctx, b.info, awaited{b}), nil
		}
	}
	return nil, fmt.Errorf("blob %s is of no image that is being fetched: %w", d, fs.ErrNotExist)
}

// awaited is a blob for those who wait for its chunks: arriving.Chunks.
type awaited struct{ *blob }

// Chunk is part of arriving.Chunks.
func (b awaited) Chunk(ctx context.Context, at int, dst []byte) ([]byte, error) {
	for {
		switch err := b.await(ctx, at); {
		case err == nil:
			out, err := b.readStaged(dst, at, 0)
			if err == nil || ctx.Err() != nil {
				return out, err
			}
			if !b.isPresent() {
				if b.staged().Have(at) {
					return out, err
				}
				continue // it was damaged and is fetched again
			}
		case !errors.Is(err, errBrought):
			return dst, err
		}
		ra, err := b.reader(ctx)
		if err == nil {
			raw, rerr := b.read(ra, at)
			if err = errors.Join(rerr, ra.Close()); err == nil {
				dst = append(dst, raw...)
				b.store.work.buffers.Put(raw)
				return dst, nil
			}
		}
		if !errors.Is(err, fs.ErrNotExist) { // one that is lost is fetched again
			return dst, err
		}
	}
}

// Here is part of arriving.Chunks.
func (b awaited) Here() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for at := range b.info.Sums {
		if !b.content.present && !b.frames.Have(at) {
			return false
		}
	}
	return true
}

// Release is part of arriving.Chunks.
func (b awaited) Release() { b.close() }
