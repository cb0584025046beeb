package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"

	"seeder/store/artifact"
	"seeder/store/chunk"
	"seeder/store/ctrd"
	"seeder/store/stage"
)

// blob is one blob as it is cut, shared by all open images that have it: what one
// of them gets, each of them has. It is safe for concurrent use.
type blob struct {
	store *Store
	info  chunk.Blob
	name  string
	users int // guarded by Store's mutex

	near    handover
	encode  keyLock[int] // a chunk is compressed once, however many ask for it
	shrinks atomic.Bool  // the chunk that was compressed last did
	wanted  atomic.Bool  // by an image that was opened since: it is fetched or here

	mu      sync.Mutex
	frames  *stage.Blob
	content content
	plain   []bool // chunks that do not shrink
	full    bool   // the cache has no room for its frames
	arrived chan struct{}
}

// content is what the content store has of a blob.
type content struct {
	present bool
	changes uint64     // of present, so that an older answer of containerd is not believed
	checked []bool     // chunks that were verified
	stamp   ctrd.Stamp // of the file in which they were; none where it was read through containerd
}

// openBlob finds out what is here of a blob, also if another image has it open.
func (s *Store) openBlob(ctx context.Context, info chunk.Blob) (*blob, error) {
	name := stage.Name(info)
	s.mu.Lock()
	b := s.open[name]
	if b == nil {
		b = &blob{
			store: s, info: info, name: name, arrived: make(chan struct{}), near: handover{work: &s.work},
			content: content{checked: make([]bool, len(info.Sums))}, plain: make([]bool, len(info.Sums)),
		}
		s.open[name] = b
	}
	b.users++
	s.mu.Unlock()
	if err := b.check(ctx); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// check asks containerd whether it has the blob.
func (b *blob) check(ctx context.Context) error {
	b.mu.Lock()
	before := b.content.changes
	b.mu.Unlock()
	size, ok, err := b.store.ctrd.Content.Has(ctx, b.info.Digest)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.frames != nil && b.content.changes != before { // an import was faster
		return nil
	}
	return b.openFrames(ok && size == b.info.Bytes)
}

// openFrames opens the frames for a blob that is in the content store, or is not. The
// caller holds the mutex.
func (b *blob) openFrames(present bool) error {
	frames, err := b.store.stage.Blob(b.info, !present)
	if err != nil {
		return err
	}
	if b.frames != nil {
		b.frames.Close()
	}
	if b.frames = frames; present != b.content.present {
		b.content.changes++
		b.content.present = present
		b.trust(b.store.work.sums.get(b.name))
	}
	return nil
}

// trust says that all chunks were verified in the file with that stamp, or none
// where there is no such file. The caller holds the mutex.
func (b *blob) trust(stamp ctrd.Stamp) {
	b.content.stamp = stamp
	for at := range b.content.checked {
		b.content.checked[at] = stamp != ctrd.Stamp{}
	}
}

// lost records that the content store has lost the blob, or damaged it.
func (b *blob) lost() {
	b.store.work.sums.set(b.name, ctrd.Stamp{})
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.openFrames(false); err != nil {
		b.store.cfg.Log.Warn("failed to stage a blob that was removed", "blob", b.info.Digest, "err", err)
	}
}

// checkOpen tells those who wait for chunks of the blobs that an archive has brought.
func (s *Store) checkOpen(ctx context.Context) error {
	var open []*blob
	s.mu.Lock()
	for _, b := range s.open {
		b.users++
		open = append(open, b)
	}
	s.mu.Unlock()
	var errs []error
	for _, b := range open {
		if !b.isPresent() {
			errs = append(errs, b.check(ctx))
			b.signal()
		}
		b.close()
	}
	return errors.Join(errs...)
}

// markPresent records that the content store has the blob. From here on its chunks are
// read from there, before that from the frames: no reader meets a gap. written
// says that it was written from verified chunks just now: they need not be
// verified again.
func (b *blob) markPresent(ctx context.Context, written bool) {
	var stamp ctrd.Stamp
	if written {
		stamp = b.store.ctrd.Files.Stamp(ctx, b.info.Digest)
	}
	b.mu.Lock()
	if !b.content.present {
		b.content.present = true
		b.content.changes++
		b.trust(stamp)
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
	return b.content.present
}

func (b *blob) staged() *stage.Blob {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.frames
}

// signal wakes those that wait for chunks.
func (b *blob) signal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.arrived)
	b.arrived = make(chan struct{})
}

// errBrought says that an archive has brought a blob while its chunks were awaited.
var errBrought = errors.New("the blob has been imported from an archive")

