package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"seeder/store/artifact"
	"seeder/store/ctrd"
	"seeder/store/imageref"
	"seeder/store/unpack"
)

// Import makes the image visible as ref. It runs beside the fetch: each wanted
// blob, in the order of the seed index, streams into the content store as its
// contiguous prefix grows, each layer is unpacked as soon as it is committed,
// and names come last. It returns when the image is ready, or when ctx ends;
// what was written then is gone on with by the next call. With everything here
// it repairs names, labels and unpacking.
func (i *Image) Import(ctx context.Context, ref string) error {
	ref, err := imageref.Normalize(ref)
	if err != nil {
		return err
	}
	s, target := i.store, i.index.Target
	unlock, err := s.locks.imports.lock(ctx, target.Digest)
	if err != nil {
		return err
	}
	defer unlock()
	for {
		err := i.importOnce(ctx, ref)
		if !errors.Is(err, errLeaseOld) || ctx.Err() != nil {
			return err
		}
		s.cfg.Log.Debug("renewed the lease", "ref", ref, "digest", target.Digest)
	}
}

// errLeaseOld is why an import is interrupted: a lease can only be renewed while
// nobody uses it.
var errLeaseOld = errors.New("the lease must be renewed")

// importOnce is Import for as long as a lease may be used.
func (i *Image) importOnce(ctx context.Context, ref string) error {
	s, target := i.store, i.index.Target
	// A lease that is not released by a failed import keeps what was written for
	// the next try, and expires by itself.
	lctx, release, err := s.ctrd.Leases.Take(ctx, forImport+target.Digest.Encoded())
	if err != nil {
		return err
	}
	tctx, cancel := context.WithTimeoutCause(lctx, s.work.leaseUse, errLeaseOld)
	defer cancel()
	run := &importRun{i, newBlobSet(), sync.OnceValues(func() (*ctrd.Unpacker, error) { return s.ctrd.Runtime.Unpacker(tctx, target) })}
	group, gctx := errgroup.WithContext(tctx)
	group.Go(func() error { return run.ingestAll(gctx) })
	group.Go(func() error { return run.unpack(gctx) })
	if err := group.Wait(); err != nil {
		if tctx.Err() != nil {
			return context.Cause(tctx)
		}
		return err
	}
	if err := s.ctrd.Images.Publish(lctx, ref, target, run.committed.all()...); err != nil {
		return err
	}
	s.cfg.Log.Debug("named", "ref", ref, "digest", target.Digest)
	return release(ctx)
}

// importRun is one try to import an image: its blobs are committed and its layers
// unpacked side by side.
type importRun struct {
	*Image
	committed *blobSet
	// unpacker is called once manifests and configs are committed.
	unpacker func() (*ctrd.Unpacker, error)
}

// ingestAll commits every wanted blob in order. Those that are here already come
// first, since nothing protects them until the lease has them: also those that only
// other hosts need, where a damaged manifest is replaced that keeps them.
func (r *importRun) ingestAll(ctx context.Context) error {
	damaged := r.hasDamaged(ctx)
	for _, present := range []bool{true, false} {
		for k, b := range r.blobs {
			needed := r.wanted[k] || present && damaged
			if !needed || r.committed.has(b.info.Digest) || (present && !b.isPresent()) {
				continue
			}
			labels := r.labels(b)
			exists, err := (&writing{b, labels}).ingest(ctx)
			if err != nil {
				return fmt.Errorf("import blob %s: %w", b.info.Digest, err)
			}
			r.committed.add(b.info.Digest, labels != nil && !exists)
		}
	}
	return nil
}

// hasDamaged reports whether a wanted blob is to be replaced.
func (r *importRun) hasDamaged(ctx context.Context) bool {
	for k, b := range r.blobs {
		if r.wanted[k] && r.store.ctrd.Content.Damaged(ctx, b.info.Digest) {
			return true
		}
	}
	return false
}

// labels are what a layer's blob is committed with, nil where they are not known yet:
// they are put there once it is unpacked.
func (r *importRun) labels(b *blob) map[string]string {
	if !artifact.IsLayer(b.info.MediaType) || r.store.ctrd.Conn.StoreOnly() {
		return nil
	}
	for _, d := range r.documents() {
		if !r.committed.has(d) {
			return nil
		}
	}
	if u, err := r.unpacker(); err == nil { // else unpack says why
		return u.LayerLabels(b.info.Digest)
	}
	return nil
}

