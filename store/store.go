// Package store is what an image is on this host: where it is found, how it is
// cut, what of it is here, and how it becomes visible.
//
// It composes containerd (ctrd), the cutting (chunk) and the frames on disk
// (stage), and keeps the seed indexes. It knows no peers and no network: chunks
// come in through Image.Put and go out through Image.Frame.
//
// Invariant: every chunk that comes in is verified by its digest before it is
// staged, every blob by containerd before it is committed, and an image is named
// only when all of it is there.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/chunk"
	"seeder/store/ctrd"
	"seeder/store/stage"
)

// defaultCacheBytes bounds the frames of finished blobs: a few images' worth.
const defaultCacheBytes = 2 << 30

// Config says where things are. CacheBytes 0 stands for 2 GiB.
type Config struct {
	DataDir    string
	Containerd ctrd.Config
	CacheBytes int64
	Log        *slog.Logger
}

// Store is this host's images. It is safe for concurrent use.
type Store struct {
	cfg   Config
	log   *slog.Logger
	ctrd  *ctrd.Containerd
	stage *stage.Dir
	codec *chunk.Codec
	seeds string

	blobs keyLock[digest.Digest] // one writer for each blob
	work  sync.Pool              // buffers of a chunk
}

// Open prepares the directories below data_dir. Containerd need not be there.
func Open(_ context.Context, cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = defaultCacheBytes
	}
	s := &Store{cfg: cfg, log: cfg.Log, codec: chunk.NewCodec(), seeds: filepath.Join(cfg.DataDir, "seeds")}
	s.work.New = func() any { b := make([]byte, 0, chunk.MaxBytes); return &b }
	if err := os.MkdirAll(s.seeds, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of seed indexes: %w", err)
	}
	var err error
	if s.stage, err = stage.Open(cfg.DataDir, cfg.CacheBytes, s.codec, cfg.Log); err != nil {
		return nil, err
	}
	if cfg.Containerd.Root == "" {
		cfg.Containerd.Root = filepath.Join(cfg.DataDir, "containerd")
	}
	if cfg.Containerd.Log == nil {
		cfg.Containerd.Log = cfg.Log
	}
	if s.ctrd, err = ctrd.Open(cfg.Containerd); err != nil {
		return nil, err
	}
	return s, nil
}

// Close ends the connection to containerd.
func (s *Store) Close() error { return s.ctrd.Close() }

// Prepared is an image that is ready to be announced.
type Prepared struct {
	Reference string
	Target    ocispec.Descriptor
	Index     []byte        // the seed index
	Digest    digest.Digest // of Index
	Bytes     int64         // of all blobs as stored
}

// Prepare makes the seed index of an image that this host's containerd has, keeps
// it, and makes the image here what it will be elsewhere: unpacked, named,
// labelled. An unknown reference, and an incomplete image, are errors that name
// what is near and what lacks; they wrap fs.ErrNotExist.
func (s *Store) Prepare(ctx context.Context, ref string) (p Prepared, err error) {
	ref, err = ctrd.NormalizeRef(ref)
	if err != nil {
		return p, err
	}
	target, err := s.ctrd.Resolve(ctx, ref)
	if err != nil {
		return p, err
	}
	ctx, release, err := s.ctrd.Lease(ctx, "announce-"+target.Digest.Encoded())
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, release(context.WithoutCancel(ctx))) }()
	blobs, err := s.ctrd.Walk(ctx, target)
	if err != nil {
		return p, err
	}
	index, bytes, err := s.cut(ctx, target, blobs)
	if err != nil {
		return p, fmt.Errorf("prepare %s: %w", ref, err)
	}
	p = Prepared{Reference: ref, Target: index.Target, Bytes: bytes}
	if p.Index, err = index.Encode(); err != nil {
		return p, fmt.Errorf("prepare %s: %w", ref, err)
	}
	p.Digest = digest.FromBytes(p.Index)
	if err := s.keepIndex(p.Digest, p.Index); err != nil {
		return p, err
	}
	if err := s.ctrd.Settle(ctx, ref, target); err != nil {
		return p, fmt.Errorf("prepare %s: %w", ref, err)
	}
	return p, nil
}

