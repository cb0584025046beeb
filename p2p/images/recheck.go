package images

import (
	"context"
	"fmt"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/swarm"
)

// Recheck is part of wire.Images. One chunk is read at a time: anyone who complains of
// many costs this node no more than one that fetches.
func (s *Set) Recheck(ctx context.Context, seed digest.Digest, chunk int, from string) error {
	if !s.isServed(seed) {
		return fmt.Errorf("seed %s is not announced: %w", seed, fs.ErrNotExist)
	}
	if !s.recheck.TryLock() {
		return &swarm.BusyError{RetryAfter: time.Second}
	}
	defer s.recheck.Unlock()
	sw, err := s.Acquire(ctx, seed, nil, false)
	if err != nil {
		return err
	}
	defer s.Release(sw, false)
	damaged, err := sw.Image.Recheck(ctx, chunk)
	if err != nil {
		return fmt.Errorf("read chunk %d again: %w", chunk, err)
	}
	if !damaged {
		s.cfg.Log.Info("a peer received a damaged chunk that is intact on this host", "peer", s.cfg.NameOf(from, from), "seed", seed, "chunk", chunk)
		return nil
	}
	s.cfg.Log.Warn("found a damaged chunk on this host after a peer reported it; reading or fetching it again", "peer", s.cfg.NameOf(from, from), "seed", seed, "chunk", chunk)
	s.cfg.Lost()
	return nil
}
