package stage

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"seeder/store/chunk"
)

// Blob is the frames of one blob. It is safe for concurrent use.
type Blob struct {
	dir   *Dir
	info  chunk.Blob
	name  string
	users int // guarded by Dir's mutex

	mu       sync.Mutex
	file     *handle // nil while there is no frame, or no user
	cached   bool    // the blob is in the content store: what is here is cache
	verified bool    // at and end say what is in the file
	end      int64   // of the last record
	at       []span
	stamp    stamp // of the file when at was right about its sums
	held     int
	zstd     int // frames that are compressed
}

// span is where the payload of a frame is.
type span struct {
	off  int64
	len  uint32
	enc  chunk.Encoding
	held bool
	crc  uint32 // of the record
	// summed is when the payload last had this sum; zero: it is not known.
	summed time.Time
}

// handle is an open file and the number of those who read it: a reader outlives
// the file's name and its Blob.
type handle struct {
	*os.File
	refs atomic.Int32
}

func openHandle(path string, flag int) (*handle, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	h := &handle{File: f}
	h.refs.Store(1)
	return h, nil
}

func (h *handle) release() {
	if h.refs.Add(-1) == 0 {
		h.File.Close()
	}
}

func (b *Blob) path() string {
	if b.cached {
		return filepath.Join(b.dir.cached, b.name+suffix)
	}
	return filepath.Join(b.dir.staged, b.name+suffix)
}

// load finds and verifies what is on disk, unless this process has done so, and
// puts it where it belongs.
func (b *Blob) load(fetching bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == nil {
		if err := b.open(fetching); err != nil {
			return err
		}
	}
	switch {
	case fetching && b.cached:
		return b.uncache()
	case !fetching && !b.cached:
		b.finish()
	}
	return nil
}

// open opens the file of an earlier user; a file that is not there is made by the
// first Put.
func (b *Blob) open(fetching bool) (err error) {
	for _, b.cached = range []bool{false, true} {
		if b.file, err = openHandle(b.path(), os.O_RDWR); err == nil || !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		b.forget()
		b.cached = !fetching
		return nil
	}
	if err != nil {
		return err
	}
	if b.cached { // recency of use
		now := time.Now()
		if err := os.Chtimes(b.path(), now, now); err != nil {
			b.dir.log.Debug("failed to touch cached frames", "path", b.path(), "err", err)
		}
	}
	if err := b.scan(); err != nil {
		b.file.release()
		b.file = nil
		b.forget()
		return err
	}
	return nil
}

// forget empties the table.
func (b *Blob) forget() {
	clear(b.at)
	b.end, b.held, b.zstd, b.verified = 0, 0, 0, false
}

// scan verifies every record and cuts the file off after the last whole one. What
// cannot be read is damaged.
func (b *Blob) scan() error {
	st, err := b.file.Stat()
	if err != nil {
		return err
	}
	if b.verified && st.Size() == b.end {
		return nil
	}
	b.forget()
	payload, scratch := b.dir.buffers.Get(int(b.info.ChunkBytes)), b.dir.buffers.Get(int(b.info.ChunkBytes))
	defer b.dir.buffers.Put(payload)
	defer b.dir.buffers.Put(scratch)
	damaged := 0
	for b.end+headerBytes <= st.Size() {
		h, err := readHeader(b.file.File, b.end, b.info)
		if err != nil || b.end+headerBytes+int64(h.length) > st.Size() {
			damaged++
			break
		}
		p := payload[:h.length]
		if _, err := b.file.ReadAt(p, b.end+headerBytes); err == nil && b.verify(h, p, scratch) {
			b.record(h.chunk, span{b.end + headerBytes, h.length, h.enc, true, h.crc, time.Time{}})
		} else {
			damaged++
		}
		b.end += headerBytes + int64(h.length)
	}
	if damaged > 0 {
		b.dir.log.Warn("found damaged frames on disk; fetching their chunks again", "blob", b.info.Digest, "records", damaged, "path", b.path())
	}
	b.verified = true
	if b.end < st.Size() {
		return b.file.Truncate(b.end)
	}
	return nil
}

// verify checks a record's sum and then the chunk that comes out of it.
func (b *Blob) verify(h header, payload, scratch []byte) bool {
	if h.sum(payload) != h.crc {
		return false
	}
	raw, err := b.dir.codec.Decode(scratch, h.enc, payload, b.info.ChunkLen(h.chunk))
	return err == nil && sha256.Sum256(raw) == b.info.Sums[h.chunk]
}

// record notes where a frame is.
func (b *Blob) record(n int, s span) {
	if !b.at[n].held {
		b.held++
		if s.enc == chunk.Zstd {
			b.zstd++
		}
	}
	b.at[n] = s
}

// Have reports whether the frame of chunk n is here.
func (b *Blob) Have(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at[n].held
}

