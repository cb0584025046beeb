// Package stage keeps frames on disk: those of blobs that are being fetched, and
// in a bounded cache those of finished ones, so that a chunk is compressed once
// and a latecomer costs no CPU.
//
// It owns the files below its directory and their format. It never decides what
// is fetched and never talks to containerd.
//
// One blob is one append-only file of records: magic "SDfr", chunk number (u32),
// encoding (u8), three zero bytes, payload length (u32), CRC-32C of all that and
// the payload (u32), payload; numbers are big-endian. A crash cuts off or garbles
// the tail at most.
//
// Invariant: a frame counts as held only after its chunk was verified by its
// digest in this process: by whoever puts it, or when the file is opened after a
// restart. Nothing on disk is trusted.
package stage

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

const (
	headerBytes = 20
	suffix      = ".frames"
	// staleAfter is how long the frames of a blob that nobody fetches are kept.
	staleAfter = 24 * time.Hour
)

var (
	magic      = []byte("SDfr")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// Dir is the directory of all frames. It is safe for concurrent use.
type Dir struct {
	staged, cached string
	cacheBytes     int64
	codec          *chunk.Codec
	log            *slog.Logger

	mu   sync.Mutex
	open map[digest.Digest]*Blob
}

// Open makes the directory and forgets what nobody went on fetching. cacheBytes
// bounds the frames of finished blobs.
func Open(dir string, cacheBytes int64, codec *chunk.Codec, log *slog.Logger) (*Dir, error) {
	d := &Dir{
		staged: filepath.Join(dir, "stage"), cached: filepath.Join(dir, "cache"),
		cacheBytes: cacheBytes, codec: codec, log: log, open: map[digest.Digest]*Blob{},
	}
	for _, p := range []string{d.staged, d.cached} {
		if err := os.MkdirAll(p, 0o700); err != nil {
			return nil, fmt.Errorf("make the staging directory: %w", err)
		}
	}
	d.Sweep(time.Now())
	return d, nil
}

// Sweep removes staged blobs that nobody has written to for a day, and the least
// recently used of the cache where it is too large.
func (d *Dir) Sweep(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.files(d.staged) {
		if !d.inUse(f.name) && now.Sub(f.modified) > staleAfter {
			d.remove(filepath.Join(d.staged, f.name))
		}
	}
	d.evictLocked()
}

type file struct {
	name     string
	bytes    int64
	modified time.Time
}

// files lists a directory, the least recently used first.
func (d *Dir) files(dir string) []file {
	entries, err := os.ReadDir(dir)
	if err != nil {
		d.log.Warn("cannot list staged frames", "dir", dir, "err", err)
	}
	var out []file
	for _, e := range entries {
		if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), suffix) {
			out = append(out, file{e.Name(), info.Size(), info.ModTime()})
		}
	}
	slices.SortFunc(out, func(a, b file) int { return a.modified.Compare(b.modified) })
	return out
}

func (d *Dir) inUse(name string) bool {
	_, ok := d.open[digest.NewDigestFromEncoded(digest.SHA256, strings.TrimSuffix(name, suffix))]
	return ok
}

func (d *Dir) remove(path string) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("cannot remove staged frames", "path", path, "err", err)
	}
}

func (d *Dir) evictLocked() {
	files := d.files(d.cached)
	var total int64
	for _, f := range files {
		total += f.bytes
	}
	for _, f := range files {
		if total <= d.cacheBytes {
			return
		}
		if !d.inUse(f.name) {
			d.remove(filepath.Join(d.cached, f.name))
			total -= f.bytes
		}
	}
}

// Blob opens the frames of a blob, those from before a restart included, each
// verified now. fetching says that the blob is not in the content store: its
// frames are staged then, and cached otherwise. Several may have one blob open;
// each closes it.
func (d *Dir) Blob(info chunk.Blob, fetching bool) (*Blob, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if b := d.open[info.Digest]; b != nil && b.use() {
		return b, nil
	}
	name := info.Digest.Encoded() + suffix
	b := &Blob{dir: d, info: info, path: filepath.Join(d.staged, name), users: 1, at: make([]span, len(info.Sums))}
	if _, err := os.Stat(b.path); errors.Is(err, fs.ErrNotExist) {
		if cached := filepath.Join(d.cached, name); !fetching || exists(cached) {
			b.path, b.cached = cached, true
		}
	}
	if err := b.openFile(); err != nil {
		return nil, fmt.Errorf("open the frames of blob %s: %w", info.Digest, err)
	}
	d.open[info.Digest] = b
	return b, nil
}

