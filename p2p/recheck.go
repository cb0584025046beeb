package p2p

import (
	"context"
	"fmt"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
	"seeder/p2p/swarm"
)

// complainTimeout bounds the word to a peer that what it sent is damaged.
const complainTimeout = 10 * time.Second

// complain tells the member that sent a bad chunk, which may not know that its disk has
// rotted. Where it does not hear that, the next bad chunk tells again.
func (n *Node) complain(ctx context.Context, a catalog.Announcement, name string, chunk int) {
	addr, ok := n.addressOf(name)
	if !ok {
		return
	}
	n.group.Go(func() error {
		ctx, cancel := context.WithTimeout(ctx, complainTimeout)
		defer cancel()
		if err := n.client.Recheck(ctx, addr, a.Seed.Digest, chunk); err != nil {
			n.log.Debug("failed to tell a peer that a chunk was damaged", "peer", name, "chunk", chunk, "err", err)
		}
		return nil
	})
}

// Recheck is part of wire.Handler. One chunk is read at a time: whoever complains of
// many costs this node no more than whoever fetches.
func (h handler) Recheck(ctx context.Context, seed digest.Digest, chunk int, from string) error {
	n := h.n
	if !n.swarms.isServed(seed) {
		return fmt.Errorf("seed %s is not announced: %w", seed, fs.ErrNotExist)
	}
	if !n.recheck.TryLock() {
		return &swarm.BusyError{RetryAfter: time.Second}
	}
	defer n.recheck.Unlock()
	sw, err := n.swarms.acquire(ctx, seed, nil, false)
	if err != nil {
		return err
	}
	defer n.swarms.release(sw, false)
	damaged, err := sw.image.Recheck(ctx, chunk)
	if err != nil {
		return fmt.Errorf("read chunk %d again: %w", chunk, err)
	}
	if !damaged {
		n.log.Info("a peer received a damaged chunk that is intact on this host", "peer", n.nameOf(from, from), "seed", seed, "chunk", chunk)
		return nil
	}
	n.log.Warn("found a damaged chunk on this host after a peer reported it; reading or fetching it again", "peer", n.nameOf(from, from), "seed", seed, "chunk", chunk)
	n.loop.Wake()
	return nil
}
