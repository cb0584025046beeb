package p2p

import (
	"context"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/swarm"
	"seeder/store/chunk"
)

// handler answers other nodes (wire.Handler): what they may ask is no method of Node.
type handler struct{ n *Node }

// Swarm serves the images of this node to peers (wire.Handler).
func (h handler) Swarm(ctx context.Context, seed digest.Digest) (swarm.Served, error) {
	n := h.n
	sw, err := n.swarms.lend(ctx, seed)
	if err != nil {
		if n.swarms.isServed(seed) {
			n.noteLost(seed, err)
		}
		return nil, err
	}
	defer n.swarms.release(sw, false)
	return &lent{swarms: n.swarms, seed: seed, chunks: sw.upload.Len(), refused: n.metrics.putOff}, nil
}

// lent is one swarm as a request uses it: each call is a use of the open image,
// so that it is not closed under a peer, and not kept open for one that is gone.
type lent struct {
	swarms *swarms
	seed   digest.Digest
	chunks int

	refused func(error) // told of each refusal
}

// Len implements swarm.Served.
func (l *lent) Len() int { return l.chunks }

// Haves implements swarm.Served.
func (l *lent) Haves(ctx context.Context, fn func(swarm.Haves) error) error {
	sw, err := l.swarms.lend(ctx, l.seed)
	if err != nil {
		return err
	}
	defer l.swarms.release(sw, false)
	return sw.upload.Haves(ctx, fn)
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
	sw, err := l.swarms.lend(ctx, l.seed)
	if err != nil {
		return swarm.Outgoing{}, err
	}
	o, err := get(sw.upload)
	if err != nil {
		l.refused(err)
		l.swarms.release(sw, false)
		return o, err
	}
	done := o.Done
	o.Done = func() {
		done()
		l.swarms.release(sw, false)
	}
	return o, nil
}
