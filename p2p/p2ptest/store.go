// Package p2ptest helps to test nodes without a container runtime and without a
// network: an image store in memory that keeps the promises of p2p.Store, and a
// network in memory for clusters in virtual time.
//
// It owns no policy. Invariant: like the real store it names an image only when
// every chunk is there and verified; like a real network it alters nothing, and
// delivers of a connection everything in order or nothing.
package p2ptest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p"
	"seeder/store/chunk"
)

// Store is an image store in memory. The zero value is not usable; see NewStore.
type Store struct {
	mu      sync.Mutex
	images  map[string]digest.Digest // reference → target
	chunks  map[[32]byte][]byte      // every chunk that is here
	indexes map[digest.Digest][]byte
	added   map[string]p2p.Prepared // by reference
	hints   []chan struct{}
	pulled  map[string]bool
	loaded  map[string]bool            // by k3s
	rules   map[string]string          // why this host is not to hold a target
	freed   []string                   // references that were released
	wanted  map[string][]digest.Digest // of ReleaseOthers
	users   map[string][]string
	kept    []digest.Digest
	dropped []digest.Digest // by Discard
	forAll  map[string]bool // whether Prepare was told any platform last, by reference
	noPins  bool
	claims  bool
	full    string
	down    error
	deltas  *Deltas // nil until they are asked for
}

// NewStore returns an empty store.
func NewStore() *Store {
	return &Store{
		images:  map[string]digest.Digest{},
		chunks:  map[[32]byte][]byte{},
		indexes: map[digest.Digest][]byte{},
		added:   map[string]p2p.Prepared{},
		pulled:  map[string]bool{},
		loaded:  map[string]bool{},
		rules:   map[string]string{},
		users:   map[string][]string{},
		forAll:  map[string]bool{},
	}
}

// index is the seed index of this package: an image is one blob, which may be layers.
type index struct {
	Target     digest.Digest
	Layers     []digest.Digest `json:",omitempty"` // of the same number of chunks each; none: Target is one
	Bytes      int64
	ChunkBytes int64
	Sums       [][32]byte
}

// Add puts an image of one blob under ref and returns what announces it.
func (s *Store) Add(ref string, blob []byte, chunkBytes int64) p2p.Prepared {
	return s.add(ref, index{Target: digest.FromBytes(blob), Bytes: int64(len(blob)), ChunkBytes: chunkBytes}, blob)
}

func (s *Store) add(ref string, idx index, blob []byte) p2p.Prepared {
	s.mu.Lock()
	defer s.mu.Unlock()
	for rest := blob; len(rest) > 0; {
		n := min(int64(len(rest)), idx.ChunkBytes)
		sum := sha256.Sum256(rest[:n])
		idx.Sums = append(idx.Sums, sum)
		s.chunks[sum] = rest[:n]
		rest = rest[n:]
	}
	b, err := json.Marshal(idx)
	if err != nil {
		panic(err) // programmer error: index has no type that fails
	}
	s.indexes[digest.FromBytes(b)] = b
	s.images[ref] = idx.Target
	a := p2p.Prepared{
		Reference: ref, Index: b, Bytes: idx.Bytes,
		Target: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: idx.Target, Size: idx.Bytes},
	}
	s.added[ref] = a
	s.hint()
	return a
}

// Prepare implements p2p.Store: the image that was last added under ref.
func (s *Store) Prepare(_ context.Context, ref string, o chunk.PrepareOptions) (p2p.Prepared, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forAll[ref] = o.AnyPlatform
	p, ok := s.added[ref]
	if !ok || s.images[ref] == "" || o.At != "" && p.Target.Digest != o.At {
		return p2p.Prepared{}, fmt.Errorf("prepare %s: %w", ref, fs.ErrNotExist)
	}
	s.indexes[digest.FromBytes(p.Index)] = p.Index
	return p, s.down
}

// ForAll reports whether Prepare was last told that ref is for any platform.
func (s *Store) ForAll(ref string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.forAll[ref]
}

// Has implements p2p.Store.
func (s *Store) Has(_ context.Context, target digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.images {
		if d == target {
			return true
		}
	}
	return false
}

// Forget removes an image and all chunks, as somebody else would.
func (s *Store) Forget(ref string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.images, ref)
	clear(s.chunks)
	s.hint()
}

