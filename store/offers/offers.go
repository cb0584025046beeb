// Package offers makes deltas of layers for hosts that have other builds of them.
//
// It owns which base a layer's delta is made from, the one build that runs, how long the
// builds take, and the book of the deltas that this host keeps. It never talks to a peer or
// to containerd, and never keeps the bytes of a delta: both come in through Config.
//
// Words: a layer is to be sent, a base is another layer that the asking host and this one
// have. An offer says of one layer what delta there is (chunk.Offer).
//
// Invariant: a delta is offered only after package delta has decoded it to the layer's
// digest, and as long as the image that it was made for is announced. What is remembered is
// bounded, whatever hosts ask.
//
// Goroutines: one, which builds; Close ends it and waits. Locks: mu is never held while a
// blob is read.
package offers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
	"seeder/store/delta"
)

const (
	// maxQueue bounds the deltas that wait for the one that is being built.
	maxQueue = 16
	// These bound what is remembered.
	maxPairs    = 256
	maxSketches = 256
)

// retryAfter is how long a failure counts that is not the layers': room on the disk, say.
const retryAfter = time.Minute

var errBudget = errors.New("the deltas that are kept take all that they may (a quarter of transfer.cache)")

// Speeds that are assumed before one was measured, in bytes of the layer as stored a second:
// `make bench-delta` on one core of 2.5 GHz, less a third.
const (
	speedBytes   = 40 << 20
	speedDeflate = 12 << 20
)

// Blob is a layer open for reading.
type Blob interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Config is what a Maker is made of.
type Config struct {
	// Dir is where builds have their file, and the book is.
	Dir string
	// Open opens a layer of this host. The error wraps fs.ErrNotExist where it is not here.
	Open func(ctx context.Context, d digest.Digest) (Blob, error)
	// Keep keeps a delta that was built, and returns the digest of its seed index.
	Keep func(ctx context.Context, r io.ReaderAt, bytes int64) (seed digest.Digest, err error)
	// Holds reports whether what Keep kept is still all here.
	Holds func(ctx context.Context, seed digest.Digest) bool
	// Room is an error that says why a delta of at most so many bytes may not be built.
	Room func(ctx context.Context, bytes int64) error
	// Budget is how many bytes all deltas may have.
	Budget func() int64
	Log    *slog.Logger
}

// Maker makes deltas. It is safe for concurrent use.
type Maker struct {
	cfg    Config
	book   *book
	cancel context.CancelFunc
	done   sync.WaitGroup
	work   chan *build

	looking chan struct{} // capacity 1: held to look at layers

	mu       sync.Mutex
	pairs    map[pair]*build
	sketches map[digest.Digest]sketch
	speed    map[delta.Kind]float64 // bytes of the layer a second
	changed  chan struct{}          // closed and replaced when a build has ended
	asked    []asked                // by image, the one that was asked for last at the end
}

// pair is a delta's base and layer.
type pair struct{ base, layer digest.Digest }

// build is one delta: to be built, being built, kept, or why there is none.
type build struct {
	pair
	kind  delta.Kind
	bytes int64 // of the layer
	image digest.Digest
	used  time.Time

	begun time.Time // zero: it waits
	ended bool
	kept  entry // with a seed: it can be fetched
	why   string
	again time.Time // when it may be tried again; zero: the two layers will not be others
}

// due reports whether a pair that failed may be tried again.
func (b *build) due() bool { return b.ended && !b.again.IsZero() && time.Now().After(b.again) }

// New opens the book in cfg.Dir and starts to build what is asked for.
func New(cfg Config) (*Maker, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	b, err := openBook(cfg.Dir, cfg.Log)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &Maker{
		cfg: cfg, book: b, cancel: cancel, work: make(chan *build, maxQueue), looking: make(chan struct{}, 1),
		pairs: map[pair]*build{}, sketches: map[digest.Digest]sketch{}, changed: make(chan struct{}),
		speed: map[delta.Kind]float64{delta.Bytes: speedBytes, delta.Deflate: speedDeflate},
	}
	m.done.Go(func() { m.run(ctx) })
	return m, nil
}

// Close ends the build that runs, and waits for it.
func (m *Maker) Close() {
	m.cancel()
	m.done.Wait()
}

// Layer is a layer that may be sent as a delta.
type Layer struct {
	Digest digest.Digest
	Bytes  int64
}

