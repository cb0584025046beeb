package p2ptest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p"
	"seeder/store/chunk"
	"seeder/store/delta"
)

// Deltas are the deltas of a Store in memory, made by the codec of the real one: from what
// the asking host names first of what is here. It implements p2p.Deltas.
type Deltas struct {
	store *Store
	// Takes is how long a delta is being made.
	Takes time.Duration
	// Says is how long it says that this takes; 0: the truth.
	Says time.Duration
	// Alter changes a delta before it is offered; nil: it does not.
	Alter func([]byte) []byte
	// Flood: each answer offers another delta, which is altered, and one that is being made.
	Flood bool
	flood int

	made      map[digest.Digest]chunk.Offer // by layer
	due       map[digest.Digest]time.Time   // by layer that is being made
	changed   chan struct{}
	Expected  []chunk.Offer // by Expect
	Discarded []chunk.Offer // by Discard
}

// Deltas are those of s. There is one for each store.
func (s *Store) Deltas() *Deltas {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deltas == nil {
		s.deltas = &Deltas{store: s, made: map[digest.Digest]chunk.Offer{}, due: map[digest.Digest]time.Time{}, changed: make(chan struct{})}
	}
	return s.deltas
}

// AddLayers puts an image of layers of the same size, a multiple of chunkBytes, under ref and
// returns what announces it.
func (s *Store) AddLayers(ref string, chunkBytes int64, layers ...[]byte) p2p.Prepared {
	blob := bytes.Join(layers, nil)
	idx := index{Target: digest.FromBytes(blob), Bytes: int64(len(blob)), ChunkBytes: chunkBytes}
	for _, l := range layers {
		idx.Layers = append(idx.Layers, digest.FromBytes(l))
	}
	return s.add(ref, idx, blob)
}

// layer is a layer of an image, and where its chunks are.
type layer struct {
	digest        digest.Digest
	first, chunks int
}

func (idx index) layers() []layer {
	if len(idx.Layers) == 0 {
		return []layer{{idx.Target, 0, len(idx.Sums)}}
	}
	var out []layer
	each := len(idx.Sums) / len(idx.Layers)
	for k, d := range idx.Layers {
		out = append(out, layer{d, k * each, each})
	}
	return out
}

// whole are the bytes of a layer, nil where a chunk is missing. The caller holds mu.
func (s *Store) whole(idx index, l layer) []byte {
	var out []byte
	for _, sum := range idx.Sums[l.first : l.first+l.chunks] {
		p, ok := s.chunks[sum]
		if !ok {
			return nil
		}
		out = append(out, p...)
	}
	return out
}

// blob is a layer by its digest, nil where it is not here. The caller holds mu.
func (s *Store) blob(d digest.Digest) []byte {
	for _, b := range s.indexes {
		var idx index
		if json.Unmarshal(b, &idx) != nil {
			continue
		}
		for _, l := range idx.layers() {
			if l.digest == d {
				return s.whole(idx, l)
			}
		}
	}
	return nil
}

// Offers implements p2p.Deltas.
func (d *Deltas) Offers(ctx context.Context, image digest.Digest, bases []digest.Digest, make bool) (out []chunk.Offer, changed <-chan struct{}, err error) {
	s := d.store
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.indexes[image]
	if !ok {
		return nil, nil, fmt.Errorf("seed index %s: %w", image, fs.ErrNotExist)
	}
	var idx index
	if err := json.Unmarshal(b, &idx); err != nil {
		return nil, nil, fmt.Errorf("seed index: %w", err)
	}
	if d.Flood {
		return d.floods(ctx, bases, idx)
	}
	for k, l := range idx.layers() {
		o, err := d.offer(ctx, idx, l, bases, make, time.Duration(k+1)*d.Takes)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, o)
	}
	return out, d.changed, nil
}

// offer is what there is of one layer, which is made in takes. The caller holds mu.
func (d *Deltas) offer(ctx context.Context, idx index, l layer, bases []digest.Digest, make bool, takes time.Duration) (chunk.Offer, error) {
	if o, ok := d.made[l.digest]; ok {
		if o.Pending() && d.Says == 0 {
			o.After = max(time.Until(d.due[l.digest]), time.Millisecond)
		}
		return o, nil
	}
	for _, base := range bases {
		old, now := d.store.blob(base), d.store.whole(idx, l)
		if old == nil || now == nil || base == l.digest || !alike(old, now) {
			continue
		}
		pending := chunk.Offer{Target: l.digest, Base: base, Kind: chunk.DeltaBytes, After: cmp.Or(d.Says, takes, time.Millisecond)}
		if !make {
			return pending, nil
		}
		o, err := d.encode(ctx, base, old, idx, l.digest, now)
		if err != nil {
			return chunk.Offer{}, err
		}
		if takes == 0 {
			d.made[l.digest] = o
			return o, nil
		}
		d.made[l.digest], d.due[l.digest] = pending, time.Now().Add(takes)
		time.AfterFunc(takes, func() { d.finish(o) })
		return pending, nil
	}
	return chunk.Offer{Target: l.digest, Why: "no base"}, nil
}

// alike reports whether two builds end alike.
func alike(a, b []byte) bool {
	const end = 1 << 10
	return len(a) < end || len(b) < end || bytes.Equal(a[len(a)-end:], b[len(b)-end:])
}