// await waits until the frame of a chunk is here. errBrought: it is not needed any more.
func (b *blob) await(ctx context.Context, at int) error {
	for {
		b.mu.Lock()
		arrived, frames, present := b.arrived, b.frames, b.content.present
		b.mu.Unlock()
		if frames.Have(at) {
			return nil
		}
		if present {
			return errBrought
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
	b.store.work.verifying <- struct{}{} // more at once than there are cores would only take memory
	defer func() { <-b.store.work.verifying }()
	buf := b.store.work.buffers.Get(b.info.ChunkLen(at))
	defer func() { b.store.work.buffers.Put(buf) }()
	raw, err := b.store.work.codec.Decode(buf, enc, payload, b.info.ChunkLen(at))
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
	if enc == chunk.Zstd && b.near.give(at, raw) {
		buf = nil
	}
	b.signal()
	return true, nil
}

// isChecked reports whether chunk at was verified in what ra reads. A manifest or config
// is verified each time: it is small, and no stamp tells that it has rotted.
func (b *blob) isChecked(ra ctrd.Reader, at int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if stamp := stampOf(ra); b.content.stamp != stamp {
		b.content.stamp = stamp
		clear(b.content.checked)
	}
	return b.content.checked[at] && (artifact.IsLayer(b.info.MediaType) || len(b.info.Sums) > 1)
}

// stampOf is that of the file that ra reads, none where it reads through
// containerd.
func stampOf(ra ctrd.Reader) ctrd.Stamp {
	if f, ok := ra.(*ctrd.File); ok {
		return f.Stamp()
	}
	return ctrd.Stamp{}
}

// reader opens the blob in the content store. One that is no longer there, or that is
// known to be damaged, is lost.
func (b *blob) reader(ctx context.Context) (ctrd.Reader, error) {
	if b.store.ctrd.Content.Damaged(ctx, b.info.Digest) {
		b.lost()
		return nil, fmt.Errorf("blob %s is damaged: %w", b.info.Digest, fs.ErrNotExist)
	}
	ra, err := b.store.ctrd.Content.ReaderAt(ctx, b.info.Digest)
	if errors.Is(err, fs.ErrNotExist) {
		b.lost()
	}
	return ra, err
}

// read reads a chunk of the content store into a pooled buffer, and verifies it
// the first time. A blob that is damaged is lost.
func (b *blob) read(ra ctrd.Reader, at int) ([]byte, error) {
	checked := b.isChecked(ra, at)
	raw := b.store.work.buffers.Get(b.info.ChunkLen(at))
	n, err := ra.ReadAt(raw, int64(at)*b.info.ChunkBytes)
	switch {
	case n < len(raw) && errors.Is(err, io.EOF):
		return nil, b.damaged(ra, at)
	case n < len(raw):
		return nil, fmt.Errorf("read chunk %d of %s: %w", at, b.info.Digest, err)
	case checked:
		return raw, nil
	case sha256.Sum256(raw) != b.info.Sums[at]:
		return nil, b.damaged(ra, at)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.content.checked[at] = b.content.present && b.content.stamp == stampOf(ra)
	return raw, nil
}

// damaged notes that the content store has other bytes where chunk at should be. From
// here on it counts as missing, so that it is fetched from those who have it.
func (b *blob) damaged(ra ctrd.Reader, at int) error {
	b.store.cfg.Log.Error("found a damaged blob in containerd's content store; not serving it, and fetching it again if another node has it", "blob", b.info.Digest, "chunk", at)
	b.store.ctrd.Content.MarkDamaged(b.info.Digest, stampOf(ra))
	b.lost()
	return fmt.Errorf("chunk %d of %s is damaged: %w", at, b.info.Digest, fs.ErrNotExist)
}

// readStaged appends the rest of chunk at, from its byte skip on, to dst. Its
// digest was verified when it was staged, and containerd verifies that of the
// whole blob.
func (b *blob) readStaged(dst []byte, at int, skip int64) ([]byte, error) {
	frames, length := b.staged(), b.info.ChunkLen(at)
	dst = slices.Grow(dst, length)
	tail := dst[len(dst) : len(dst)+length]
	var scratch []byte
	defer func() { b.store.work.buffers.Put(scratch) }()
	enc, payload, err := frames.Read(at, func(enc chunk.Encoding, bytes int) []byte {
		if enc == chunk.Raw && bytes == length {
			return tail
		}
		scratch = b.store.work.buffers.Get(bytes)
		return scratch
	})
	var raw []byte
	if err == nil {
		raw, err = b.store.work.codec.Decode(tail, enc, payload, length)
	}
	if errors.Is(err, stage.ErrDamaged) || errors.Is(err, chunk.ErrFrame) {
		frames.Drop(at)
		return dst, fmt.Errorf("the frame of chunk %d was damaged on disk; it is fetched again: %w", at, err)
	}
	if err != nil {
		return dst, err
	}
	if skip > 0 {
		copy(tail, raw[skip:])
	}
	return dst[:len(dst)+length-int(skip)], nil
}
