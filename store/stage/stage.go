// Package stage keeps frames on disk: the frames of blobs that are being fetched, and in a
// bounded cache the frames of finished blobs. So a chunk is compressed once, and a node that
// comes later costs no CPU.
//
// It owns the files below its directories and their format. It never decides
// what is fetched and never talks to containerd.
//
// One blob, as one seed index cuts it, is one append-only file of records (see
// record.go). A crash of the process loses nothing. A crash of the machine cuts off or garbles
// what the kernel had not written yet, about half a minute of it. Files are not synced,
// because a loss only costs fetching again.
//
// Invariant: a frame counts as held only after its chunk was verified by its
// digest in this process: by the one that puts it, or when the file is first opened
// after a restart. Nothing on disk is trusted. What a frame holds is said by the
// cut that it was verified against: two indexes that cut one blob differently, or
// lie about it, never share a frame.
package stage

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"seeder/store/chunk"
)

const (
	suffix = ".frames"
	// staleAfter is how long the frames of a blob that nobody fetches are kept: a
	// host may be down over a long weekend and go on where it was.
	staleAfter = 7 * 24 * time.Hour
)

// Dir is the directory of all frames. It is safe for concurrent use.
//
// Where both are held, a Blob's mutex is taken before that of Dir.
type Dir struct {
	staged, cached string
	bound          Bound
	codec          *chunk.Codec
	buffers        chunk.Buffers
	log            *slog.Logger

	mu    sync.Mutex
	blobs map[string]*Blob // by file name; those without users keep what was verified
	used  Use              // what the cache holds
}

// Open makes the directories and forgets what nobody went on fetching. bound
// bounds the cache of the frames of finished blobs.
func Open(dir string, bound Bound, codec *chunk.Codec, log *slog.Logger) (*Dir, error) {
	d := &Dir{
		staged: filepath.Join(dir, "stage"), cached: filepath.Join(dir, "cache"),
		bound: bound, codec: codec, log: log, blobs: map[string]*Blob{},
	}
	for _, p := range []string{d.staged, d.cached} {
		if err := os.MkdirAll(p, 0o700); err != nil {
			return nil, fmt.Errorf("make the staging directory: %w", err)
		}
	}
	d.Sweep(time.Now())
	return d, nil
}

// Name is the name of a blob as it is cut: its digest and a sum of the cut. Blobs
// with equal names have equal chunks.
func Name(info chunk.Blob) string {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(info.ChunkBytes)))
	for i := range info.Sums {
		h.Write(info.Sums[i][:])
	}
	return info.Digest.Encoded() + "-" + hex.EncodeToString(h.Sum(nil)[:16])
}

// Sweep removes staged blobs that nobody has written to for a week, and the
// least recently used of the cache where it is too large.
func (d *Dir) Sweep(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.files(d.staged) {
		if now.Sub(f.modified) > staleAfter {
			d.removeIdle(d.staged, f.name)
		}
	}
	d.evict(Use{}, Use{})
}

// Staged names the staged blobs.
func (d *Dir) Staged() []string { return d.names(d.staged) }

func (d *Dir) names(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		d.log.Warn("failed to list frames", "dir", dir, "err", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok {
			names = append(names, name)
		}
	}
	return names
}

// Drop removes what is staged of the blobs of these names, but nothing in use. It
// returns the bytes of the files that it removed.
func (d *Dir) Drop(names ...string) (bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range names {
		info, err := os.Stat(filepath.Join(d.staged, name+suffix))
		if d.removeIdle(d.staged, name+suffix) && err == nil {
			bytes += info.Size()
		}
	}
	return bytes
}

type file struct {
	name     string // of the file
	bytes    int64
	modified time.Time
}

// files lists a directory, the least recently used first.
func (d *Dir) files(dir string) []file {
	entries, err := os.ReadDir(dir)
	if err != nil {
		d.log.Warn("failed to list frames", "dir", dir, "err", err)
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

// removeIdle removes a file that nobody uses. The caller holds the mutex.
func (d *Dir) removeIdle(dir, name string) bool {
	if b := d.blobs[strings.TrimSuffix(name, suffix)]; b != nil {
		if b.users > 0 {
			return false
		}
		delete(d.blobs, strings.TrimSuffix(name, suffix))
	}
	return d.remove(filepath.Join(dir, name))
}

func (d *Dir) remove(path string) bool {
	err := os.Remove(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("failed to remove frames", "path", path, "err", err)
		return false
	}
	return true
}

// Blob opens the frames of a blob; those from before a restart are verified now.
// fetching says that the blob is not in the content store: its frames are staged
// then, and cached otherwise. Several may have one blob open; each closes it.
func (d *Dir) Blob(info chunk.Blob, fetching bool) (*Blob, error) {
	name := Name(info)
	d.mu.Lock()
	b := d.blobs[name]
	if b == nil {
		b = &Blob{dir: d, info: info, name: name, at: make([]span, len(info.Sums))}
		d.blobs[name] = b
	}
	b.users++
	d.mu.Unlock()
	if err := b.load(fetching); err != nil {
		b.Close()
		return nil, fmt.Errorf("open the frames of blob %s: %w", info.Digest, err)
	}
	return b, nil
}