// use counts one more opener; a discarded blob is opened anew instead.
func (b *Blob) use() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.dropped {
		b.users++
	}
	return !b.dropped
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// Blob is the frames of one blob. It is safe for concurrent use.
type Blob struct {
	dir  *Dir
	info chunk.Blob

	mu      sync.Mutex
	file    *os.File // nil until a frame is there
	path    string
	cached  bool // the file is in the cache
	end     int64
	at      []span
	held    int
	zstd    int // frames that are compressed
	users   int // openers
	readers int // open readers of frames
	dropped bool
}

// span is where a frame's payload lies; length 0 with held false is none.
type span struct {
	off  int64
	len  uint32
	enc  chunk.Encoding
	held bool
}

// openFile reads what is there. A file that is not there is made by the first
// Put.
func (b *Blob) openFile() error {
	f, err := os.OpenFile(b.path, os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if b.cached {
		now := time.Now()
		_ = os.Chtimes(b.path, now, now) // recency of use; only eviction cares
	}
	b.file = f
	if err := b.scan(); err != nil {
		f.Close()
		b.file = nil
		return err
	}
	return nil
}

// scan verifies every record and cuts the file off after the last whole one.
func (b *Blob) scan() error {
	st, err := b.file.Stat()
	if err != nil {
		return err
	}
	payload, raw := make([]byte, 0, b.info.ChunkBytes), make([]byte, 0, b.info.ChunkBytes)
	damaged := 0
	for b.end+headerBytes <= st.Size() {
		h, err := b.readHeader(b.end)
		if err != nil || b.end+headerBytes+int64(h.length) > st.Size() {
			damaged++
			break
		}
		payload = payload[:h.length]
		if _, err := b.file.ReadAt(payload, b.end+headerBytes); err != nil {
			return err
		}
		if b.verify(h, payload, raw) {
			b.book(h.chunk, span{b.end + headerBytes, h.length, h.enc, true})
		} else {
			damaged++
		}
		b.end += headerBytes + int64(h.length)
	}
	if damaged > 0 {
		b.dir.log.Warn("staged frames are damaged; they are fetched again", "blob", b.info.Digest, "records", damaged, "path", b.path)
	}
	if b.end < st.Size() {
		return b.file.Truncate(b.end)
	}
	return nil
}

type header struct {
	chunk  int
	enc    chunk.Encoding
	length uint32
	crc    uint32
	bytes  [headerBytes]byte
}

func (b *Blob) readHeader(off int64) (header, error) {
	var h header
	if _, err := b.file.ReadAt(h.bytes[:], off); err != nil {
		return h, err
	}
	p := h.bytes[:]
	h.chunk, h.enc = int(binary.BigEndian.Uint32(p[4:])), p[8]
	h.length, h.crc = binary.BigEndian.Uint32(p[12:]), binary.BigEndian.Uint32(p[16:])
	if string(p[:4]) != string(magic) || h.chunk >= len(b.at) || int64(h.length) > b.info.ChunkBytes {
		return h, errors.New("no record")
	}
	return h, nil
}

// verify checks a record's sum and then the chunk that comes out of it.
func (b *Blob) verify(h header, payload, scratch []byte) bool {
	if crc32.Update(crc32.Checksum(h.bytes[:16], castagnoli), castagnoli, payload) != h.crc {
		return false
	}
	raw, err := b.dir.codec.Decode(scratch, h.enc, payload, b.info.ChunkLen(h.chunk))
	return err == nil && sha256.Sum256(raw) == b.info.Sums[h.chunk]
}

// book notes where a frame lies.
func (b *Blob) book(n int, s span) {
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
// is here already is left as it is.
func (b *Blob) Put(n int, enc chunk.Encoding, payload []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.at[n].held:
		return nil
	case b.dropped:
		return fmt.Errorf("stage chunk %d of %s: %w", n, b.info.Digest, fs.ErrClosed)
	}
	if err := b.create(); err != nil {
		return fmt.Errorf("stage chunk %d of %s: %w", n, b.info.Digest, err)
	}
	rec := make([]byte, headerBytes, headerBytes+len(payload))
	copy(rec, magic)
	binary.BigEndian.PutUint32(rec[4:], uint32(n))
	rec[8] = enc
	binary.BigEndian.PutUint32(rec[12:], uint32(len(payload)))
	crc := crc32.Update(crc32.Checksum(rec[:16], castagnoli), castagnoli, payload)
	binary.BigEndian.PutUint32(rec[16:], crc)
	_, err := b.file.WriteAt(rec, b.end)
	if err == nil {
		_, err = b.file.WriteAt(payload, b.end+headerBytes)
	}
	if err != nil {
		return fmt.Errorf("stage chunk %d of %s: %w", n, b.info.Digest, errors.Join(err, b.file.Truncate(b.end)))
	}
	b.book(n, span{b.end + headerBytes, uint32(len(payload)), enc, true})
	b.end += int64(headerBytes + len(payload))
	return nil
}

func (b *Blob) create() error {
	if b.file != nil {
		return nil
	}
	f, err := os.OpenFile(b.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	b.file = f
	return nil
}

// Frame opens the frame of chunk n. The error wraps fs.ErrNotExist where it is
// not here. The payload stays readable until it is closed, whatever becomes of
// the file.
func (b *Blob) Frame(n int) (enc chunk.Encoding, bytes int64, payload io.ReadCloser, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.at[n]
	if !s.held || b.file == nil {
		return 0, 0, nil, fmt.Errorf("frame of chunk %d of %s: %w", n, b.info.Digest, fs.ErrNotExist)
	}
	b.readers++
	r := &frameReader{SectionReader: io.NewSectionReader(b.file, s.off, int64(s.len)), blob: b}
	return s.enc, int64(s.len), r, nil
}

type frameReader struct {
	*io.SectionReader
	blob *Blob
	once sync.Once
}

// Close implements io.Closer.
func (r *frameReader) Close() error {
	r.once.Do(func() {
		r.blob.mu.Lock()
		defer r.blob.mu.Unlock()
		r.blob.readers--
		r.blob.closeFileIfIdle()
	})
	return nil
}

// Drop forgets the frame of chunk n, which turned out to be damaged.
func (b *Blob) Drop(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.at[n].held {
		b.held--
		b.at[n] = span{}
	}
}

// Finish says that the blob is in the content store. Its frames move to the cache
// where compressing them again would cost something, and are removed otherwise:
// raw chunks can be read from the content store.
func (b *Blob) Finish() {
	b.dir.mu.Lock()
	defer b.dir.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cached || b.dropped || b.file == nil {
		b.cached = true
		b.path = filepath.Join(b.dir.cached, filepath.Base(b.path))
		return
	}
	if b.zstd > 0 && b.end <= b.dir.cacheBytes {
		to := filepath.Join(b.dir.cached, filepath.Base(b.path))
		if err := os.Rename(b.path, to); err == nil {
			b.path, b.cached = to, true
			b.dir.evictLocked()
			return
		}
	}
	b.dropLocked()
}

// Discard removes every frame: what they made was not the blob.
func (b *Blob) Discard() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropLocked()
}

// dropLocked removes the file; open readers keep it until they are closed.
func (b *Blob) dropLocked() {
	b.dir.remove(b.path)
	b.dropped = true
	clear(b.at)
	b.held = 0
	b.closeFileIfIdle()
}

// Close ends one opener's use.
func (b *Blob) Close() {
	b.dir.mu.Lock()
	defer b.dir.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.users--; b.users > 0 {
		return
	}
	if b.dir.open[b.info.Digest] == b {
		delete(b.dir.open, b.info.Digest)
	}
	b.closeFileIfIdle()
	if b.cached {
		b.dir.evictLocked()
	}
}

// closeFileIfIdle closes the file once nobody can ask for a frame and no reader
// is open.
func (b *Blob) closeFileIfIdle() {
	if b.file != nil && b.readers == 0 && (b.users == 0 || b.dropped) {
		b.file.Close()
		b.file = nil
	}
}
