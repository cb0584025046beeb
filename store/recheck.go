package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"seeder/store/chunk"
	"seeder/store/stage"
)

// Recheck reads chunk n again as it would be sent, whatever was verified before, and
// reports whether it was damaged here: somebody got other bytes than it has. What is
// damaged is not sent any more: a frame is made anew from the content store, and a blob
// of the content store counts as missing.
func (i *Image) Recheck(ctx context.Context, n int) (damaged bool, err error) {
	if n < 0 || n >= i.Len() {
		return false, fmt.Errorf("chunk %d of %d: %w", n, i.Len(), fs.ErrNotExist)
	}
	k, at := i.index.Locate(n)
	b := i.blobs[k]
	bad, err := b.recheckFrame(at)
	if err != nil || !b.isPresent() {
		return bad, err
	}
	b.mu.Lock()
	b.checked[at] = false
	b.mu.Unlock()
	ra, err := b.reader(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return bad, err
	}
	defer ra.Close()
	raw, err := b.read(ra, at)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return bad, err
	}
	b.store.buffers.Put(raw)
	return bad, nil
}

// recheckFrame verifies the frame of a chunk, if there is one, to its end.
func (b *blob) recheckFrame(at int) (damaged bool, err error) {
	frames := b.staged()
	enc, size, r, err := frames.Frame(at)
	switch {
	case errors.Is(err, stage.ErrDamaged):
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	}
	defer r.Close()
	payload, scratch := b.store.buffers.Get(int(size)), b.store.buffers.Get(b.info.ChunkLen(at))
	defer b.store.buffers.Put(payload)
	defer b.store.buffers.Put(scratch)
	if _, err := io.ReadFull(r, payload); err != nil {
		return false, fmt.Errorf("read the frame of chunk %d of %s: %w", at, b.info.Digest, err)
	}
	raw, err := b.store.codec.Decode(scratch, enc, payload, b.info.ChunkLen(at))
	if err != nil && !errors.Is(err, chunk.ErrFrame) {
		return false, err
	}
	if err != nil || sha256.Sum256(raw) != b.info.Sums[at] {
		if b.isPresent() {
			frames.Drop(at)
		}
		return true, nil
	}
	return false, nil
}