// floods is an answer of a host that wants to hold others up. The caller holds mu.
func (d *Deltas) floods(ctx context.Context, bases []digest.Digest, idx index) ([]chunk.Offer, <-chan struct{}, error) {
	alter := d.Alter
	defer func() { d.Alter = alter }()
	d.flood++
	d.Alter = func(p []byte) []byte { return fmt.Appendf(bytes.Clone(p), "%d", d.flood) }
	l := idx.layers()[0]
	for _, base := range bases {
		old, now := d.store.blob(base), d.store.whole(idx, l)
		if old == nil || now == nil || base == l.digest {
			continue
		}
		o, err := d.encode(ctx, base, old, idx, l.digest, now)
		return []chunk.Offer{o, {Target: l.digest, Base: base, Kind: chunk.DeltaBytes, After: time.Second}}, d.changed, err
	}
	return nil, d.changed, nil
}

// finish is when a delta has been made.
func (d *Deltas) finish(o chunk.Offer) {
	d.store.mu.Lock()
	defer d.store.mu.Unlock()
	d.made[o.Target] = o
	close(d.changed)
	d.changed = make(chan struct{})
}

// encode makes a delta and keeps it as an image of one blob. The caller holds mu.
func (d *Deltas) encode(ctx context.Context, base digest.Digest, old []byte, idx index, target digest.Digest, now []byte) (chunk.Offer, error) {
	var out bytes.Buffer
	_, _, err := delta.Encode(ctx, &out, delta.Bytes, delta.Blob{ReaderAt: bytes.NewReader(old), Digest: base, Bytes: int64(len(old))},
		delta.Blob{ReaderAt: bytes.NewReader(now), Digest: target, Bytes: int64(len(now))}, 0)
	if err != nil {
		return chunk.Offer{}, err
	}
	p := out.Bytes()
	if d.Alter != nil {
		p = d.Alter(p)
	}
	x := index{Target: digest.FromBytes(p), Bytes: int64(len(p)), ChunkBytes: idx.ChunkBytes}
	for rest := p; len(rest) > 0; {
		n := min(int64(len(rest)), x.ChunkBytes)
		sum := sha256.Sum256(rest[:n])
		x.Sums = append(x.Sums, sum)
		d.store.chunks[sum] = rest[:n]
		rest = rest[n:]
	}
	b, err := json.Marshal(x)
	if err != nil {
		return chunk.Offer{}, err
	}
	seed := digest.FromBytes(b)
	d.store.indexes[seed] = b
	return chunk.Offer{Target: target, Base: base, Kind: chunk.DeltaBytes, Seed: seed, Bytes: x.Bytes}, nil
}

// Bases implements p2p.Deltas: the layers of everything that has a name.
func (d *Deltas) Bases(context.Context, string, []digest.Digest) (out []digest.Digest, err error) {
	d.store.mu.Lock()
	defer d.store.mu.Unlock()
	named := slices.Collect(maps.Values(d.store.images))
	for _, b := range d.store.indexes {
		var idx index
		if json.Unmarshal(b, &idx) == nil && slices.Contains(named, idx.Target) {
			for _, l := range idx.layers() {
				out = append(out, l.digest)
			}
		}
	}
	slices.Sort(out)
	return out, d.store.down
}

// Expect implements p2p.Deltas.
func (d *Deltas) Expect(_ digest.Digest, o chunk.Offer) error {
	d.store.mu.Lock()
	defer d.store.mu.Unlock()
	d.Expected = append(d.Expected, o)
	return nil
}

// Discard implements p2p.Deltas.
func (d *Deltas) Discard(o chunk.Offer) {
	d.store.mu.Lock()
	defer d.store.mu.Unlock()
	d.Discarded = append(d.Discarded, o)
}

// Layer implements p2p.Image.
func (i *image) Layer(d digest.Digest) (first, chunks int) {
	for _, l := range i.index.layers() {
		if l.digest == d {
			return l.first, l.chunks
		}
	}
	return 0, 0
}

// errOther says that a delta made other bytes than those of its layer.
var errOther = errors.New("it makes other bytes than the layer has")

// Rebuild implements p2p.Image.
func (i *image) Rebuild(ctx context.Context, o chunk.Offer, have func(n int)) error {
	s := i.store
	s.mu.Lock()
	var idx index
	err := json.Unmarshal(s.indexes[o.Seed], &idx)
	p, old := s.whole(idx, idx.layers()[0]), s.blob(o.Base)
	s.mu.Unlock()
	if err != nil || p == nil || old == nil {
		return fmt.Errorf("rebuild %s: the delta or its base is not here (%w)", o.Target, fs.ErrNotExist)
	}
	var out bytes.Buffer
	if _, err := delta.Decode(ctx, &out, bytes.NewReader(p), delta.Blob{ReaderAt: bytes.NewReader(old), Digest: o.Base, Bytes: int64(len(old))}); err != nil {
		return err
	}
	first, chunks := i.Layer(o.Target)
	for n := first; n < first+chunks; n++ {
		ok, err := i.Put(ctx, n, chunk.Raw, out.Next(int(i.Bytes(n))))
		if err != nil || !ok {
			return fmt.Errorf("rebuild %s: %w", o.Target, errors.Join(err, errOther))
		}
		have(n)
	}
	return nil
}
