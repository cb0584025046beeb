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
	"log/slog"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"seeder/store/chunk"
	"seeder/store/ctrd"
	"seeder/store/imageref"
	"seeder/store/pace"
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
	*Names
	cfg   Config
	ctrd  *ctrd.Containerd
	stage *stage.Dir
	seeds *seedDir
	disks *disks
	locks locks
	ahead ahead
	work  work

	// Deltas are those of layers.
	Deltas *Deltas

	keeping keeping // of the cache within its bound

	cutsMu sync.Mutex
	cuts   map[digest.Digest][]string // the names of blobs by stage, by seed index

	mu   sync.Mutex
	open map[string]*blob // by stage.Name
}

// locks say who works on what. Where several are held at once they are taken in this order:
// archives, imports or prepares, writes.
type locks struct {
	archives sync.RWMutex           // read: an archive is being imported
	imports  keyLock[digest.Digest] // one import of each target
	prepares keyLock[digest.Digest] // one announcement of each target
	writes   keyLock[digest.Digest] // one writer of each blob
}

// work is what the chunks under way share.
type work struct {
	codec      *chunk.Codec
	pace       *pace.Pace
	sums       sums
	buffers    chunk.Buffers
	verifying  chan struct{} // slots
	near       atomic.Int64  // bytes that were handed over and not taken yet
	compressed atomic.Int64  // chunks, since the store was opened
	leaseUse   time.Duration // how long one lease is used before it is renewed
}

// Compressed is how many chunks this process has compressed: what came from others as
// frames is passed on as it came, and what the cache keeps is not compressed again.
func (s *Store) Compressed() int64 { return s.work.compressed.Load() }

// Open prepares the directories below data_dir. Containerd need not be there.
func Open(_ context.Context, cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.statFS == nil {
		cfg.statFS = statFS
	}
	s := &Store{cfg: cfg, open: map[string]*blob{}}
	s.work.codec, s.work.pace, s.work.sums.of = chunk.NewCodec(), pace.New(), map[string]ctrd.Stamp{}
	s.work.verifying = make(chan struct{}, min(runtime.GOMAXPROCS(0), 4))
	var err error
	if s.seeds, err = openSeeds(filepath.Join(cfg.DataDir, "seeds"), cfg.Log); err != nil {
		return nil, err
	}
	s.disks = &disks{cfg: cfg}
	if s.stage, err = stage.Open(cfg.DataDir, s.disks.cacheBound, s.work.codec, cfg.Log); err != nil {
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
	s.work.leaseUse = cfg.Containerd.LeaseTTL / 2
	if s.ctrd, err = ctrd.Open(cfg.Containerd); err != nil {
		return nil, err
	}
	s.Names, s.disks.ctrd, s.disks.stage = &Names{s.ctrd}, s.ctrd, s.stage
	if s.Deltas, err = openDeltas(s); err != nil {
		return nil, errors.Join(err, s.ctrd.Close())
	}
	s.ahead.start()
	s.keeping.start(s.disks.giveWay)
	return s, nil
}

// Close ends the work in the background and the connection to containerd.
func (s *Store) Close() error {
	s.keeping.stop()
	s.ahead.stop()
	s.Deltas.Close()
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
// labelled, unless ImportArchive has just done that (Settled). An unknown reference or
// target, and an incomplete image, are errors that name what is near and what lacks; they
// wrap fs.ErrNotExist. An image that containerd has under another way to write ref is
// named ref, for which the kubelet looks; Said tells that.
//
// AnyPlatform is for an image that every host takes, whatever platform its config names. Of
// an index of one image that is its manifest, among which containerd does not choose by
// platform.
func (s *Store) Prepare(ctx context.Context, ref string, o chunk.PrepareOptions) (p chunk.Prepared, err error) {
	ref, err = imageref.Normalize(ref)
	if err != nil {
		return p, err
	}
	target, said, err := s.find(ctx, ref, o.At, o.AnyPlatform)
	if err != nil {
		return p, err
	}
	unlock, err := s.locks.prepares.lock(ctx, target.Digest) // one of them has the lease
	if err != nil {
		return p, err
	}
	defer unlock()
	ctx, release, err := s.ctrd.Leases.Take(ctx, forAnnounce+target.Digest.Encoded())
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, release(ctx)) }()
	if o.At != "" { // what nobody has named may be collected at any time
		if err := s.ctrd.Leases.Protect(ctx, target); err != nil {
			return p, err
		}
	}
	blobs, err := s.ctrd.Content.Walk(ctx, target)
	if err != nil {
		return p, err
	}
	if o.AnyPlatform {
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
	if err := s.seeds.keep(p.SeedDigest(), p.Index); err != nil {
		return p, err
	}
	s.cfg.Log.Debug("image cut", "ref", ref, "digest", target.Digest, "seed", p.SeedDigest())
	if o.Settled == target.Digest {
		return p, nil
	}
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
	var got digest.Digest
	cb.Sums, got, err = chunk.SumWhole(ctx, ra, cb.Bytes, cb.ChunkBytes)
	if err := errors.Join(err, ra.Close()); err != nil {
		return chunk.Blob{}, fmt.Errorf("read blob %s: %w", b.Digest, err)
	}
	if got != b.Digest {
		s.ctrd.Content.MarkDamaged(b.Digest, stampOf(ra))
		return chunk.Blob{}, fmt.Errorf("blob %s is damaged in containerd's content store: what is there has the digest %s; `seeder announce --from` of an archive that has it replaces it", b.Digest, got)
	}
	s.work.sums.set(stage.Name(cb), stampOf(ra))
	return cb, nil
}

// SeedIndex returns a seed index that this host keeps. One that is damaged is
// removed. The error wraps fs.ErrNotExist where there is none.
func (s *Store) SeedIndex(_ context.Context, d digest.Digest) ([]byte, error) { return s.seeds.read(d) }

// Disks are data_dir and, where it can be seen from here, containerd's directory.
func (s *Store) Disks(ctx context.Context) []Disk { return s.disks.list(ctx) }
