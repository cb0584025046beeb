// Package arriving reads a blob while it is being fetched, as its chunks come.
//
// It owns the order in which a reader waits for chunks, and the proof that what it was given
// is the blob. It never fetches anything and knows neither containerd nor frames: chunks come
// from Chunks, verified by the sums of the seed index.
//
// Invariant: of a blob that is not what its digest says, no reader of the whole gets the last
// bytes.
package arriving

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

// Chunks are those of one blob.
type Chunks interface {
	// Chunk appends chunk at to dst once it is here and verified.
	Chunk(ctx context.Context, at int, dst []byte) ([]byte, error)
	// Here reports whether all chunks are here.
	Here() bool
	// Release ends the use.
	Release()
}

// Blob is a blob on its way, open for reading. It is safe for concurrent use; its memory is
// one chunk.
type Blob struct {
	ctx    context.Context
	info   chunk.Blob
	chunks Chunks
	close  sync.Once

	mu  sync.Mutex
	at  int // the chunk that is in buf; -1: none
	buf []byte
}

// New returns a blob whose readers wait until ctx ends. Its Close releases chunks.
func New(ctx context.Context, info chunk.Blob, chunks Chunks) *Blob {
	return &Blob{ctx: ctx, info: info, chunks: chunks, at: -1}
}

// Size is that of the whole blob in bytes.
func (b *Blob) Size() int64 { return b.info.Bytes }

// Here reports whether no reader has to wait.
func (b *Blob) Here() bool { return b.chunks.Here() }

// Close implements io.Closer. Nobody reads any more.
func (b *Blob) Close() error {
	b.close.Do(b.chunks.Release)
	return nil
}

// ReadAt implements io.ReaderAt. It waits for the chunks that are not here yet.
func (b *Blob) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read blob %s at %d: a negative offset", b.info.Digest, off)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for n < len(p) {
		if off >= b.info.Bytes {
			return n, io.EOF
		}
		at := int(off / b.info.ChunkBytes)
		if err := b.load(at); err != nil {
			return n, fmt.Errorf("read blob %s at %d: %w", b.info.Digest, off, err)
		}
		m := copy(p[n:], b.buf[off-int64(at)*b.info.ChunkBytes:])
		n, off = n+m, off+int64(m)
	}
	return n, nil
}

// load brings chunk at into buf. The caller holds the mutex.
func (b *Blob) load(at int) (err error) {
	if b.at == at {
		return nil
	}
	b.at = -1
	if b.buf, err = b.chunks.Chunk(b.ctx, at, b.buf[:0]); err != nil {
		return err
	}
	if len(b.buf) != b.info.ChunkLen(at) {
		return fmt.Errorf("chunk %d has %d bytes, not %d", at, len(b.buf), b.info.ChunkLen(at))
	}
	b.at = at
	return nil
}

// ErrOther says that the chunks of a blob make other bytes than its digest stands for.
var ErrOther = errors.New("its chunks are not the blob")

// Whole reads the blob from its beginning.
func (b *Blob) Whole() io.Reader {
	return Verified(io.NewSectionReader(b, 0, b.info.Bytes), b.info.Digest, b.info.Bytes, func() error { return ErrOther })
}

// Verified reads the bytes of blob d from r, which has so many. It hands out the last ones
// only once all of them are verified; else the error is that of other.
func Verified(r io.Reader, d digest.Digest, bytes int64, other func() error) io.Reader {
	return &verified{r, d, d.Verifier(), bytes, other}
}

type verified struct {
	r        io.Reader
	dgst     digest.Digest
	verifier digest.Verifier
	left     int64 // bytes that have not been read
	other    func() error
}

// Read implements io.Reader.
func (v *verified) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.verifier.Write(p[:n])
	v.left -= int64(n)
	if n > 0 && v.left == 0 && !v.verifier.Verified() {
		return 0, fmt.Errorf("read blob %s: %w", v.dgst, v.other())
	}
	return n, err
}