// cut reads every blob and makes the seed index.
func (s *Store) cut(ctx context.Context, target ocispec.Descriptor, blobs []ctrd.Blob) (chunk.Index, int64, error) {
	var out []chunk.Blob
	var total int64
	for _, b := range blobs {
		ra, err := s.ctrd.ReaderAt(ctx, b.Digest)
		if err != nil {
			return chunk.Index{}, 0, err
		}
		cb := chunk.Blob{
			Digest: b.Digest, Bytes: ra.Size(), MediaType: b.MediaType, Platforms: b.For, ChunkBytes: chunk.SizeFor(ra.Size()),
		}
		cb.Sums, err = chunk.Sum(ctx, ra, cb.Bytes, cb.ChunkBytes)
		if err := errors.Join(err, ra.Close()); err != nil {
			return chunk.Index{}, 0, fmt.Errorf("read blob %s: %w", b.Digest, err)
		}
		total += cb.Bytes
		out = append(out, cb)
	}
	x, err := chunk.New(target, out)
	return x, total, err
}

// keepIndex writes a seed index where SeedIndex finds it.
func (s *Store) keepIndex(d digest.Digest, b []byte) error {
	path := s.indexPath(d)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	tmp, err := os.CreateTemp(s.seeds, ".seed-*")
	if err != nil {
		return fmt.Errorf("keep seed index: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("keep seed index: %w", err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("keep seed index: %w", err)
	}
	return nil
}

func (s *Store) indexPath(d digest.Digest) string {
	return filepath.Join(s.seeds, d.Encoded()+".json")
}

// SeedIndex returns a seed index that this host keeps. One that is damaged is
// removed. The error wraps fs.ErrNotExist where there is none.
func (s *Store) SeedIndex(_ context.Context, d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("seed index %q: %w", d, err)
	}
	f, err := os.Open(s.indexPath(d))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, chunk.MaxIndexBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read seed index: %w", err)
	}
	if digest.FromBytes(b) != d {
		s.log.Warn("a kept seed index is damaged; it is fetched again", "seed", d)
		if err := os.Remove(f.Name()); err != nil {
			return nil, fmt.Errorf("remove the damaged seed index: %w", err)
		}
		return nil, fmt.Errorf("seed index %s: %w", d, fs.ErrNotExist)
	}
	return b, nil
}

// ImportArchive brings the images of an archive into containerd and returns
// their references, ready for Prepare. With ref only that one is named.
func (s *Store) ImportArchive(ctx context.Context, r io.Reader, ref string) ([]string, error) {
	if ref != "" {
		var err error
		if ref, err = ctrd.NormalizeRef(ref); err != nil {
			return nil, err
		}
	}
	return s.ctrd.ImportArchive(ctx, r, ref)
}

// List maps the references that have an image record to their targets.
func (s *Store) List(ctx context.Context) (map[string]digest.Digest, error) { return s.ctrd.List(ctx) }

// Check says whether ref is at target, complete and visible to the kubelet;
// where it is not, reason says what lacks.
func (s *Store) Check(ctx context.Context, ref string, target digest.Digest) (ready bool, reason string, err error) {
	return s.ctrd.Check(ctx, ref, target)
}

// Remove deletes an image's names; containerd collects what only they needed.
func (s *Store) Remove(ctx context.Context, ref string) error { return s.ctrd.Delete(ctx, ref) }

// Changes wakes up after image records changed.
func (s *Store) Changes(ctx context.Context) <-chan struct{} { return s.ctrd.Changes(ctx) }

// Health asks whether containerd answers.
func (s *Store) Health(ctx context.Context) (address, version string, err error) {
	return s.ctrd.Health(ctx)
}

// buffer borrows the memory of a chunk.
func (s *Store) buffer() *[]byte    { return s.work.Get().(*[]byte) }
func (s *Store) giveBack(b *[]byte) { s.work.Put(b) }

// keyLock is a lock for each key. The zero value is ready.
type keyLock[K comparable] struct {
	mu   sync.Mutex
	held map[K]chan struct{}
}

// lock waits for the key's lock; unlock frees it.
func (l *keyLock[K]) lock(ctx context.Context, k K) (unlock func(), err error) {
	for {
		l.mu.Lock()
		if l.held == nil {
			l.held = map[K]chan struct{}{}
		}
		wait, taken := l.held[k]
		if !taken {
			free := make(chan struct{})
			l.held[k] = free
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, k)
				l.mu.Unlock()
				close(free)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
