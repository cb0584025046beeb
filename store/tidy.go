package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
	"seeder/store/stage"
)

// The names of leases begin with what they are for and end with the target.
const (
	forImport   = "import-"
	forAnnounce = "announce-"
	forArchive  = "archive-"
)

// Tidy removes what work that will not go on has left behind, a crash or a newer
// announcement having ended it: leases, frames and kept seed indexes of images that
// are not among those named by the digests of their seed indexes and of their
// targets. What is being fetched stays. The lease of an import goes once its image is
// ready: it was cut off between the image's name and the end of its lease.
func (s *Store) Tidy(ctx context.Context, seeds, targets []digest.Digest) error {
	seeds = s.withDeltas(seeds)
	_, err := s.DropFrames(ctx, seeds)
	return errors.Join(s.tidyLeases(ctx, targets), err, s.recheckStaged(ctx), s.seeds.tidy(seeds), s.ctrd.Conn.CollectIngests(ctx))
}

// tidyLeases drops leases whose work does not run, but keeps that of an import
// which will be tried again: it protects what was written already. Where the image has
// become ready otherwise nobody tries again, and nobody else would drop the lease.
func (s *Store) tidyLeases(ctx context.Context, targets []digest.Digest) error {
	keep := map[digest.Digest]bool{}
	for _, t := range targets {
		keep[t] = true
	}
	names, err := s.ctrd.Leases.Names(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if strings.HasPrefix(name, forArchive) {
			if s.locks.archives.TryLock() { // no import runs: it was cut off by a kill
				errs = append(errs, s.ctrd.Leases.Drop(ctx, name))
				s.locks.archives.Unlock()
			}
			continue
		}
		locks, hex := &s.locks.imports, ""
		if rest, ok := strings.CutPrefix(name, forImport); ok {
			hex = rest
		} else if rest, ok := strings.CutPrefix(name, forAnnounce); ok {
			locks, hex = &s.locks.prepares, rest
		}
		target := digest.NewDigestFromEncoded(digest.SHA256, hex)
		if target.Validate() != nil {
			continue
		}
		if unlock, ok := locks.try(target); ok {
			if locks != &s.locks.imports || !keep[target] || s.isReady(ctx, target) {
				errs = append(errs, s.ctrd.Leases.Drop(ctx, name))
			}
			unlock()
		}
	}
	return errors.Join(errs...)
}

// isReady reports whether an image is ready under some name.
func (s *Store) isReady(ctx context.Context, target digest.Digest) bool {
	have, _ := s.List(ctx) // none are where it fails
	for ref, d := range have {
		if d != target {
			continue
		}
		if ready, _, err := s.Check(ctx, ref, target); err == nil && ready {
			return true
		}
	}
	return false
}

// DropFrames removes the frames, staged and cached, of blobs that none of the images
// has that are named by the digests of their seed indexes, and returns the bytes that
// it freed. What is being fetched stays.
func (s *Store) DropFrames(ctx context.Context, seeds []digest.Digest) (freed int64, err error) {
	unexplained := map[string]bool{}
	for _, name := range slices.Concat(s.stage.Staged(), s.stage.Cached()) {
		unexplained[name] = true
	}
	known := map[digest.Digest][]string{}
	s.cutsMu.Lock()
	defer s.cutsMu.Unlock()
	for _, seed := range s.withDeltas(seeds) {
		if len(unexplained) == 0 {
			break
		}
		names, err := s.cutsOf(ctx, seed)
		if err != nil {
			return 0, err
		}
		known[seed] = names
		for _, name := range names {
			delete(unexplained, name)
		}
	}
	s.cuts = known
	names := slices.Collect(maps.Keys(unexplained))
	return s.stage.Drop(names...) + s.stage.Forget(names...).Bytes, nil
}

// withDeltas adds the seed indexes of the deltas of images.
func (s *Store) withDeltas(images []digest.Digest) []digest.Digest {
	return slices.Concat(images, s.Deltas.Tidy(images))
}

// cutsOf names the blobs of a seed index as stage does; none where it is not here:
// nothing was fetched without it. The caller holds cutsMu.
func (s *Store) cutsOf(ctx context.Context, seed digest.Digest) ([]string, error) {
	if names, ok := s.cuts[seed]; ok {
		return names, nil
	}
	b, err := s.SeedIndex(ctx, seed)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	index, err := chunk.Decode(b)
	if err != nil {
		return nil, fmt.Errorf("seed index %s: %w", seed, err)
	}
	var names []string
	for _, blob := range index.Blobs {
		names = append(names, stage.Name(blob))
	}
	return names, nil
}
