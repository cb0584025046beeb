package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"seeder/store/chunk"
	"seeder/store/ctrd"
)

// frame opens a chunk as it travels: as it was received or made before, else from
// the content store. awaited says that a peer waits for it: it is not compressed then
// where more goes out without.
func (b *blob) frame(ctx context.Context, at int, effort chunk.Effort, awaited bool) (chunk.Encoding, int64, io.ReadCloser, error) {
	if enc, size, r, err := b.staged().Frame(at); err == nil {
		return enc, size, r, nil
	} else if !errors.Is(err, fs.ErrNotExist) || !b.isPresent() {
		return 0, 0, nil, err
	}
	if b.isPlain(at) {
		return b.openPlain(ctx, at)
	}
	if awaited && b.store.work.pace.Raw() {
		size, r, err := b.open(ctx, at)
		return chunk.Raw, size, r, err
	}
	unlock, err := b.encode.lock(ctx, at) // the second finds the frame
	if err != nil {
		return 0, 0, nil, err
	}
	defer unlock()
	if enc, size, r, err := b.staged().Frame(at); err == nil {
		return enc, size, r, nil
	}
	return b.makeFrame(ctx, at, effort)
}

// isPlain reports whether it is known that chunk at does not shrink.
func (b *blob) isPlain(at int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.plain[at]
}

// makeFrame reads chunk at from the content store and compresses it. The frame is
// kept where that was worth it and the cache has room. What goes out comes from a
// file where it can: many slow peers at once must not take the memory of as many
// chunks.
func (b *blob) makeFrame(ctx context.Context, at int, effort chunk.Effort) (chunk.Encoding, int64, io.ReadCloser, error) {
	if !chunk.Compressible(b.info.MediaType, nil) {
		return b.openPlain(ctx, at)
	}
	ra, err := b.reader(ctx)
	if err != nil {
		return 0, 0, nil, err
	}
	defer ra.Close()
	raw, err := b.read(ra, at)
	if err != nil {
		return 0, 0, nil, err
	}
	enc, payload := chunk.Raw, raw
	if chunk.Compressible(b.info.MediaType, b.head(raw, at)) {
		scratch := b.store.work.buffers.Get(len(raw))
		b.store.work.pace.Encode(time.Now(), 1)
		enc, payload, err = b.store.work.codec.Encode(scratch, raw, effort, b.shrinks.Load())
		b.store.work.pace.Encode(time.Now(), -1)
		if err != nil {
			return 0, 0, nil, fmt.Errorf("compress chunk %d of %s: %w", at, b.info.Digest, err)
		}
		b.shrinks.Store(enc == chunk.Zstd)
		if enc == chunk.Raw {
			b.store.work.buffers.Put(scratch)
		} else {
			b.store.work.compressed.Add(1)
		}
	}
	if _, file := ra.(*ctrd.File); enc == chunk.Raw && file {
		b.store.work.buffers.Put(raw)
		return b.openPlain(ctx, at)
	}
	if enc == chunk.Raw {
		b.setPlain(at)
		return enc, int64(len(raw)), b.store.pooledReader(raw), nil
	}
	b.store.work.buffers.Put(raw)
	if err := b.staged().Put(at, enc, payload); err != nil {
		b.store.cfg.Log.Warn("failed to cache a frame", "blob", b.info.Digest, "chunk", at, "err", err)
	}
	if _, size, r, err := b.staged().Frame(at); err == nil {
		b.store.work.buffers.Put(payload)
		return enc, size, r, nil
	}
	return enc, int64(len(payload)), b.store.pooledReader(payload), nil
}

func (b *blob) setPlain(at int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.plain[at] = true
}

// openPlain opens a chunk that does not shrink.
func (b *blob) openPlain(ctx context.Context, at int) (chunk.Encoding, int64, io.ReadCloser, error) {
	b.setPlain(at)
	size, r, err := b.open(ctx, at)
	return chunk.Raw, size, r, err
}

// head is the beginning of the blob where raw is its first chunk; later chunks
// tell nothing.
func (b *blob) head(raw []byte, at int) []byte {
	if at == 0 {
		return raw[:min(len(raw), 8)]
	}
	return nil
}

// open opens a chunk as the content store has it. One that was verified is
// read piece by piece where it is a file, so that it takes no memory.
func (b *blob) open(ctx context.Context, at int) (size int64, _ io.ReadCloser, err error) {
	ra, err := b.reader(ctx)
	if err != nil {
		return 0, nil, err
	}
	size = int64(b.info.ChunkLen(at))
	if f, ok := ra.(*ctrd.File); ok && b.isChecked(f, at) {
		return size, &section{io.NewSectionReader(f, int64(at)*b.info.ChunkBytes, size), f}, nil
	}
	defer ra.Close()
	raw, err := b.read(ra, at)
	if err != nil {
		return 0, nil, err
	}
	return size, b.store.pooledReader(raw), nil
}

// section is a chunk of a file.
type section struct {
	*io.SectionReader
	io.Closer
}

// pooledReader gives a buffer away as a reader; its Close takes the buffer back.
func (s *Store) pooledReader(p []byte) io.ReadCloser {
	return &lent{Reader: bytes.NewReader(p), giveBack: sync.OnceFunc(func() { s.work.buffers.Put(p) })}
}

type lent struct {
	*bytes.Reader
	giveBack func()
}

// Close implements io.Closer.
func (l *lent) Close() error {
	l.Reader.Reset(nil)
	l.giveBack()
	return nil
}