// documents are the wanted manifests and configs.
func (i *Image) documents() []digest.Digest {
	var out []digest.Digest
	for k, b := range i.blobs {
		if i.wanted[k] && !artifact.IsLayer(b.info.MediaType) {
			out = append(out, b.info.Digest)
		}
	}
	return out
}

// unpack unpacks each layer once it and those below it are committed.
func (r *importRun) unpack(ctx context.Context) error {
	if r.store.ctrd.Conn.StoreOnly() {
		return nil
	}
	for _, d := range r.documents() { // they come before the layers
		if _, err := r.committed.wait(ctx, d); err != nil {
			return err
		}
	}
	u, err := r.unpacker()
	if err != nil {
		return err
	}
	stacked, err := u.Stacked(ctx)
	if err != nil {
		return err
	}
	r.unpacked.Store(0)
	r.layers.Store(int64(len(u.Layers())))
	next, layers := r.arrivals(u.Layers()), u.Layers()
	done := func(ctx context.Context, k int) error {
		labelled, err := r.committed.wait(ctx, layers[k])
		if err == nil && !labelled {
			err = u.Label(ctx, k)
		}
		if err != nil {
			return err
		}
		r.unpacked.Add(1)
		r.store.cfg.Log.Debug("layer unpacked", "layer", layers[k])
		return nil
	}
	if !stacked {
		if err := u.All(ctx, next, done); err != nil {
			return err
		}
		return u.Finish(ctx)
	}
	for k := range layers {
		if err := done(ctx, k); err != nil {
			return err
		}
	}
	return u.Finish(ctx)
}

// arrivals are the layers in the order in which their blobs are committed. Two layers may
// have the same blob.
func (r *importRun) arrivals(layers []digest.Digest) unpack.Arrivals {
	at := map[digest.Digest][]int{}
	for k, l := range layers {
		at[l] = append(at[l], k)
	}
	var here []int
	n := 0
	return func(ctx context.Context) (int, error) {
		for len(here) == 0 {
			d, err := r.committed.nth(ctx, n)
			if err != nil {
				return 0, err
			}
			here = at[d]
			n++
		}
		k := here[0]
		here = here[1:]
		return k, nil
	}
}

// Unpacked is how many layers the import that runs has unpacked, of how many; of 0 where
// it does not know its layers yet.
func (i *Image) Unpacked() (layers, of int) {
	return int(i.unpacked.Load()), int(i.layers.Load())
}

// isCompressed tells compressed layers by the suffix of their media types.
func isCompressed(mediaType string) bool {
	return strings.HasSuffix(mediaType, "gzip") || strings.HasSuffix(mediaType, "zstd")
}

// blobSet is a set of committed blobs that can be waited on.
type blobSet struct {
	blobs map[digest.Digest]bool // whether it has its labels
	order []digest.Digest        // as they came
	cond  chan chan struct{}     // holds the channel that the next add closes; also the lock
}

func newBlobSet() *blobSet {
	s := &blobSet{blobs: map[digest.Digest]bool{}, cond: make(chan chan struct{}, 1)}
	s.cond <- make(chan struct{})
	return s
}

func (s *blobSet) add(d digest.Digest, labelled bool) {
	next := <-s.cond
	if _, ok := s.blobs[d]; !ok {
		s.order = append(s.order, d)
	}
	s.blobs[d] = labelled
	close(next)
	s.cond <- make(chan struct{})
}

func (s *blobSet) has(d digest.Digest) bool {
	next := <-s.cond
	defer func() { s.cond <- next }()
	_, ok := s.blobs[d]
	return ok
}

func (s *blobSet) all() []digest.Digest {
	next := <-s.cond
	defer func() { s.cond <- next }()
	return slices.Clone(s.order)
}

// wait returns when d is there.
func (s *blobSet) wait(ctx context.Context, d digest.Digest) (labelled bool, err error) {
	err = s.until(ctx, func() (there bool) { labelled, there = s.blobs[d]; return there })
	return labelled, err
}

// nth waits for blob n, in the order in which they come, from 0.
func (s *blobSet) nth(ctx context.Context, n int) (d digest.Digest, err error) {
	err = s.until(ctx, func() bool {
		if n >= len(s.order) {
			return false
		}
		d = s.order[n]
		return true
	})
	return d, err
}

// until returns when holds, which looks at the set, has become true.
func (s *blobSet) until(ctx context.Context, holds func() bool) error {
	for {
		next := <-s.cond
		ok := holds()
		s.cond <- next
		if ok {
			return nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