// SetDown makes every call fail with err, as while containerd is away; nil ends
// that.
func (s *Store) SetDown(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = err
}

// hint wakes those that follow Changes. The caller holds mu.
func (s *Store) hint() {
	for _, c := range s.hints {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// List implements p2p.Store.
func (s *Store) List(context.Context) (map[string]digest.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]digest.Digest{}
	for r, d := range s.images {
		out[r] = d
	}
	return out, s.down
}

// Intact implements p2p.Store. Check alone finds out what is gone.
func (s *Store) Intact(context.Context, string) bool { return true }

// Tidy implements p2p.Store: it leaves nothing behind.
func (s *Store) Tidy(context.Context, []digest.Digest, []digest.Digest) error { return nil }

// DropFrames implements p2p.Store: it keeps none.
func (s *Store) DropFrames(context.Context, []digest.Digest) (int64, error) { return 0, nil }

// Cache implements p2p.Store.
func (s *Store) Cache() (heldBytes, limitBytes int64) { return 0, 0 }

// Check implements p2p.Store.
func (s *Store) Check(_ context.Context, ref string, target digest.Digest) (bool, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down != nil {
		return false, "", s.down
	}
	return s.images[ref] == target, "no image record", nil
}

// LoseIndex takes the seed index of ref away, as a disk that rots does.
func (s *Store) LoseIndex(ref string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.indexes, digest.FromBytes(s.added[ref].Index))
}

// SetClaims makes the store say that every chunk is here, or tell the truth.
func (s *Store) SetClaims(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claims = yes
}

// SeedIndex implements p2p.Store.
func (s *Store) SeedIndex(_ context.Context, seed digest.Digest) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.indexes[seed]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("seed index %s: %w", seed, fs.ErrNotExist)
}

// Image implements p2p.Store.
func (s *Store) Image(_ context.Context, b []byte) (p2p.Image, error) {
	var idx index
	if err := json.Unmarshal(b, &idx); err != nil {
		return nil, fmt.Errorf("seed index: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down != nil {
		return nil, s.down
	}
	s.indexes[digest.FromBytes(b)] = b
	return &image{store: s, index: idx, put: make(chan struct{}, 1)}, nil
}

// SetPulled says that ref came from a registry.
func (s *Store) SetPulled(ref string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pulled[ref] = true
}

// FromRegistry implements p2p.Store.
func (s *Store) FromRegistry(_ context.Context, ref string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pulled[ref], s.down
}

// SetPreloaded says whether k3s has put ref there.
func (s *Store) SetPreloaded(ref string, by bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loaded[ref] = by
}

// Preloaded implements p2p.Store.
func (s *Store) Preloaded(_ context.Context, ref string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loaded[ref], s.down
}

// SetUsers says which containers use ref.
func (s *Store) SetUsers(ref string, by ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users[ref] = by
}

// InUse implements p2p.Store.
func (s *Store) InUse(_ context.Context, ref string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.users[ref], s.down
}

// Kept are the earlier targets that this store was last asked to keep.
func (s *Store) Kept() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept
}

// KeepPrevious implements p2p.Store.
func (s *Store) KeepPrevious(_ context.Context, targets []digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = targets
	return s.down
}

// Discard implements p2p.Store: a reference has one target here.
func (s *Store) Discard(_ context.Context, _ string, target digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.dropped, target) {
		s.dropped = append(s.dropped, target)
	}
	return s.down
}

// Discarded are the targets that Discard was called for.
func (s *Store) Discarded() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.dropped)
}

// SetExcluded says why this host is not to hold a target.
func (s *Store) SetExcluded(target digest.Digest, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules[string(target)] = why
}

// SetHeedsPins says whether pins count here.
func (s *Store) SetHeedsPins(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noPins = !yes
}

// HeedsPins implements p2p.Store.
func (s *Store) HeedsPins() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.noPins
}

// SetRoom makes every fetch wait for why; empty: there is room.
func (s *Store) SetRoom(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = why
}

// Release implements p2p.Store: nothing collects garbage here.
func (s *Store) Release(_ context.Context, ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freed = append(s.freed, ref)
	return s.down
}

// ReleaseOthers implements p2p.Store.
func (s *Store) ReleaseOthers(_ context.Context, wanted map[string][]digest.Digest) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = wanted
	return nil, s.down
}

