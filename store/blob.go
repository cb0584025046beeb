package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"seeder/store/chunk"
	"seeder/store/stage"
)

// blob is one blob as it is cut, shared by all open images that have it: what one
// of them gets, each of them has. It is safe for concurrent use.
type blob struct {
	store *Store
	info  chunk.Blob
	name  string
	users int // guarded by Store's mutex

	encode keyLock[int] // a chunk is compressed once, however many ask for it

	mu      sync.Mutex
	frames  *stage.Blob
	present bool   // in the content store
	changes uint64 // of present, so that an older answer of containerd is not believed
	checked []bool // chunks in the content store that were verified
	plain   []bool // chunks that do not shrink
	full    bool   // the cache has no room for its frames
	arrived chan struct{}
}

// openBlob looks what there is of a blob now, also where another image has it
// open.
func (s *Store) openBlob(ctx context.Context, info chunk.Blob) (*blob, error) {
	name := stage.Name(info)
	s.mu.Lock()
	b := s.open[name]
	if b == nil {
		b = &blob{
			store: s, info: info, name: name, arrived: make(chan struct{}),
			checked: make([]bool, len(info.Sums)), plain: make([]bool, len(info.Sums)),
		}
		s.open[name] = b
	}
	b.users++
	s.mu.Unlock()
	if err := b.look(ctx); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// look asks containerd whether it has the blob.
func (b *blob) look(ctx context.Context) error {
	b.mu.Lock()
	before := b.changes
	b.mu.Unlock()
	size, ok, err := b.store.ctrd.Has(ctx, b.info.Digest)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.frames != nil && b.changes != before { // an import was faster
		return nil
	}
	return b.settle(ok && size == b.info.Bytes)
}

// settle opens the frames for a blob that is in the content store, or is not. The
// caller holds the mutex.
func (b *blob) settle(present bool) error {
	frames, err := b.store.stage.Blob(b.info, !present)
	if err != nil {
		return err
	}
	if b.frames != nil {
		b.frames.Close()
	}
	if b.frames = frames; present != b.present {
		b.changes++
		b.present = present
		clear(b.checked)
	}
	return nil
}

// lost notes that the content store has lost the blob, or damaged it.
func (b *blob) lost() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.settle(false); err != nil {
		b.store.log.Warn("cannot stage a blob that is gone", "blob", b.info.Digest, "err", err)
	}
}

// finish notes that the content store has the blob. From here on its chunks are
// read from there, before that from the frames: no reader meets a gap.
func (b *blob) finish() {
	b.mu.Lock()
	if !b.present {
		b.present = true
		b.changes++
		clear(b.checked)
	}
	b.frames.Finish()
	b.mu.Unlock()
	b.signal()
}

// hold adds a user where there is one already.
func (b *blob) hold() bool {
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	if b.users > 0 {
		b.users++
		return true
	}
	return false
}

// close ends one image's use.
func (b *blob) close() {
	b.store.mu.Lock()
	b.users--
	last := b.users == 0
	if last {
		delete(b.store.open, b.name)
	}
	b.store.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if last && b.frames != nil {
		b.frames.Close()
	}
}

func (b *blob) isPresent() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.present
}

func (b *blob) staged() *stage.Blob {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.frames
}

// have reports whether chunk at is here, in the content store or as a frame.
func (b *blob) have(at int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.present || b.frames.Have(at)
}

// signal wakes whoever waits for chunks.
func (b *blob) signal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.arrived)
	b.arrived = make(chan struct{})
}