// Put appends the frame of chunk n, which the caller has verified. A frame that
// is here already is left as it is. Of a blob in the content store only what was
// compressed is kept, and only while the cache has room.
//
// Where the disk is full the cache gives way to what is staged.
func (b *Blob) Put(n int, enc chunk.Encoding, payload []byte) error {
	err := b.put(n, enc, payload)
	if errors.Is(err, unix.ENOSPC) && b.dir.Shrink(Use{Bytes: int64(headerBytes + len(payload)), Files: 1}) != (Use{}) {
		err = b.put(n, enc, payload)
	}
	return err
}

func (b *Blob) put(n int, enc chunk.Encoding, payload []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	need := Use{Bytes: int64(headerBytes + len(payload))}
	if b.file == nil {
		need.Files = 1
	}
	switch {
	case b.at[n].held || (b.cached && enc == chunk.Raw):
		return nil
	case b.closed():
		return fmt.Errorf("stage chunk %d of %s: %w", n, b.info.Digest, fs.ErrClosed)
	case b.cached && !b.dir.reserve(need, Use{}):
		return nil
	}
	if err := b.append(n, enc, payload); err != nil {
		if b.cached {
			b.dir.unreserve(need)
		}
		return fmt.Errorf("stage chunk %d of %s: %w", n, b.info.Digest, err)
	}
	return nil
}

func (b *Blob) closed() bool {
	b.dir.mu.Lock()
	defer b.dir.mu.Unlock()
	return b.users == 0
}

func (b *Blob) append(n int, enc chunk.Encoding, payload []byte) (err error) {
	if b.file == nil {
		if b.file, err = openHandle(b.path(), os.O_RDWR|os.O_CREATE|os.O_TRUNC); err != nil {
			return err
		}
		b.forget()
		b.verified = true
	}
	h := newHeader(n, enc, payload)
	b.look()
	_, err = b.file.WriteAt(h.append(nil), b.end)
	if err == nil {
		_, err = b.file.WriteAt(payload, b.end+headerBytes)
	}
	if err != nil {
		return errors.Join(err, b.file.Truncate(b.end))
	}
	b.stamp = b.file.stamp()
	b.record(n, span{b.end + headerBytes, h.length, enc, true, h.crc, time.Now()})
	b.end += int64(headerBytes + len(payload))
	return nil
}

// rotten drops a damaged frame of the cache. One that is staged stays until the import
// meets it: it has counted on that. cause is why it could not be read, nil where it could.
func (b *Blob) rotten(n int, file *handle, cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	args := []any{"blob", b.info.Digest, "chunk", n, "path", b.path()}
	if cause != nil {
		args = append(args, "err", cause)
	}
	b.dir.log.Warn("found a damaged frame on disk; not sending it", args...)
	if b.cached && b.file == file {
		b.drop(n)
	}
}

// Drop forgets the frame of chunk n, which turned out to be damaged.
func (b *Blob) Drop(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(n)
}

func (b *Blob) drop(n int) {
	if !b.at[n].held {
		return
	}
	b.held--
	if b.at[n].enc == chunk.Zstd {
		b.zstd--
	}
	b.at[n] = span{}
}

// Recheck verifies every frame again and says how many are lost: the disk has had
// them since they were put.
func (b *Blob) Recheck() (lost int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == nil {
		return 0, nil
	}
	before := b.held
	b.verified = false
	err = b.scan()
	return before - b.held, err
}

// Finish says that the blob is in the content store. Its frames move to the cache
// where compressing them again would cost something, and are removed otherwise:
// raw chunks can be read from the content store.
func (b *Blob) Finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.cached {
		b.finish()
	}
}

func (b *Blob) finish() {
	from := b.path()
	b.cached = true
	if b.file == nil {
		return
	}
	size := Use{Bytes: b.end, Files: 1}
	if b.zstd > 0 && b.dir.reserve(size, size) {
		err := os.Rename(from, b.path())
		if err == nil {
			return
		}
		b.dir.unreserve(size)
		b.dir.log.Warn("failed to keep the frames of a finished blob", "blob", b.info.Digest, "err", err)
	}
	b.dir.remove(from)
	b.file.release() // open readers keep it until they are closed
	b.file = nil
	b.forget()
}

// uncache takes what the cache has of a blob that is to be fetched again.
func (b *Blob) uncache() error {
	from := b.path()
	b.cached = false
	if b.file == nil {
		return nil
	}
	err := os.Rename(from, b.path())
	if errors.Is(err, fs.ErrNotExist) { // somebody has emptied the cache
		b.dir.unreserve(Use{Bytes: b.end, Files: 1})
		b.file.release()
		b.file = nil
		b.forget()
		return nil
	}
	if err != nil {
		b.cached = true
		return err
	}
	now := time.Now() // it is not stale
	if err := os.Chtimes(b.path(), now, now); err != nil {
		b.dir.log.Debug("failed to touch staged frames", "path", b.path(), "err", err)
	}
	b.dir.unreserve(Use{Bytes: b.end, Files: 1})
	return nil
}

// Close ends one opener's use. What was verified is remembered while the file is
// there.
func (b *Blob) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dir.mu.Lock()
	b.users--
	last := b.users == 0
	if last && b.file == nil {
		delete(b.dir.blobs, b.name)
	}
	b.dir.mu.Unlock()
	if last && b.file != nil {
		b.file.release()
		b.file = nil
	}
}