// Offers are the offers of layers of the image whose seed index is image, for a host that has
// bases, the likeliest first. With make, what is not there yet is built from now on. An offer
// that is Pending has changed when the channel is closed.
func (m *Maker) Offers(ctx context.Context, image digest.Digest, layers []Layer, bases []digest.Digest, make bool) ([]chunk.Offer, <-chan struct{}, error) {
	m.mu.Lock()
	changed := m.changed
	if !make {
		m.count(image, bases)
	}
	m.mu.Unlock()
	var out []chunk.Offer
	for _, l := range layers {
		if l.Bytes < chunk.MinDeltaLayer || slices.Contains(bases, l.Digest) {
			continue
		}
		o, err := m.offer(ctx, image, l, bases[:min(len(bases), chunk.MaxBases)], make)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, o)
	}
	return out, changed, nil
}

// offer is that of one layer.
func (m *Maker) offer(ctx context.Context, image digest.Digest, l Layer, bases []digest.Digest, make bool) (chunk.Offer, error) {
	for _, base := range bases { // what is there costs nothing
		if e, ok := m.book.find(pair{base, l.Digest}); ok {
			if m.cfg.Holds(ctx, e.Seed) {
				m.book.use(e, image)
				return chunk.Offer{Target: l.Digest, Base: base, Kind: e.Kind, Seed: e.Seed, Bytes: e.Bytes}, nil
			}
			if !e.Fetched { // else it is on its way here
				m.forget(e)
			}
		}
	}
	if o, known := m.known(l, bases); known {
		return o, nil
	}
	base, kind, err := m.choose(ctx, l.Digest, bases, m.hosts(image))
	if err != nil {
		return chunk.Offer{}, err
	}
	if base == "" {
		return chunk.Offer{Target: l.Digest, Why: "the announcing host has no layer that is like it and that this host has, too"}, nil
	}
	return m.ask(&build{pair: pair{base, l.Digest}, kind: kind, bytes: l.Bytes, image: image}, make), nil
}

// known is the offer of a pair that is being made, or cannot be made: then nothing has to be
// looked at again.
func (m *Maker) known(l Layer, bases []digest.Digest) (o chunk.Offer, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, base := range bases {
		if b := m.pairs[pair{base, l.Digest}]; b != nil && (!b.ended || b.why != "" && !b.due()) {
			return m.offered(b), true
		}
	}
	return chunk.Offer{}, false
}

// ask is the offer of a pair. With make it is built from now on, unless it was.
func (m *Maker) ask(asked *build, make bool) chunk.Offer {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.pairs[asked.pair]
	if _, kept := m.book.find(asked.pair); b == nil || b.due() || b.ended && b.why == "" && !kept {
		b = asked
		if make {
			select {
			case m.work <- b:
				m.remember(b)
			default:
				return chunk.Offer{Target: b.layer, Base: b.base, Why: "too many deltas are being made"}
			}
		}
	}
	return m.offered(b)
}

// offered is what is offered of a pair now. The mutex is held.
func (m *Maker) offered(b *build) chunk.Offer {
	b.used = time.Now()
	o := chunk.Offer{Target: b.layer, Base: b.base, Kind: b.kind.String(), Why: b.why}
	if b.ended {
		o.Seed, o.Bytes = b.kept.Seed, b.kept.Bytes
	} else {
		o.After = m.after(b)
	}
	return o
}

// after estimates when a build will have ended: after those before it. The mutex is held.
func (m *Maker) after(b *build) time.Duration {
	left := func(b *build) time.Duration {
		d := time.Duration(float64(b.bytes) / m.speed[b.kind] * float64(time.Second))
		if !b.begun.IsZero() {
			d -= time.Since(b.begun)
		}
		return max(d, 100*time.Millisecond)
	}
	sum := left(b)
	if b.begun.IsZero() {
		for _, other := range m.pairs {
			if other != b && !other.ended {
				sum += left(other)
			}
		}
	}
	return sum
}

// remember notes a pair, and forgets the one that was asked for the longest ago where there
// are too many. The mutex is held.
func (m *Maker) remember(b *build) {
	b.used = time.Now()
	m.pairs[b.pair] = b
	if len(m.pairs) <= maxPairs {
		return
	}
	var oldest *build
	for _, other := range m.pairs {
		if other.ended && (oldest == nil || other.used.Before(oldest.used)) {
			oldest = other
		}
	}
	if oldest != nil {
		delete(m.pairs, oldest.pair)
	}
}

