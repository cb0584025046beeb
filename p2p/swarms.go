package p2p

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/swarm"
)

// idleSwarm is how long an image that nobody asks for stays open. Opening one
// costs a look at each of its blobs; keeping one costs its seed index in memory
// (about 44 KB for 1,024 chunks).
const idleSwarm = 2 * time.Minute

// openSwarm is one image that is open here: being fetched, served, or both.
type openSwarm struct {
	seed   digest.Digest
	image  Image
	upload *swarm.Upload

	refs     int // users; the swarm is closed only at zero
	fetchers int // users that fetch into it
	replaced bool
	lastUsed time.Time
}

// swarms are the open images of this node by the digest of their seed index.
type swarms struct {
	store    Store
	uploader *swarm.Uploader

	mu      sync.Mutex
	open    map[digest.Digest]*openSwarm
	opening map[digest.Digest]chan struct{}
	served  map[digest.Digest]bool  // seeds that the catalog names and nobody withdrew
	sent    map[digest.Digest]int64 // raw bytes of chunks that peers got, by served seed
	closed  bool
}

func newSwarms(store Store) *swarms {
	return &swarms{
		store:   store,
		open:    map[digest.Digest]*openSwarm{},
		opening: map[digest.Digest]chan struct{}{},
		served:  map[digest.Digest]bool{},
		sent:    map[digest.Digest]int64{},
	}
}

// setServed replaces the set of seeds that peers may ask for.
func (s *swarms) setServed(seeds map[digest.Digest]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.served = seeds
	maps.DeleteFunc(s.sent, func(seed digest.Digest, _ int64) bool { return !seeds[seed] })
}

// addSent counts a chunk that a peer got.
func (s *swarms) addSent(seed digest.Digest, raw int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent[seed] += raw
}

// sentBytes is how much of seed peers have got from here since this node started,
// in raw bytes.
func (s *swarms) sentBytes(seed digest.Digest) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent[seed]
}

func (s *swarms) isServed(seed digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served[seed]
}

// acquire returns the open image of seed, opening it where it is not open, and
// counts the caller as a user until release. For a fetch, an image that nobody
// else fetches is opened anew, so that it sees what really is on this host now.
func (s *swarms) acquire(ctx context.Context, seed digest.Digest, index []byte, fetch bool) (*openSwarm, error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, errClosing
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

// use counts a user. The caller holds the mutex of swarms.
func (sw *openSwarm) use(fetch bool) {
	sw.refs++
	if fetch {
		sw.fetchers++
	}
}

// openOne opens the image of seed, without a user yet.
func (s *swarms) openOne(ctx context.Context, seed digest.Digest, index []byte) (*openSwarm, error) {
	if index == nil {
		var err error
		if index, err = s.store.SeedIndex(ctx, seed); err != nil {
			return nil, fmt.Errorf("read seed index %s: %w", seed, err)
		}
	}
	img, err := s.store.Image(ctx, index)
	if err != nil {
		return nil, err
	}
	return &openSwarm{seed: seed, image: img, upload: s.uploader.Serve(seed, img), lastUsed: time.Now()}, nil
}

// retire takes a swarm that has been opened anew out of service.
func (s *swarms) retire(sw *openSwarm) {
	sw.upload.Close() // ends its have streams; peers come back to the new one
	s.mu.Lock()
	sw.replaced = true
	idle := sw.refs == 0
	s.mu.Unlock()
	if idle {
		sw.image.Close()
	}
}

// release ends one use of sw.
func (s *swarms) release(sw *openSwarm, fetch bool) {
	s.mu.Lock()
	sw.refs--
	if fetch {
		sw.fetchers--
	}
	sw.lastUsed = time.Now()
	last := sw.refs == 0 && (sw.replaced || s.closed)
	s.mu.Unlock()
	if last {
		sw.upload.Close()
		sw.image.Close()
	}
}

// sweep closes what nobody has used for idleSwarm, and what nobody may ask for.
func (s *swarms) sweep(now time.Time) {
	var idle []*openSwarm
	s.mu.Lock()
	for seed, sw := range s.open {
		if sw.refs == 0 && (now.Sub(sw.lastUsed) > idleSwarm || !s.served[seed]) {
			delete(s.open, seed)
			idle = append(idle, sw)
		}
	}
	s.mu.Unlock()
	for _, sw := range idle {
		sw.upload.Close()
		sw.image.Close()
	}
}

// close closes every swarm that has no user and leaves the others to their last
// release.
func (s *swarms) close() {
	s.mu.Lock()
	s.closed = true
	var idle []*openSwarm
	for seed, sw := range s.open {
		delete(s.open, seed)
		if sw.refs == 0 {
			idle = append(idle, sw)
		}
	}
	s.mu.Unlock()
	for _, sw := range idle {
		sw.upload.Close()
		sw.image.Close()
	}
}

// lend is acquire for a peer's request: only seeds that the catalog names are
// served.
func (s *swarms) lend(ctx context.Context, seed digest.Digest) (*openSwarm, error) {
	if !s.isServed(seed) {
		return nil, fmt.Errorf("seed %s is not announced: %w", seed, fs.ErrNotExist)
	}
	return s.acquire(ctx, seed, nil, false)
}
