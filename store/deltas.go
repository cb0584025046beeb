package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
	"seeder/store/chunk"
	"seeder/store/offers"
)

// deltaShare is the part of what the cache may hold that deltas may have. Their bytes lie
// with the frames of what is being fetched, and are gone with the image that they are of.
const deltaShare = 4

// deltasDir is below data_dir.
const deltasDir = "deltas"

// Deltas are the deltas of this host: those that it makes, and those that it has got. It is
// safe for concurrent use.
type Deltas struct {
	*offers.Maker
	store *Store
}

// openDeltas reads what deltas are kept below data_dir.
func openDeltas(s *Store) (*Deltas, error) {
	d := &Deltas{store: s}
	var err error
	d.Maker, err = offers.New(offers.Config{
		Dir:   filepath.Join(s.cfg.DataDir, deltasDir),
		Open:  d.open,
		Keep:  d.keep,
		Holds: d.holds,
		Room:  s.Room,
		Budget: func() int64 {
			_, limit := s.Cache()
			return limit / deltaShare
		},
		Log: s.cfg.Log,
	})
	return d, err
}

// open opens a layer for package offers.
func (d *Deltas) open(ctx context.Context, blob digest.Digest) (offers.Blob, error) {
	h, err := d.store.OpenHeld(ctx, blob)
	if err != nil {
		return nil, err // no interface with a nil blob in it
	}
	return h, nil
}

// keep cuts a delta like an image of one blob, and stages all its chunks.
func (d *Deltas) keep(ctx context.Context, r io.ReaderAt, bytes int64) (seed digest.Digest, err error) {
	b := chunk.Blob{Bytes: bytes, MediaType: chunk.DeltaMediaType, ChunkBytes: chunk.SizeFor(bytes)}
	if b.Sums, b.Digest, err = chunk.SumWhole(ctx, r, bytes, b.ChunkBytes); err != nil {
		return "", fmt.Errorf("sum a delta: %w", err)
	}
	x, err := chunk.New(ocispec.Descriptor{MediaType: b.MediaType, Digest: b.Digest, Size: bytes}, []chunk.Blob{b})
	if err != nil {
		return "", fmt.Errorf("cut a delta: %w", err)
	}
	index, err := x.Encode()
	if err != nil {
		return "", fmt.Errorf("cut a delta: %w", err)
	}
	img, err := d.store.Image(ctx, index)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	p := d.store.work.buffers.Get(int(min(b.ChunkBytes, bytes)))
	defer d.store.work.buffers.Put(p)
	for n := range img.Len() {
		p = p[:b.ChunkLen(n)]
		if got, err := r.ReadAt(p, int64(n)*b.ChunkBytes); got < len(p) {
			return "", fmt.Errorf("read a delta: %w", err)
		}
		if ok, err := img.Put(ctx, n, chunk.Raw, p); err != nil || !ok {
			return "", errors.Join(fmt.Errorf("keep chunk %d of a delta (verified: %v)", n, ok), err)
		}
	}
	return digest.FromBytes(index), nil
}

// holds reports whether all of a delta is here.
func (d *Deltas) holds(ctx context.Context, seed digest.Digest) bool {
	index, err := d.store.SeedIndex(ctx, seed)
	if err != nil {
		return false
	}
	img, err := d.store.Image(ctx, index)
	if err != nil {
		return false
	}
	defer img.Close()
	return img.Have().Count() == img.Len()
}

// Offers are the deltas that this host has, or with make makes, of layers of the image with
// that seed index, for a host that has bases (offers.Maker). The error wraps fs.ErrNotExist where the
// image is not known here.
func (d *Deltas) Offers(ctx context.Context, image digest.Digest, bases []digest.Digest, make bool) ([]chunk.Offer, <-chan struct{}, error) {
	b, err := d.store.SeedIndex(ctx, image)
	if err != nil {
		return nil, nil, err
	}
	x, err := chunk.Decode(b)
	if err != nil {
		return nil, nil, fmt.Errorf("seed index %s: %w", image, err)
	}
	var layers []offers.Layer
	for _, blob := range x.Blobs {
		if artifact.IsLayer(blob.MediaType) {
			layers = append(layers, offers.Layer{Digest: blob.Digest, Bytes: blob.Bytes})
		}
	}
	return d.Maker.Offers(ctx, image, layers, bases, make)
}

// maxRelated bounds the other images whose layers are named as bases.
const maxRelated = 16

// Bases are layers that this host has, of which one may be the base of a layer of ref: those
// of targets, which ref had before, then of what else is in the same repository, then of
// others. At most chunk.MaxBases.
func (d *Deltas) Bases(ctx context.Context, ref string, targets []digest.Digest) ([]digest.Digest, error) {
	have, err := d.store.List(ctx)
	if err != nil {
		return nil, err
	}
	targets = slices.Clone(targets)
	if now := have[ref]; now != "" {
		targets = append([]digest.Digest{now}, targets...)
	}
	targets = append(targets, related(have, ref)...)
	var out []digest.Digest
	seen := map[digest.Digest]bool{}
	for _, t := range targets {
		if seen[t] || len(out) >= chunk.MaxBases {
			continue
		}
		seen[t] = true
		layers, err := d.layersOf(ctx, t)
		if err != nil && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		for _, l := range layers { // of an image that cannot be read there are none
			if !seen[l] && len(out) < chunk.MaxBases {
				seen[l] = true
				out = append(out, l)
			}
		}
	}
	return out, nil
}

// related are the targets of other references, those of the same repository first.
func related(have map[string]digest.Digest, ref string) []digest.Digest {
	repository := func(ref string) string { return ref[:max(strings.LastIndex(ref, ":"), 0)] }
	var near, far []digest.Digest
	names := make([]string, 0, len(have))
	for name := range have {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		switch {
		case strings.Contains(name, "@") || !strings.Contains(name, "/"): // the names that CRI adds
		case repository(name) == repository(ref):
			near = append(near, have[name])
		default:
			far = append(far, have[name])
		}
	}
	near = append(near, far...)
	return near[:min(len(near), maxRelated)]
}

// layersOf are the layers of an image that are here, the largest first.
func (d *Deltas) layersOf(ctx context.Context, target digest.Digest) ([]digest.Digest, error) {
	desc, err := d.store.ctrd.Images.Find(ctx, target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	blobs, err := d.store.ctrd.Content.Walk(ctx, desc)
	if err != nil {
		return nil, err
	}
	blobs = slices.DeleteFunc(blobs, func(b artifact.Blob) bool { return !artifact.IsLayer(b.MediaType) || b.Size < chunk.MinDeltaLayer })
	slices.SortStableFunc(blobs, func(a, b artifact.Blob) int { return cmp.Compare(b.Size, a.Size) })
	out := make([]digest.Digest, len(blobs))
	for i, b := range blobs {
		out[i] = b.Digest
	}
	return out, nil
}
