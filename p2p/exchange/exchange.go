// Package exchange keeps the catalogs of all nodes equal: it pulls what others know from
// those that hints and summaries name, and tells the others of what is new here.
//
// It owns which member is asked next, and when. It never decides which announcement wins,
// and believes a hint only so far as to ask the member that it names.
//
// Invariant: what hangs on the catalog (the hash that gossip tells, the seeds that are
// served) is never older than a catalog that somebody was told of before.
//
// Goroutines: Follow and Pull run until their context ends; Pull waits for the pulls that it
// started.
package exchange

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"seeder/p2p/catalog"
	"seeder/p2p/gossip"
	"seeder/p2p/members"
	"seeder/p2p/wire"
)

// Client pulls from another node the records of the buckets that differ.
type Client interface {
	Catalog(ctx context.Context, addr string, b catalog.Buckets) ([]catalog.Record, error)
}

// Gossip carries hints and the hash of the catalog.
type Gossip interface {
	Broadcast(h gossip.Hint)
	SetCatalog(hash uint64)
}

// Config is what an Exchange is made of.
type Config struct {
	Catalog *catalog.Catalog
	Members *members.Members
	Client  Client
	Gossip  Gossip
	// Serve replaces the seeds that other nodes may ask for.
	Serve func(seeds map[digest.Digest]bool)
	// Changed is called when the catalog is another one, News with what was learnt.
	Changed func()
	News    func(...catalog.Record)
	// Beat is called whenever Follow comes by.
	Beat func()
	Log  *slog.Logger
}

// Exchange is one node's side of the exchange. It is safe for concurrent use.
type Exchange struct {
	cfg    Config
	queue  *queue
	pulled atomic.Int64 // how often others have pulled from here
	tell   sync.Mutex   // held by who tells what the catalog says
}

// New returns an Exchange that pulls nothing yet.
func New(cfg Config) *Exchange { return &Exchange{cfg: cfg, queue: newQueue()} }

// Pulled is how often others have pulled from here.
func (x *Exchange) Pulled() int64 { return x.pulled.Load() }

// Published tells the cluster of a record that is new here.
func (x *Exchange) Published(rec catalog.Record) {
	x.cfg.News(rec)
	x.Tell()
	x.broadcast(rec)
}

// broadcast hints at a record that this node now holds.
func (x *Exchange) broadcast(rec catalog.Record) {
	a := rec.Announcement()
	x.cfg.Gossip.Broadcast(gossip.Hint{
		Reference: a.Reference, Digest: a.Target.Digest, Version: a.Version, Holder: x.cfg.Members.Self(),
	})
}

const (
	// expireInterval is how often withdrawals are looked through.
	expireInterval = 15 * time.Second
	pullTimeout    = 20 * time.Second
	// pullPatience is how long the next pull waits for the one before it, and
	// maxPulls how many may be under way in all.
	pullPatience = 300 * time.Millisecond
	maxPulls     = 8
)

// Hint is called by gossip with a reference's newest digest and version as
// another node says. It only queues: the record itself is pulled and verified.
func (x *Exchange) Hint(h gossip.Hint) {
	needed := func() bool { return x.isNews(h) }
	if needed() {
		x.queue.add(h.Holder, byHint, needed)
	}
}

func (x *Exchange) isNews(h gossip.Hint) bool {
	cur, ok := x.cfg.Catalog.Get(h.Reference)
	if !ok {
		return true
	}
	a := cur.Announcement()
	return a.Version < h.Version || a.Version == h.Version && a.Target.Digest != h.Digest
}

// Summary is called by gossip when a member's catalog hash may differ. Members
// tell each other now and then, so that a hint may be lost.
func (x *Exchange) Summary(member string, hash uint64) {
	needed := func() bool { return hash != x.cfg.Catalog.Hash() }
	if needed() {
		x.queue.add(member, bySummary, needed)
	}
}

