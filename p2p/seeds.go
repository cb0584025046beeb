package p2p

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
)

// lostSeeds are the seed indexes of announced images that somebody has asked for and
// that are not here. A node that holds the image has lost the index, by a disk that
// rots or by hand, and gets it again: without it nobody can fetch from here.
type lostSeeds struct {
	mu   sync.Mutex
	lost map[digest.Digest]bool
	// tried is when an index was noted last: whoever asks again and again has no more
	// made here than one in lostPause.
	tried map[digest.Digest]time.Time
}

// lostPause is how long after a try to get a seed index again the next one may begin.
const lostPause = 10 * time.Second

// noteLost books that a served seed index was asked for and err came of it.
func (n *Node) noteLost(seed digest.Digest, err error) {
	if !errors.Is(err, fs.ErrNotExist) {
		return
	}
	l, now := &n.lostSeeds, time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for s, at := range l.tried {
		if now.Sub(at) >= lostPause {
			delete(l.tried, s)
			delete(l.lost, s) // nobody here could do anything about it
		}
	}
	if _, early := l.tried[seed]; early {
		return
	}
	if l.lost == nil {
		l.lost, l.tried = map[digest.Digest]bool{}, map[digest.Digest]time.Time{}
	}
	l.lost[seed], l.tried[seed] = true, now
	n.loop.Wake()
}

// seeds are the seed indexes of announced images as the converge loop sees them
// (converge.Seeds).
type seeds struct{ n *Node }

// Lost implements converge.Seeds.
func (s seeds) Lost(seed digest.Digest) bool { return s.n.lostSeeds.isLost(seed) }

// Restore implements converge.Seeds: from another member, else, on the host that
// announced the image, by cutting it again, which gives the same index.
func (s seeds) Restore(ctx context.Context, rec catalog.Record) {
	n, a := s.n, rec.Announcement()
	if !n.lostSeeds.take(a.Seed.Digest) {
		return
	}
	if err := n.restoreLost(ctx, rec); err != nil && ctx.Err() == nil {
		n.log.Warn("failed to restore a lost seed index; will retry when a peer asks for it", "ref", a.Reference, "seed", a.Seed.Digest, "err", err)
	}
}

// isLost reports whether somebody has asked in vain for seed.
func (l *lostSeeds) isLost(seed digest.Digest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost[seed]
}

// take is isLost, and forgets it.
func (l *lostSeeds) take(seed digest.Digest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	lost := l.lost[seed]
	delete(l.lost, seed)
	return lost
}

func (n *Node) restoreLost(ctx context.Context, rec catalog.Record) error {
	a := rec.Announcement()
	if _, err := n.store.SeedIndex(ctx, a.Seed.Digest); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	index, err := n.seedIndex(ctx, a)
	if err == nil {
		img, err := n.store.Image(ctx, index) // keeps the index
		if err != nil {
			return fmt.Errorf("keep seed index %s: %w", a.Seed.Digest, err)
		}
		n.log.Info("restored a lost seed index from another member", "ref", a.Reference, "seed", a.Seed.Digest)
		return img.Close()
	}
	if rec.AnnouncedBy() != n.identity.ID() {
		return err
	}
	if err := n.announceAgain(ctx, a.Reference); err != nil {
		return fmt.Errorf("cut %s again: %w", a.Reference, err)
	}
	n.log.Info("restored a lost seed index from the image", "ref", a.Reference, "seed", a.Seed.Digest)
	return nil
}
