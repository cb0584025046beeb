package images

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/swarm"
	"seeder/store/chunk"
)

// Seed serves seed indexes to other nodes (wire.Images).
func (s *Set) Seed(ctx context.Context, seed digest.Digest) ([]byte, error) {
	if !s.isServed(seed) {
		return nil, fmt.Errorf("seed %s is not announced: %w", seed, fs.ErrNotExist)
	}
	index, err := s.cfg.Store.SeedIndex(ctx, seed)
	s.recordLost(seed, err)
	return index, err
}

// Deltas offers deltas of layers (wire.Deltas). Those that are ready are served from now
// on, as long as the image is.
func (s *Set) Deltas(ctx context.Context, seed digest.Digest, bases []digest.Digest, make bool) ([]chunk.Offer, <-chan struct{}, error) {
	if s.cfg.Offers == nil || !s.isServed(seed) || s.withheld(seed) {
		return nil, nil, fmt.Errorf("no deltas of %s: %w", seed, fs.ErrNotExist)
	}
	offers, changed, err := s.cfg.Offers(ctx, seed, bases, make)
	for _, o := range offers {
		if o.Ready() {
			s.Lend(seed, o.Seed)
		}
	}
	return offers, changed, err
}

// Swarm serves the images of this node to peers (wire.Images).
func (s *Set) Swarm(ctx context.Context, seed digest.Digest) (swarm.Served, error) {
	sw, err := s.acquireForPeer(ctx, seed)
	if err != nil {
		s.recordLost(seed, err)
		return nil, err
	}
	defer s.Release(sw, false)
	return &lent{set: s, seed: seed, chunks: sw.Upload.Len()}, nil
}

// lent is one image as a request uses it: each call is a use of the open image,
// so that it is not closed under a peer, and not kept open for one that is gone.
type lent struct {
	set    *Set
	seed   digest.Digest
	chunks int
}

// Len implements swarm.Served.
func (l *lent) Len() int { return l.chunks }

// Haves implements swarm.Served.
func (l *lent) Haves(ctx context.Context, fn func(swarm.Haves) error) error {
	sw, err := l.set.acquireForPeer(ctx, l.seed)
	if err != nil {
		return err
	}
	defer l.set.Release(sw, false)
	return sw.Upload.Haves(ctx, fn)
}

// Chunk implements swarm.Served.
func (l *lent) Chunk(ctx context.Context, by swarm.Requester, chunk int) (swarm.Outgoing, error) {
	return l.out(ctx, func(u *swarm.Upload) (swarm.Outgoing, error) { return u.Chunk(ctx, by, chunk) })
}

// Next implements swarm.Served.
func (l *lent) Next(ctx context.Context, by swarm.Requester, want chunk.Bitmap) (swarm.Outgoing, error) {
	return l.out(ctx, func(u *swarm.Upload) (swarm.Outgoing, error) { return u.Next(ctx, by, want) })
}

// out keeps the image in use until the payload has been written.
func (l *lent) out(ctx context.Context, get func(*swarm.Upload) (swarm.Outgoing, error)) (swarm.Outgoing, error) {
	sw, err := l.set.acquireForPeer(ctx, l.seed)
	if err != nil {
		return swarm.Outgoing{}, err
	}
	o, err := get(sw.Upload)
	if err != nil {
		l.set.cfg.Refused(err)
		l.set.Release(sw, false)
		return o, err
	}
	done := o.Done
	o.Done = func() {
		done()
		l.set.Release(sw, false)
	}
	return o, nil
}
