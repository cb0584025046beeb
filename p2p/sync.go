package p2p

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
	"seeder/p2p/gossip"
)

const (
	// antiEntropy is how often a member whose catalog differs is looked for,
	// besides the push/pull exchanges of gossip that find most differences.
	antiEntropy = 15 * time.Second
	pullTimeout = 20 * time.Second
)

// syncer queues the members whose catalogs are to be pulled. A member stands in
// the queue once, however many hints name it.
type syncer struct {
	mu     sync.Mutex
	queue  []string
	queued map[string]bool
	wake   chan struct{}
}

func newSyncer() *syncer {
	return &syncer{queued: map[string]bool{}, wake: make(chan struct{}, 1)}
}

// maxQueuedPulls bounds the queue; more members than that are found again by
// anti-entropy.
const maxQueuedPulls = 1024

func (s *syncer) add(member string) {
	s.mu.Lock()
	if !s.queued[member] && len(s.queue) < maxQueuedPulls {
		s.queued[member] = true
		s.queue = append(s.queue, member)
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *syncer) next() (member string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return "", false
	}
	member, s.queue = s.queue[0], s.queue[1:]
	delete(s.queued, member)
	return member, true
}

// onHint is called by gossip with a reference's newest digest and version as
// another node says. It only queues: the record itself is pulled and verified.
func (n *Node) onHint(h gossip.Hint) {
	if h.Reference != "" {
		if cur, ok := n.catalog.Get(h.Reference); ok {
			a := cur.Announcement()
			if a.Version > h.Version || (a.Version == h.Version && a.Target.Digest == h.Digest) {
				return
			}
		}
	}
	n.syncer.add(h.Holder)
}

// onCatalog is called by gossip when a member's catalog hash may differ.
func (n *Node) onCatalog(member string, m gossip.Meta) {
	if m.CatalogHash != n.catalog.Hash() {
		n.syncer.add(member)
	}
}

// sync pulls differences from queued members, one after the other, and looks
// for differing members from time to time.
func (n *Node) sync(ctx context.Context) {
	tick := time.NewTicker(antiEntropy)
	defer tick.Stop()
	for {
		for {
			member, ok := n.syncer.next()
			if !ok {
				break
			}
			n.pullCatalog(ctx, member)
		}
		select {
		case <-ctx.Done():
			return
		case <-n.syncer.wake:
		case <-n.catalog.Changed():
			n.noteCatalog()
			n.poke()
		case now := <-tick.C:
			n.catalog.Expire(now)
			n.lookForDifference()
		}
	}
}

// lookForDifference queues one random alive member whose catalog differs.
func (n *Node) lookForDifference() {
	var differ []string
	for _, m := range n.gossip.Alive() {
		if m.Name != n.cfg.Name && m.CatalogHash != n.catalog.Hash() {
			differ = append(differ, m.Name)
		}
	}
	if len(differ) > 0 {
		n.syncer.add(differ[rand.IntN(len(differ))])
	}
}

// pullCatalog merges what member knows and this node does not. A record that is
// new here is hinted at in turn, which is how a hint reaches nodes that gossip
// did not; a bulk (a node that joins) is not, since the others have it already.
func (n *Node) pullCatalog(ctx context.Context, member string) {
	const bulk = 32
	addr, ok := n.addressOf(member)
	if !ok {
		return // gone, or not yet known; anti-entropy comes back to it
	}
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	recs, err := n.client.Catalog(ctx, addr, n.catalog.Buckets())
	if err != nil {
		n.log.Debug("pull catalog", "member", member, "err", err)
		return
	}
	changed, err := n.catalog.Merge(recs...)
	if err != nil {
		n.log.Error("write catalog", "member", member, "err", err)
	}
	if len(changed) == 0 {
		return
	}
	n.log.Info("catalog updated", "from", member, "announcements", len(changed))
	n.noteCatalog()
	n.poke()
	if len(changed) <= bulk {
		for _, rec := range changed {
			n.broadcast(rec)
		}
	}
}

// addressOf is the transfer address of an alive or suspect member.
func (n *Node) addressOf(member string) (string, bool) {
	for _, m := range n.gossip.Alive() {
		if m.Name == member && m.Address != "" {
			return m.Address, true
		}
	}
	return "", false
}

// noteCatalog tells gossip and the swarms what the catalog says now.
func (n *Node) noteCatalog() {
	all := n.catalog.All()
	n.gossip.SetCatalog(n.catalog.Hash(), uint32(len(all)))
	seeds := make(map[digest.Digest]bool, len(all))
	for _, rec := range all {
		if a := rec.Announcement(); !a.Withdrawn {
			seeds[a.Seed.Digest] = true
		}
	}
	n.swarms.setServed(seeds)
}

// CatalogDiff serves other nodes' pulls (wire.Handler).
func (n *Node) CatalogDiff(_ context.Context, b catalog.Buckets) ([][]byte, error) {
	recs := n.catalog.Diff(b)
	out := make([][]byte, 0, len(recs))
	for _, r := range recs {
		out = append(out, r.Encode())
	}
	return out, nil
}