// Wanted is what ReleaseOthers was called with last.
func (s *Store) Wanted() map[string][]digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.wanted)
}

// Released are the references that Release was called for.
func (s *Store) Released() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.freed)
}

// Remove implements p2p.Store.
func (s *Store) Remove(_ context.Context, ref string) (freedBytes int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.images, ref)
	s.hint()
	return 0, s.down
}

// Changes implements p2p.Store.
func (s *Store) Changes(ctx context.Context) <-chan struct{} {
	c := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hints = append(s.hints, c)
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.hints = slices.DeleteFunc(s.hints, func(h chan struct{}) bool { return h == c })
		close(c)
	})
	return c
}

// Health implements p2p.Store.
func (s *Store) Health(context.Context) (address, version string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return "memory", "1", s.down
}

// image implements p2p.Image.
type image struct {
	store *Store
	index index
	put   chan struct{} // capacity 1: a chunk came
}

func (i *image) Len() int { return len(i.index.Sums) }

func (i *image) Bytes(n int) int64 {
	return min(i.index.ChunkBytes, i.index.Bytes-int64(n)*i.index.ChunkBytes)
}

func (i *image) Have() chunk.Bitmap {
	i.store.mu.Lock()
	claims := i.store.claims
	i.store.mu.Unlock()
	return i.have(claims)
}

// have is what is here; with all, every chunk.
func (i *image) have(all bool) chunk.Bitmap {
	b := chunk.NewBitmap(i.Len())
	i.store.mu.Lock()
	defer i.store.mu.Unlock()
	for n, sum := range i.index.Sums {
		if _, ok := i.store.chunks[sum]; ok || all {
			b.Set(n)
		}
	}
	return b
}

func (i *image) Wanted() chunk.Bitmap {
	b := chunk.NewBitmap(i.Len())
	for n := range i.Len() {
		b.Set(n)
	}
	return b
}

func (i *image) Put(_ context.Context, n int, enc chunk.Encoding, payload []byte) (bool, error) {
	if enc != chunk.Raw || sha256.Sum256(payload) != i.index.Sums[n] {
		return false, nil
	}
	i.store.mu.Lock()
	i.store.chunks[i.index.Sums[n]] = bytes.Clone(payload)
	i.store.mu.Unlock()
	select {
	case i.put <- struct{}{}:
	default:
	}
	return true, nil
}

func (i *image) Frame(_ context.Context, n int) (chunk.Frame, error) {
	i.store.mu.Lock()
	defer i.store.mu.Unlock()
	b, ok := i.store.chunks[i.index.Sums[n]]
	if !ok {
		return chunk.Frame{}, fmt.Errorf("chunk %d: %w", n, fs.ErrNotExist)
	}
	return chunk.Frame{Encoding: chunk.Raw, Bytes: int64(len(b)), Payload: io.NopCloser(bytes.NewReader(b))}, nil
}

func (i *image) Recheck(context.Context, int) (bool, error) { return false, nil }

func (i *image) Missing() []digest.Digest {
	have := i.Have()
	var out []digest.Digest
	for _, l := range i.index.layers() {
		for n := range l.chunks {
			if !have.Has(l.first + n) {
				out = append(out, l.digest)
				break
			}
		}
	}
	return out
}

func (i *image) Excluded() string {
	i.store.mu.Lock()
	defer i.store.mu.Unlock()
	return i.store.rules[string(i.index.Target)]
}

func (i *image) Room(context.Context) (why string, lackingBytes int64, err error) {
	i.store.mu.Lock()
	defer i.store.mu.Unlock()
	if i.store.full == "" {
		return "", 0, nil
	}
	return i.store.full, 1 << 30, nil
}

func (i *image) Import(ctx context.Context, ref string) error {
	for i.have(false).Count() < i.Len() {
		select {
		case <-i.put:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	i.store.mu.Lock()
	defer i.store.mu.Unlock()
	if i.store.down != nil {
		return i.store.down
	}
	i.store.images[ref] = i.index.Target
	i.store.hint()
	return nil
}

func (i *image) Unpacked() (layers, of int) { return 0, 0 }

func (i *image) Close() error { return nil }

// ErrDown is a ready-made error for SetDown.
var ErrDown = errors.New("the image store does not answer")
