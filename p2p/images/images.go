// Package images keeps the images of this host open while they are fetched, served, or
// both, and serves them to other nodes.
//
// It owns which images are open, who uses them, how much of each has gone out, and which
// seed indexes were asked for in vain. It never fetches anything, and never opens an image
// that the catalog does not name because a peer asks for it.
//
// Invariant: an image is closed once, after its last use; of one seed at most one image is
// open for those who come next.
//
// Locks: mu of a Set and that of its lost seed indexes are never held together, and
// neither while an image is opened, read or closed.
package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/swarm"
	"seeder/store/chunk"
)

// Store opens the images of this host. Errors wrap fs.ErrNotExist where a thing is not
// there.
type Store interface {
	// SeedIndex returns a seed index that this host keeps.
	SeedIndex(ctx context.Context, seed digest.Digest) ([]byte, error)
	// Image opens the image that a seed index describes, with whatever of it is
	// already here, and keeps the index.
	Image(ctx context.Context, index []byte) (Image, error)
}

// Image is one open image of this host: what is fetched into and served from.
type Image interface {
	swarm.Chunks
	Importer
	Rebuilder
	// Recheck reads chunk n again, whatever was verified before, and reports whether it
	// was damaged here. It is not served any more then, until it is whole again.
	Recheck(ctx context.Context, n int) (damaged bool, err error)
	Close() error
}

// Rebuilder makes layers of an image from those of another.
type Rebuilder interface {
	// Layer are the chunks of a layer of the image: the first one, and how many; none where
	// the image has no such layer.
	Layer(layer digest.Digest) (first, chunks int)
	// Rebuild makes a layer from its base, which is here, and a delta, of which all chunks
	// are here, and tells have of each chunk that is verified. What it has made when it fails
	// stays.
	Rebuild(ctx context.Context, o chunk.Offer, have func(n int)) error
}

// Importer brings what is fetched of an image to where containers are started from.
type Importer interface {
	// Missing lists the wanted blobs that the content store lacks.
	Missing() []digest.Digest
	// Import runs beside the fetch: it takes the chunks in order as they arrive
	// and returns once ref is complete and visible. With all chunks here it
	// repairs whatever Check found lacking.
	Import(ctx context.Context, ref string) error
	// Unpacked is how many layers of the image the import that runs has unpacked, of how
	// many; of 0 where it has not come so far.
	Unpacked() (layers, of int)
	// Excluded is why this host should not hold the image, empty where it is.
	Excluded() string
	// Room says why what is missing may not come yet, empty where it may, and how many
	// bytes of disk are lacking; it is asked again a little later.
	Room(ctx context.Context) (why string, lackingBytes int64, err error)
}

// idleSwarm is how long an image that nobody asks for stays open. Opening one
// costs a look at each of its blobs; keeping one costs its seed index in memory
// (about 44 KB for 1,024 chunks).
const idleSwarm = 2 * time.Minute

// Open is one image that is open here: being fetched, served, or both.
type Open struct {
	Image  Image
	Upload *swarm.Upload

	refs     int // users; the image is closed only at zero
	fetchers int // users that fetch into it
	replaced bool
	lastUsed time.Time
}

// Offers are the deltas that this host has, or with make makes, of the image of seed, for a
// host that has bases. The channel is closed when one that is pending is not any more.
type Offers func(ctx context.Context, seed digest.Digest, bases []digest.Digest, make bool) ([]chunk.Offer, <-chan struct{}, error)

// Config is what a Set is made of.
type Config struct {
	Store   Store
	Refused func(error) // told of each request of a peer that is refused
	Offers  Offers      // nil: this host offers no deltas
	// Lost wakes who restores what is damaged or lost here.
	Lost func()
	// NameOf is the name of the member with a proved id; other where none has it.
	NameOf func(id, other string) string
	Log    *slog.Logger
}

// Set is the open images of this node by the digest of their seed index. It is safe for
// concurrent use.
type Set struct {
	cfg      Config
	uploader *swarm.Uploader
	lost     lost
	recheck  sync.Mutex // held by the one recheck that runs

	mu      sync.Mutex
	open    map[digest.Digest]*Open
	opening map[digest.Digest]chan struct{}
	served  map[digest.Digest]bool // seeds that the catalog names and nobody withdrew
	deltas  deltas
	sent    map[digest.Digest]int64 // raw bytes of chunks that peers got, by served seed
	closed  bool
}

// New returns a Set in which nothing is open yet.
func New(cfg Config) *Set {
	s := &Set{
		cfg:     cfg,
		open:    map[digest.Digest]*Open{},
		opening: map[digest.Digest]chan struct{}{},
		deltas:  deltas{of: map[digest.Digest][]digest.Digest{}, withheld: map[digest.Digest]bool{}},
		served:  map[digest.Digest]bool{},
		sent:    map[digest.Digest]int64{},
	}
	s.uploader = swarm.NewUploader(swarm.UploaderConfig{Sent: s.addSent})
	return s
}

// errClosed is why no image can be opened any more.
var errClosed = errors.New("node is closing")

// Uploads counts the chunks on their way out.
func (s *Set) Uploads() int { return s.uploader.Uploads() }

