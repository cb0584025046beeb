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
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"seeder/internal/disk"
	"seeder/store/chunk"
	"seeder/store/ctrd"
	"seeder/store/imageref"
	"seeder/store/stage"
)

// Config says where things are.
type Config struct {
	DataDir    string
	Containerd ctrd.Config
	// Cache is the most that the frames of finished blobs take of the disk that holds
	// DataDir; zero: nothing. A share is at most MaxCacheShare bytes.
	Cache   Reserve
	MinFree Reserve // of the disks that hold DataDir and containerd's content
	Log     *slog.Logger

	// statFS asks for the file system of a directory; nil: the kernel.
	statFS func(dir string) (fileSystem, error)
}

// Store is this host's images. It is safe for concurrent use.
type Store struct {
	cfg   Config
	log   *slog.Logger
	ctrd  *ctrd.Containerd
	stage *stage.Dir
	codec *chunk.Codec
	seeds string

	buffers  chunk.Buffers
	imports  keyLock[digest.Digest] // one import of each target
	prepares keyLock[digest.Digest] // one announcement of each target
	writes   keyLock[digest.Digest] // one writer of each blob
	archives sync.RWMutex           // read: an archive is being imported
	ahead    ahead
	pace     *pace
	keeping  keeping // of the cache within its bound

	leaseUse  time.Duration // how long one lease is used before it is renewed
	verifying chan struct{} // slots
	near      atomic.Int64  // bytes that were handed over and not taken yet

	compressed atomic.Int64 // chunks, since it was opened

	cutsMu sync.Mutex
	cuts   map[digest.Digest][]string // the names of blobs by stage, by seed index

	mu   sync.Mutex
	open map[string]*blob // by stage.Name
	// sums are the files, by stage.Name, from which this process made the sums of a
	// blob's chunks: nobody needs to verify them again before they are served.
	sums map[string]ctrd.Stamp
}

// Compressed is how many chunks this process has compressed: what came from others as
// frames is passed on as it came, and what the cache keeps is not compressed again.
func (s *Store) Compressed() int64 { return s.compressed.Load() }

func (s *Store) summed(name string) ctrd.Stamp {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sums[name]
}

func (s *Store) keepSummed(name string, stamp ctrd.Stamp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sums[name] = stamp; stamp == (ctrd.Stamp{}) {
		delete(s.sums, name)
	}
}

// Open prepares the directories below data_dir. Containerd need not be there.
func Open(_ context.Context, cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.statFS == nil {
		cfg.statFS = statFS
	}
	s := &Store{
		cfg: cfg, log: cfg.Log, codec: chunk.NewCodec(), seeds: filepath.Join(cfg.DataDir, "seeds"),
		verifying: make(chan struct{}, min(runtime.GOMAXPROCS(0), 4)),
		open:      map[string]*blob{}, sums: map[string]ctrd.Stamp{},
		pace: newPace(),
	}
	if err := os.MkdirAll(s.seeds, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of seed indexes: %w", err)
	}
	if err := disk.RemoveUnfinished(s.seeds); err != nil {
		return nil, fmt.Errorf("remove unfinished seed indexes: %w", err)
	}
	var err error
	if s.stage, err = stage.Open(cfg.DataDir, s.cacheBound, s.codec, cfg.Log); err != nil {
		return nil, err
	}
	if cfg.Containerd.Root == "" {
		cfg.Containerd.Root = filepath.Join(cfg.DataDir, "containerd")
	}
	if cfg.Containerd.Log == nil {
		cfg.Containerd.Log = cfg.Log
	}
	if cfg.Containerd.LeaseTTL == 0 {
		cfg.Containerd.LeaseTTL = ctrd.DefaultLeaseTTL
	}
	s.leaseUse = cfg.Containerd.LeaseTTL / 2
	if s.ctrd, err = ctrd.Open(cfg.Containerd); err != nil {
		return nil, err
	}
	s.ahead.start()
	s.keeping.start(s.giveWay)
	return s, nil
}

// Close ends the work in the background and the connection to containerd.
func (s *Store) Close() error {
	s.keeping.stop()
	s.ahead.stop()
	return s.ctrd.Close()
}

// find is the target of ref, and what is to be said of its name.
func (s *Store) find(ctx context.Context, ref string, at digest.Digest, forAll bool) (target ocispec.Descriptor, said string, err error) {
	if at != "" {
		target, err = s.ctrd.Images.Find(ctx, at)
	} else {
		var named ctrd.Named
		named, err = s.ctrd.Images.ResolveNamed(ctx, ref)
		target = named.Target
		switch {
		case named.As != "":
			said = fmt.Sprintf("containerd has it as %s, which the kubelet does not look up; it is announced as %s", named.As, ref)
		case named.Other != "":
			said = fmt.Sprintf("containerd has an older build as %s, which is not announced", named.Other)
		}
	}
	if err == nil {
		err = imageref.CheckDigest(ref, target.Digest)
	}
	if err == nil && forAll {
		target, err = s.ctrd.Content.OnlyManifest(ctx, target)
	}
	return target, said, err
}