// Follow keeps what depends on the catalog current, until ctx ends.
func (x *Exchange) Follow(ctx context.Context) {
	tick := time.NewTicker(expireInterval)
	defer tick.Stop()
	for {
		x.cfg.Beat()
		select {
		case <-ctx.Done():
			return
		case <-x.cfg.Catalog.Changed():
			x.Tell()
			x.cfg.Changed()
		case <-tick.C:
			if err := x.cfg.Catalog.Expire(x.cfg.Catalog.Now()); err != nil {
				x.cfg.Log.Error("failed to remove old withdrawals", "err", err)
			}
		}
	}
}

// Pull pulls differences from queued members: one after the other, so that what one
// has brought need not come from the next; but one that does not answer holds
// nobody up. It returns once ctx has ended and all pulls have.
func (x *Exchange) Pull(ctx context.Context) {
	running := semaphore.NewWeighted(maxPulls)
	var pulls sync.WaitGroup
	defer pulls.Wait()
	for {
		key, q := x.queue.next(ctx)
		if q == nil || running.Acquire(ctx, 1) != nil {
			return
		}
		done := make(chan struct{})
		pulls.Go(func() {
			defer running.Release(1)
			defer close(done)
			news, err := x.pullFrom(ctx, key.member)
			x.queue.done(key.member, key.cause, news)
			if err != nil {
				x.queue.again(key, q)
			}
		})
		select {
		case <-done:
		case <-time.After(pullPatience):
		}
	}
}

// pullFrom merges what member knows and this node does not. A record that is
// new here is hinted at in turn, which is how a hint reaches nodes that gossip
// did not; a bulk (a node that joins) is not, since the others have it already. It
// reports whether anything was new; the error is that member has not answered.
func (x *Exchange) pullFrom(ctx context.Context, member string) (news bool, _ error) {
	const bulk = 32
	addr, ok := x.cfg.Members.Address(member)
	if !ok {
		return false, nil // gone, or not yet known; anti-entropy comes back to it
	}
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	recs, err := x.cfg.Client.Catalog(ctx, addr, x.cfg.Catalog.Buckets())
	if err != nil {
		x.cfg.Log.Debug("failed to pull the catalog", "member", member, "err", err)
		return false, err
	}
	changed, err := x.cfg.Catalog.Merge(recs...)
	if err != nil {
		x.cfg.Log.Error("failed to write the catalog", "member", member, "err", err)
	}
	if len(changed) == 0 {
		return false, nil
	}
	x.cfg.Log.Info("catalog updated", "from", member, "announcements", len(changed))
	x.cfg.News(changed...)
	x.Tell()
	x.cfg.Changed()
	if len(changed) <= bulk {
		for _, rec := range changed {
			x.broadcast(rec)
		}
	}
	return true, nil
}

// Tell tells gossip and the swarms what the catalog says now.
func (x *Exchange) Tell() {
	x.tell.Lock() // what one caller has read must not come after what a later one has
	defer x.tell.Unlock()
	all := x.cfg.Catalog.All()
	x.cfg.Gossip.SetCatalog(x.cfg.Catalog.Hash())
	seeds := make(map[digest.Digest]bool, len(all))
	for _, rec := range all {
		if a := rec.Announcement(); !a.Withdrawn {
			seeds[a.Seed.Digest] = true
		}
	}
	x.cfg.Serve(seeds)
}

// CatalogDiff serves other nodes' pulls (wire.Catalog).
func (x *Exchange) CatalogDiff(_ context.Context, b catalog.Buckets) ([][]byte, error) {
	x.pulled.Add(1)
	return x.cfg.Catalog.Diff(b, wire.MaxCatalogBytes), nil
}

// Records are the encoded records of the whole catalog, as another node gets them.
func (x *Exchange) Records() [][]byte {
	return x.cfg.Catalog.Diff(catalog.Buckets{}, wire.MaxCatalogBytes)
}