// forget drops a delta of which something is missing: it may be built again.
func (m *Maker) forget(e entry) {
	m.book.drop(e)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pairs, pair{e.Base, e.Layer})
}

// run builds what is asked for, one after the other: one build takes a core and 64 MiB.
func (m *Maker) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case b := <-m.work:
			m.begin(b)
			began := time.Now()
			kept, err := m.build(ctx, b)
			if ctx.Err() != nil {
				return
			}
			m.end(b, kept, err, time.Since(began))
		}
	}
}

func (m *Maker) begin(b *build) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b.begun = time.Now()
}

// end notes what came of a build, and wakes those who wait.
func (m *Maker) end(b *build, kept entry, err error, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b.ended, b.kept = true, kept
	speed := float64(b.bytes) / max(took, time.Millisecond).Seconds()
	switch {
	case err == nil:
		m.speed[b.kind] = (m.speed[b.kind] + speed) / 2
		m.cfg.Log.Info("made a delta", "layer", b.layer, "base", b.base, "kind", b.kind, "bytes", kept.Bytes, "layer_bytes", b.bytes, "seconds", took.Seconds())
	case errors.Is(err, errBudget):
		b.why, b.again = err.Error(), time.Now().Add(retryAfter)
		m.cfg.Log.Debug("made no delta", "layer", b.layer, "base", b.base, "err", err)
	case errors.Is(err, delta.ErrNotWorth), errors.Is(err, delta.ErrRefused):
		b.why = err.Error()
		m.cfg.Log.Debug("made no delta", "layer", b.layer, "base", b.base, "err", err)
	default:
		b.why, b.again = "the announcing host failed to make the delta", time.Now().Add(retryAfter)
		m.cfg.Log.Warn("failed to make a delta; the layer travels whole", "layer", b.layer, "base", b.base, "err", err)
	}
	close(m.changed)
	m.changed = make(chan struct{})
}

// build makes a delta, which is verified when it is made, and keeps it.
func (m *Maker) build(ctx context.Context, b *build) (kept entry, err error) {
	base, err := m.cfg.Open(ctx, b.base)
	if err != nil {
		return entry{}, err
	}
	defer base.Close()
	layer, err := m.cfg.Open(ctx, b.layer)
	if err != nil {
		return entry{}, err
	}
	defer layer.Close()
	most := min(int64(chunk.MostOfLayer*float64(b.bytes)), m.cfg.Budget()-m.book.bytes())
	if most <= int64(delta.HeaderBytes) {
		return entry{}, errBudget
	}
	if err := m.cfg.Room(ctx, 2*most); err != nil { // the file, and what is kept
		return entry{}, err
	}
	f, err := os.CreateTemp(m.cfg.Dir, building)
	if err != nil {
		return entry{}, fmt.Errorf("make the file of a delta: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	_, bytes, err := delta.Encode(ctx, f, b.kind, delta.Blob{ReaderAt: base, Digest: b.base, Bytes: base.Size()},
		delta.Blob{ReaderAt: layer, Digest: b.layer, Bytes: layer.Size()}, most)
	if err != nil {
		return entry{}, err
	}
	kept = entry{Images: []digest.Digest{b.image}, Base: b.base, Layer: b.layer, Kind: b.kind.String(), Bytes: bytes}
	if kept.Seed, err = m.cfg.Keep(ctx, f, bytes); err != nil {
		return entry{}, err
	}
	return kept, m.book.add(kept)
}

// Expect notes a delta that this host is going to get from another one: what came of it is
// kept where the budget allows, and it is offered, too, once all of it is here.
func (m *Maker) Expect(image digest.Digest, o chunk.Offer) error {
	if m.cfg.Budget()-m.book.bytes() < o.Bytes {
		return nil // it is used, and not kept
	}
	return m.book.add(entry{Images: []digest.Digest{image}, Base: o.Base, Layer: o.Target, Kind: o.Kind, Seed: o.Seed, Bytes: o.Bytes, Fetched: true})
}

// Discard forgets a delta that is of no use.
func (m *Maker) Discard(o chunk.Offer) {
	if e, ok := m.book.find(pair{o.Base, o.Target}); ok && e.Seed == o.Seed {
		m.forget(e)
	}
}

// Tidy forgets the deltas of images that are not among those with these seed indexes, and
// returns the seed indexes of the other deltas.
func (m *Maker) Tidy(images []digest.Digest) []digest.Digest { return m.book.tidy(images) }