// Prepare makes the seed index of an image that this host's containerd has, keeps
// it, and makes the image here what it will be elsewhere: unpacked, named,
// labelled. at is the target that ref gets, as of an earlier version that is
// still here; empty: the one that it has. An unknown reference or target, and an
// incomplete image, are errors that name what is near and what lacks; they wrap
// fs.ErrNotExist. An image that containerd has under another way to write ref is
// named ref, for which the kubelet looks; Said tells that.
//
// anyPlatform is for an image that every host takes, whatever platform its config names. Of
// an index of one image that is its manifest, among which containerd does not choose by
// platform.
func (s *Store) Prepare(ctx context.Context, ref string, at digest.Digest, anyPlatform bool) (p chunk.Prepared, err error) {
	ref, err = imageref.Normalize(ref)
	if err != nil {
		return p, err
	}
	target, said, err := s.find(ctx, ref, at, anyPlatform)
	if err != nil {
		return p, err
	}
	unlock, err := s.prepares.lock(ctx, target.Digest) // one of them has the lease
	if err != nil {
		return p, err
	}
	defer unlock()
	ctx, release, err := s.ctrd.Leases.Take(ctx, forAnnounce+target.Digest.Encoded())
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, release(ctx)) }()
	if at != "" { // what nobody has named may be collected at any time
		if err := s.ctrd.Leases.Protect(ctx, target); err != nil {
			return p, err
		}
	}
	blobs, err := s.ctrd.Content.Walk(ctx, target)
	if err != nil {
		return p, err
	}
	if anyPlatform {
		for i := range blobs {
			blobs[i].For = nil
		}
	}
	index, bytes, err := s.cut(ctx, target, blobs)
	if err != nil {
		return p, fmt.Errorf("prepare %s: %w", ref, err)
	}
	p = chunk.Prepared{Reference: ref, Target: index.Target, Bytes: bytes, Said: said}
	if p.Index, err = index.Encode(); err != nil {
		return p, fmt.Errorf("prepare %s: %w", ref, err)
	}
	if err := s.keepIndex(ctx, p.SeedDigest(), p.Index); err != nil {
		return p, err
	}
	s.log.Debug("image cut", "ref", ref, "digest", target.Digest, "seed", p.SeedDigest())
	here := make([]digest.Digest, len(blobs))
	for i, b := range blobs {
		here[i] = b.Digest
	}
	if err := s.ctrd.Images.Settle(ctx, ref, target, here...); err != nil {
		return p, fmt.Errorf("prepare %s: %w", ref, err)
	}
	return p, nil
}

// cutting is how many blobs are read at once: hashing is what takes the time.
const cutting = 2