// await waits until the frame of a chunk is here.
func (b *blob) await(ctx context.Context, at int) error {
	for {
		b.mu.Lock()
		arrived, frames := b.arrived, b.frames
		b.mu.Unlock()
		if frames.Have(at) {
			return nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// put verifies a frame and stages it.
func (b *blob) put(at int, enc chunk.Encoding, payload []byte) (verified bool, err error) {
	buf := b.store.buffers.Get(b.info.ChunkLen(at))
	defer b.store.buffers.Put(buf)
	raw, err := b.store.codec.Decode(buf, enc, payload, b.info.ChunkLen(at))
	if errors.Is(err, chunk.ErrFrame) || (err == nil && sha256.Sum256(raw) != b.info.Sums[at]) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if b.isPresent() {
		return true, nil
	}
	if err := b.staged().Put(at, enc, payload); err != nil {
		return false, err
	}
	b.signal()
	return true, nil
}

// frame opens a chunk as it travels: as it was received or made before, else from
// the content store.
func (b *blob) frame(ctx context.Context, at int) (chunk.Encoding, int64, io.ReadCloser, error) {
	enc, size, r, err := b.staged().Frame(at)
	if err == nil || !errors.Is(err, fs.ErrNotExist) || !b.isPresent() {
		return enc, size, r, err
	}
	if b.isPlain(at) {
		raw, err := b.read(ctx, at)
		return chunk.Raw, int64(len(raw)), b.store.lend(raw), err
	}
	unlock, err := b.encode.lock(ctx, at) // whoever comes second finds the frame
	if err != nil {
		return 0, 0, nil, err
	}
	defer unlock()
	if enc, size, r, err = b.staged().Frame(at); err == nil {
		return enc, size, r, nil
	}
	return b.makeFrame(ctx, at)
}

// isPlain reports whether it is known that chunk at does not shrink.
func (b *blob) isPlain(at int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.plain[at]
}

// makeFrame reads chunk at from the content store and compresses it. The frame is
// kept where that was worth it and the cache has room.
func (b *blob) makeFrame(ctx context.Context, at int) (chunk.Encoding, int64, io.ReadCloser, error) {
	raw, err := b.read(ctx, at)
	if err != nil {
		return 0, 0, nil, err
	}
	enc, payload := chunk.Raw, raw
	if chunk.Compressible(b.info.MediaType, b.head(raw, at)) {
		enc, payload, err = b.store.codec.Encode(b.store.buffers.Get(len(raw)), raw)
		if err != nil {
			return 0, 0, nil, fmt.Errorf("compress chunk %d of %s: %w", at, b.info.Digest, err)
		}
	}
	if enc == chunk.Raw {
		b.mu.Lock()
		b.plain[at] = true
		b.mu.Unlock()
		return enc, int64(len(raw)), b.store.lend(raw), nil
	}
	b.store.buffers.Put(raw)
	if err := b.staged().Put(at, enc, payload); err != nil {
		b.store.log.Warn("cannot cache a frame", "blob", b.info.Digest, "chunk", at, "err", err)
	}
	return enc, int64(len(payload)), b.store.lend(payload), nil
}

// head is the beginning of the blob where raw is its first chunk; later chunks
// tell nothing.
func (b *blob) head(raw []byte, at int) []byte {
	if at == 0 {
		return raw[:min(len(raw), 8)]
	}
	return nil
}

// read reads a chunk from the content store into a pooled buffer, and verifies it
// the first time. A blob that is no longer there, or damaged, is lost.
func (b *blob) read(ctx context.Context, at int) (_ []byte, err error) {
	ra, err := b.store.ctrd.ReaderAt(ctx, b.info.Digest)
	if errors.Is(err, fs.ErrNotExist) {
		b.lost()
	}
	if err != nil {
		return nil, err
	}
	defer ra.Close()
	raw := b.store.buffers.Get(b.info.ChunkLen(at))
	if n, err := ra.ReadAt(raw, int64(at)*b.info.ChunkBytes); n < len(raw) {
		return nil, fmt.Errorf("read chunk %d of %s: %w", at, b.info.Digest, err)
	}
	b.mu.Lock()
	checked := b.checked[at]
	b.mu.Unlock()
	if checked {
		return raw, nil
	}
	if sha256.Sum256(raw) != b.info.Sums[at] {
		b.store.log.Error("a blob in containerd's content store does not match its seed index; it is not served", "blob", b.info.Digest, "chunk", at)
		b.lost()
		return nil, fmt.Errorf("chunk %d of %s is damaged: %w", at, b.info.Digest, fs.ErrNotExist)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.checked[at] = b.present
	return raw, nil
}

// readStaged appends the rest of chunk at, from its byte skip on, to dst. Its
// digest was verified when it was staged, and containerd verifies that of the
// whole blob.
func (b *blob) readStaged(dst []byte, at int, skip int64) ([]byte, error) {
	frames := b.staged()
	enc, size, r, err := frames.Frame(at)
	if err != nil {
		return dst, err
	}
	defer r.Close()
	payload, buf := b.store.buffers.Get(int(size)), b.store.buffers.Get(b.info.ChunkLen(at))
	defer b.store.buffers.Put(payload)
	defer b.store.buffers.Put(buf)
	if _, err := io.ReadFull(r, payload); err != nil {
		return dst, fmt.Errorf("read the frame of chunk %d: %w", at, err)
	}
	raw, err := b.store.codec.Decode(buf, enc, payload, b.info.ChunkLen(at))
	if err != nil {
		frames.Drop(at)
		return dst, fmt.Errorf("the frame of chunk %d was damaged on disk; it is fetched again: %w", at, err)
	}
	return append(dst, raw[skip:]...), nil
}

// lend gives a buffer away as a reader; its Close takes the buffer back.
func (s *Store) lend(p []byte) io.ReadCloser {
	return &lent{Reader: bytes.NewReader(p), giveBack: sync.OnceFunc(func() { s.buffers.Put(p) })}
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
