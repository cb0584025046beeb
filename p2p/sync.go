package p2p

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"seeder/p2p/catalog"
	"seeder/p2p/gossip"
	"seeder/p2p/wire"
)

const (
	// expireInterval is how often withdrawals are looked through.
	expireInterval = 15 * time.Second
	pullTimeout    = 20 * time.Second
	// pullPatience is how long the next pull waits for the one before it, and
	// maxPulls how many may be under way in all.
	pullPatience = 300 * time.Millisecond
	maxPulls     = 8
)

// onHint is called by gossip with a reference's newest digest and version as
// another node says. It only queues: the record itself is pulled and verified.
func (n *Node) onHint(h gossip.Hint) {
	needed := func() bool { return n.isNews(h) }
	if needed() {
		n.syncer.add(h.Holder, byHint, needed)
	}
}

func (n *Node) isNews(h gossip.Hint) bool {
	cur, ok := n.catalog.Get(h.Reference)
	if !ok {
		return true
	}
	a := cur.Announcement()
	return a.Version < h.Version || a.Version == h.Version && a.Target.Digest != h.Digest
}

// onCatalog is called by gossip when a member's catalog hash may differ. Members
// tell each other now and then, so that a hint may be lost.
func (n *Node) onCatalog(member string, hash uint64) {
	needed := func() bool { return hash != n.catalog.Hash() }
	if needed() {
		n.syncer.add(member, bySummary, needed)
	}
}

// sync keeps what depends on the catalog current.
func (n *Node) sync(ctx context.Context) {
	tick := time.NewTicker(expireInterval)
	defer tick.Stop()
	for {
		n.beats.beat("sync")
		select {
		case <-ctx.Done():
			return
		case <-n.catalog.Changed():
			n.noteCatalog()
			n.loop.Wake()
		case now := <-tick.C:
			if err := n.catalog.Expire(now); err != nil {
				n.log.Error("failed to remove old withdrawals", "err", err)
			}
		}
	}
}

// pull pulls differences from queued members: one after the other, so that what one
// has brought need not come from the next; but one that does not answer holds
// nobody up.
func (n *Node) pull(ctx context.Context) {
	running := semaphore.NewWeighted(maxPulls)
	for {
		member, cause, ok := n.syncer.next(ctx)
		if !ok || running.Acquire(ctx, 1) != nil {
			return
		}
		done := make(chan struct{})
		n.group.Go(func() error {
			defer running.Release(1)
			defer close(done)
			n.syncer.done(member, cause, n.pullCatalog(ctx, member))
			return nil
		})
		select {
		case <-done:
		case <-time.After(pullPatience):
		}
	}
}

// pullCatalog merges what member knows and this node does not. A record that is
// new here is hinted at in turn, which is how a hint reaches nodes that gossip
// did not; a bulk (a node that joins) is not, since the others have it already. It
// reports whether anything was new.
func (n *Node) pullCatalog(ctx context.Context, member string) (news bool) {
	const bulk = 32
	addr, ok := n.addressOf(member)
	if !ok {
		return false // gone, or not yet known; anti-entropy comes back to it
	}
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	recs, err := n.client.Catalog(ctx, addr, n.catalog.Buckets())
	if err != nil {
		n.log.Debug("failed to pull the catalog", "member", member, "err", err)
		return false
	}
	changed, err := n.catalog.Merge(recs...)
	if err != nil {
		n.log.Error("failed to write the catalog", "member", member, "err", err)
	}
	if len(changed) == 0 {
		return false
	}
	n.log.Info("catalog updated", "from", member, "announcements", len(changed))
	n.noteNews(changed...)
	n.noteCatalog()
	n.loop.Wake()
	if len(changed) <= bulk {
		for _, rec := range changed {
			n.broadcast(rec)
		}
	}
	return true
}

// addressOf is the transfer address of an alive or suspect member that this node
// can talk to.
func (n *Node) addressOf(member string) (string, bool) {
	for _, m := range n.gossip.Peers() {
		if m.Name == member && m.Address != "" {
			return m.Address, true
		}
	}
	return "", false
}

// noteCatalog tells gossip and the swarms what the catalog says now.
func (n *Node) noteCatalog() {
	n.noteMu.Lock() // what one caller has read must not come after what a later one has
	defer n.noteMu.Unlock()
	all := n.catalog.All()
	n.gossip.SetCatalog(n.catalog.Hash())
	seeds := make(map[digest.Digest]bool, len(all))
	for _, rec := range all {
		if a := rec.Announcement(); !a.Withdrawn {
			seeds[a.Seed.Digest] = true
		}
	}
	n.swarms.setServed(seeds)
}

// CatalogDiff serves other nodes' pulls (wire.Handler).
func (h handler) CatalogDiff(_ context.Context, b catalog.Buckets) ([][]byte, error) {
	n := h.n
	n.asked.Add(1)
	return n.catalog.Diff(b, wire.MaxCatalogBytes), nil
}

// Records are the encoded records of the whole catalog, as another node gets them.
func (n *Node) Records() [][]byte { return n.catalog.Diff(catalog.Buckets{}, wire.MaxCatalogBytes) }