// SetServed replaces the set of seeds that peers may ask for.
func (s *Set) SetServed(seeds map[digest.Digest]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.served = seeds
	s.deltas.keep(seeds)
	maps.DeleteFunc(s.sent, func(seed digest.Digest, _ int64) bool { return !seeds[seed] && len(s.deltas.of[seed]) == 0 })
}

// addSent counts a chunk that a peer got.
func (s *Set) addSent(seed digest.Digest, raw int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent[seed] += raw
}

// SentBytes is how much of seed, and of deltas for it, peers have got from here since this
// node started, in raw bytes.
func (s *Set) SentBytes(seed digest.Digest) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.sent[seed]
	for delta, of := range s.deltas.of {
		if of[0] == seed { // each delta counts for one image
			sum += s.sent[delta]
		}
	}
	return sum
}

// isAnnounced reports whether seed is of an announced image.
func (s *Set) isAnnounced(seed digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served[seed]
}

// isServed reports whether seed is of an announced image, or of a delta for one.
func (s *Set) isServed(seed digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.servedNow(seed)
}

// servedNow is isServed. The caller holds mu.
func (s *Set) servedNow(seed digest.Digest) bool { return s.served[seed] || len(s.deltas.of[seed]) > 0 }

// Acquire returns the open image of seed, opening it where it is not open, and
// counts the caller as a user until Release. For a fetch, an image that nobody
// else fetches is opened anew, so that it sees what really is on this host now.
func (s *Set) Acquire(ctx context.Context, seed digest.Digest, index []byte, fetch bool) (*Open, error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, errClosed
		}
		if wait, busy := s.opening[seed]; busy {
			s.mu.Unlock()
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		old := s.open[seed]
		if old != nil && (!fetch || old.fetchers > 0) {
			old.use(fetch)
			s.mu.Unlock()
			return old, nil
		}
		done := make(chan struct{})
		s.opening[seed] = done
		s.mu.Unlock()

		sw, err := s.openOne(ctx, seed, index)
		s.mu.Lock()
		delete(s.opening, seed)
		close(done)
		if err == nil {
			sw.use(fetch)
			s.open[seed] = sw
		}
		s.mu.Unlock()
		if err == nil && old != nil {
			s.retire(old)
		}
		return sw, err
	}
}

// use counts a user. The caller holds mu of the Set.
func (sw *Open) use(fetch bool) {
	sw.refs++
	if fetch {
		sw.fetchers++
	}
}

// openOne opens the image of seed, without a user yet.
func (s *Set) openOne(ctx context.Context, seed digest.Digest, index []byte) (*Open, error) {
	if index == nil {
		var err error
		if index, err = s.cfg.Store.SeedIndex(ctx, seed); err != nil {
			return nil, fmt.Errorf("read seed index %s: %w", seed, err)
		}
	}
	img, err := s.cfg.Store.Image(ctx, index)
	if err != nil {
		return nil, err
	}
	return &Open{Image: img, Upload: s.uploader.Serve(seed, img), lastUsed: time.Now()}, nil
}

// retire takes a swarm that has been opened anew out of service.
func (s *Set) retire(sw *Open) {
	sw.Upload.Close() // ends its have streams; peers come back to the new one
	s.mu.Lock()
	sw.replaced = true
	idle := sw.refs == 0
	s.mu.Unlock()
	if idle {
		sw.Image.Close()
	}
}

// Release ends one use of sw.
func (s *Set) Release(sw *Open, fetch bool) {
	s.mu.Lock()
	sw.refs--
	if fetch {
		sw.fetchers--
	}
	sw.lastUsed = time.Now()
	last := sw.refs == 0 && (sw.replaced || s.closed)
	s.mu.Unlock()
	if last {
		sw.Upload.Close()
		sw.Image.Close()
	}
}

// Sweep closes what nobody has used for idleSwarm, and what nobody may ask for.
func (s *Set) Sweep(now time.Time) {
	var idle []*Open
	s.mu.Lock()
	for seed, sw := range s.open {
		if sw.refs == 0 && (now.Sub(sw.lastUsed) > idleSwarm || !s.servedNow(seed)) {
			delete(s.open, seed)
			idle = append(idle, sw)
		}
	}
	s.mu.Unlock()
	for _, sw := range idle {
		sw.Upload.Close()
		sw.Image.Close()
	}
}

// Close closes every swarm that has no user and leaves the others to their last
// Release.
func (s *Set) Close() {
	s.mu.Lock()
	s.closed = true
	var idle []*Open
	for seed, sw := range s.open {
		delete(s.open, seed)
		if sw.refs == 0 {
			idle = append(idle, sw)
		}
	}
	s.mu.Unlock()
	for _, sw := range idle {
		sw.Upload.Close()
		sw.Image.Close()
	}
}

// acquireForPeer is Acquire for a peer's request: only seeds that the catalog names are
// served.
func (s *Set) acquireForPeer(ctx context.Context, seed digest.Digest) (*Open, error) {
	if !s.isServed(seed) {
		return nil, fmt.Errorf("seed %s is not announced: %w", seed, fs.ErrNotExist)
	}
	return s.Acquire(ctx, seed, nil, false)
}