// cut reads every blob and makes the seed index.
func (s *Store) cut(ctx context.Context, target ocispec.Descriptor, blobs []ctrd.Blob) (chunk.Index, int64, error) {
	out := make([]chunk.Blob, len(blobs))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(cutting)
	for i, b := range blobs {
		group.Go(func() (err error) {
			out[i], err = s.cutBlob(gctx, b)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return chunk.Index{}, 0, err
	}
	var total int64
	for _, b := range out {
		total += b.Bytes
	}
	x, err := chunk.New(target, out)
	return x, total, err
}

// cutBlob sums the chunks of a blob, and the whole: the damage of one disk must
// not be announced to all hosts.
func (s *Store) cutBlob(ctx context.Context, b ctrd.Blob) (chunk.Blob, error) {
	ra, err := s.ctrd.Content.ReaderAt(ctx, b.Digest)
	if err != nil {
		return chunk.Blob{}, err
	}
	cb := chunk.Blob{
		Digest: b.Digest, Bytes: ra.Size(), MediaType: b.MediaType, Platforms: b.For, ChunkBytes: chunk.SizeFor(ra.Size()),
	}
	whole := &digested{r: ra, digester: digest.SHA256.Digester()}
	cb.Sums, err = chunk.Sum(ctx, whole, cb.Bytes, cb.ChunkBytes)
	if err := errors.Join(err, ra.Close()); err != nil {
		return chunk.Blob{}, fmt.Errorf("read blob %s: %w", b.Digest, err)
	}
	if got := whole.digester.Digest(); got != b.Digest {
		s.ctrd.Content.MarkDamaged(b.Digest, stampOf(ra))
		return chunk.Blob{}, fmt.Errorf("blob %s is damaged in containerd's content store: what is there has the digest %s; `seeder announce --from` of an archive that has it replaces it", b.Digest, got)
	}
	s.keepSummed(stage.Name(cb), stampOf(ra))
	return cb, nil
}

// digested digests what is read through it, from the beginning and in order.
type digested struct {
	r        io.ReaderAt
	digester digest.Digester
}

// ReadAt implements io.ReaderAt.
func (d *digested) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.r.ReadAt(p, off)
	d.digester.Hash().Write(p[:n])
	return n, err
}

// keepIndex writes a seed index where SeedIndex finds it, unless it is there and
// undamaged. Either way it is young again: see Tidy.
func (s *Store) keepIndex(ctx context.Context, d digest.Digest, b []byte) error {
	if _, err := s.SeedIndex(ctx, d); err == nil {
		now := time.Now()
		if err := os.Chtimes(s.indexPath(d), now, now); err != nil {
			return fmt.Errorf("keep seed index %s: %w", d, err)
		}
		return nil
	}
	if err := disk.WriteFile(s.indexPath(d), b); err != nil {
		return fmt.Errorf("keep seed index %s: %w", d, err)
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
	if err != nil || digest.FromBytes(b) != d {
		s.log.Warn("removed a damaged seed index; fetching it again", "seed", d, "path", f.Name(), "err", err)
		if err := os.RemoveAll(f.Name()); err != nil {
			return nil, fmt.Errorf("remove the damaged seed index: %w", err)
		}
		return nil, fmt.Errorf("seed index %s: %w", d, fs.ErrNotExist)
	}
	return b, nil
}

// List maps the references that have an image record to their targets.
func (s *Store) List(ctx context.Context) (map[string]digest.Digest, error) {
	return s.ctrd.Images.List(ctx)
}

// Check says whether ref is at target, complete and visible to the kubelet;
// where it is not, reason says what lacks.
func (s *Store) Check(ctx context.Context, ref string, target digest.Digest) (ready bool, reason string, err error) {
	return s.ctrd.Checks.Check(ctx, ref, target)
}

// Intact says whether the blobs that the last Check of ref saw are still there, as
// far as that can be told without asking anybody.
func (s *Store) Intact(ctx context.Context, ref string) bool { return s.ctrd.Checks.Intact(ctx, ref) }

// Release takes the pins off an image: the kubelet may collect it from now on.
func (s *Store) Release(ctx context.Context, ref string) error { return s.ctrd.Images.Unpin(ctx, ref) }

// ReleaseOthers takes the pins off all versions of the references in wanted that are
// none of their targets there, and says which names had one.
func (s *Store) ReleaseOthers(ctx context.Context, wanted map[string][]digest.Digest) ([]string, error) {
	return s.ctrd.Images.UnpinOthers(ctx, wanted)
}

// Remove deletes an image's names; containerd collects what only they needed. It
// returns how many bytes of blobs that freed; snapshots are not counted.
func (s *Store) Remove(ctx context.Context, ref string) (freedBytes int64, err error) {
	return s.ctrd.Images.Remove(ctx, ref)
}

// FromRegistry reports whether ref was pulled from a registry.
func (s *Store) FromRegistry(ctx context.Context, ref string) (bool, error) {
	return s.ctrd.Images.FromRegistry(ctx, ref)
}

// Preloaded reports whether k3s has brought ref from its agent/images.
func (s *Store) Preloaded(ctx context.Context, ref string) (bool, error) {
	return s.ctrd.Images.Preloaded(ctx, ref)
}

// InUse names the containers that were made from the image of ref.
func (s *Store) InUse(ctx context.Context, ref string) ([]string, error) {
	return s.ctrd.Images.InUse(ctx, ref)
}

// KeepPrevious protects those of targets that are here from garbage collection, and
// no others that it protected before. It has to be called every few hours.
func (s *Store) KeepPrevious(ctx context.Context, targets []digest.Digest) error {
	return s.ctrd.Images.KeepPrevious(ctx, targets)
}

// Has reports whether the target of an image is here, be it named or kept.
func (s *Store) Has(ctx context.Context, target digest.Digest) bool {
	_, here, err := s.ctrd.Content.Has(ctx, target)
	return err == nil && here
}

// Discard releases an earlier target of ref, which stands for another one now.
func (s *Store) Discard(ctx context.Context, ref string, target digest.Digest) error {
	return s.ctrd.Images.Discard(ctx, ref, target)
}

// Local says what containerd has under ref: its ids are the digests by which Docker
// may know the same image.
func (s *Store) Local(ctx context.Context, ref string) (Local, error) {
	ref, err := imageref.Normalize(ref)
	if err != nil {
		return Local{}, err
	}
	return s.ctrd.Images.Local(ctx, ref)
}

// Local is an image of this host's containerd.
type Local = ctrd.Local

// HeedsPins reports whether containerd tells the kubelet what is pinned.
func (s *Store) HeedsPins() bool { return s.ctrd.Conn.HeedsPins() }

// Changes wakes up after image records changed.
func (s *Store) Changes(ctx context.Context) <-chan struct{} { return s.ctrd.Checks.Changes(ctx) }

// Health asks whether containerd answers.
func (s *Store) Health(ctx context.Context) (address, version string, err error) {
	return s.ctrd.Conn.Health(ctx)
}
