package p2p

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"seeder/internal/figure"
	"seeder/p2p/catalog"
	"seeder/p2p/converge"
	"seeder/p2p/report"
	"seeder/p2p/swarm"
)

// errNoSeed: no reachable member has the seed index of an announcement.
var errNoSeed = errors.New("no reachable member has the seed index")

// obtain fetches what this host lacks of an announced image and imports it
// (converge.Config.Fetch).
func (n *Node) obtain(ctx context.Context, rec catalog.Record, verify converge.Verify) converge.Outcome {
	a := rec.Announcement()
	index, err := n.seedIndex(ctx, a)
	if errors.Is(err, errNoSeed) {
		return converge.NoSeed(err)
	}
	if err != nil {
		return converge.Failed(err)
	}
	n.log.Debug("got the seed index", "ref", a.Reference, "version", a.Version)
	sw, err := n.swarms.acquire(ctx, a.Seed.Digest, index, true)
	if err != nil {
		return converge.Failed(fmt.Errorf("open %s: %w", a.Reference, err))
	}
	defer n.swarms.release(sw, true)
	defer n.claims.release(a.Reference)
	if err := n.claim(ctx, a, sw.image); err != nil {
		return converge.Failed(err)
	}
	if why := sw.image.Excluded(); why != "" {
		return converge.Excluded(why)
	}
	switch why, bytes, err := sw.image.Room(ctx); {
	case err != nil:
		return converge.Failed(fmt.Errorf("fetch %s: %w", a.Reference, err))
	case why != "":
		return converge.Lacking(why, bytes)
	}
	if err := n.fetchAndImport(ctx, rec, sw, verify); err != nil {
		return converge.Failed(err)
	}
	return converge.Fetched()
}

// claim waits until no other fetch brings a blob that img misses.
func (n *Node) claim(ctx context.Context, a catalog.Announcement, img Image) error {
	for {
		holder, freed, ok := n.claims.take(a.Reference, img.Missing())
		if ok {
			return nil
		}
		n.cells.update(a, func(c *cell) {
			c.state, c.reason = report.Waiting, "shares a layer with "+holder+", which is being fetched"
		})
		select {
		case <-freed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// fetchAndImport runs the swarm and the import side by side: the import takes
// the contiguous prefix as it grows, so that after the last chunk only the last
// layer is left to do.
func (n *Node) fetchAndImport(ctx context.Context, rec catalog.Record, sw *openSwarm, verify converge.Verify) error {
	a := rec.Announcement()
	p := newProgress(sw.image, n.cells.tally(a))
	n.metrics.chunks("local", p.local)
	n.cells.update(a, func(c *cell) {
		c.state, c.reason = report.Fetching, ""
		c.live, c.liveReason = p.bytes, p.reason
	})
	n.log.Debug("started to fetch", "ref", a.Reference, "version", a.Version, "bytes", p.total-p.local)
	start := time.Now()
	var arrived time.Time
	imported := make(chan struct{})
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		for {
			if err := n.fetch(gctx, a, sw, p); err != nil {
				return fmt.Errorf("fetch %s: %w", a.Reference, err)
			}
			arrived = time.Now()
			p.arrived()
			n.log.Info("fetched", "ref", a.Reference, "version", a.Version, "bytes", p.total-p.local, "peers", p.tally.names(), "seconds", arrived.Sub(start).Seconds())
			n.cells.update(a, func(c *cell) {
				c.state, c.reason, c.liveReason = report.Importing, "all data received, unpacking", nil
			})
			if !lostChunks(gctx, sw.image, imported) {
				return nil
			}
			n.log.Warn("lost chunks before they were imported; fetching them again", "ref", a.Reference, "version", a.Version)
			n.cells.update(a, func(c *cell) {
				c.state, c.reason, c.liveReason = report.Fetching, "", p.reason
			})
		}
	})
	group.Go(func() error {
		defer close(imported)
		if err := sw.image.Import(gctx, a.Reference); err != nil {
			return fmt.Errorf("import %s: %w", a.Reference, err)
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	n.metrics.fetchSeconds.Observe(arrived.Sub(start).Seconds())
	since(n.metrics.importSeconds, arrived)
	ready, reason, err := verify(ctx)
	if err != nil {
		return err
	}
	if !ready {
		return fmt.Errorf("import %s: done, but the image is not ready: %s", a.Reference, reason)
	}
	n.log.Info("ready", "ref", a.Reference, "digest", a.Target.Digest, "version", a.Version,
		"bytes", p.total, "local_bytes", p.local, "peers", p.tally.names(), "seconds", time.Since(start).Seconds())
	n.note(report.EventReady, a, fmt.Sprintf("%s fetched in %.1f s", figure.Size(p.total-p.local), time.Since(start).Seconds()))
	n.register(ctx, a, sw)
	return nil
}

// recount is how often it is looked whether what an import waits for is still here:
// frames are found damaged when they are read, and blobs are collected.
const recount = 5 * time.Second

// lostChunks waits for the end of an import and reports whether it waits for chunks
// that are not here any more.
func lostChunks(ctx context.Context, img Image, imported <-chan struct{}) bool {
	tick := time.NewTicker(recount)
	defer tick.Stop()
	for {
		select {
		case <-imported:
			return false
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		if !img.Have().Contains(img.Wanted()) {
			return true
		}
	}
}

// fetch runs the swarm until every wanted chunk is here.
func (n *Node) fetch(ctx context.Context, a catalog.Announcement, sw *openSwarm, p *progress) error {
	return swarm.Fetch(ctx, swarm.FetchConfig{
		Seed:      a.Seed.Digest,
		Chunks:    sw.image,
		Transport: n.client,
		Finder:    &finder{n: n, announcer: a.NodeName},
		Self:      n.cfg.Name,
		Memory:    &n.memory,
		Log:       n.cfg.Log.With("component", "swarm", "ref", a.Reference),
		Observe: swarm.Observer{
			Have: sw.upload.Added,
			Received: func(peer string, raw, wire int64) {
				n.metrics.goodChunks.Inc()
				n.metrics.chunks("peer", raw)
				p.tally.received(time.Now(), peer, raw, wire)
			},
			Duplicate: func(_ string, wire int64) {
				n.metrics.twiceBytes.Add(float64(wire))
				p.tally.travelled(wire)
			},
			Refused: func(_, reason string) { n.metrics.refused.WithLabelValues(reason).Inc() },
			BadChunk: func(peer, id string, chunk int) {
				n.metrics.badChunks.Inc()
				n.note(report.EventBadChunk, a, fmt.Sprintf("chunk %d does not verify; its sender is not asked for a while", chunk), n.nameOf(id, peer))
				n.complain(ctx, a, n.nameOf(id, peer), chunk)
			},
			State: p.set,
		},
	})
}

// register tells the owners of a seed that this node holds it now, so that
// those who come next find it.
func (n *Node) register(ctx context.Context, a catalog.Announcement, sw *openSwarm) {
	ctx, cancel := context.WithTimeout(ctx, ownerTimeout)
	defer cancel()
	f := &finder{n: n, announcer: a.NodeName}
	complete := sw.image.Have().Count() == sw.image.Len()
	if _, err := f.Peers(ctx, a.Seed.Digest, complete); err != nil {
		n.log.Debug("failed to register as a holder", "ref", a.Reference, "err", err)
	}
}

// seedIndex returns the seed index of a: kept here, or from a member, the
// announcer first. It is content-addressed, so anybody may serve it.
func (n *Node) seedIndex(ctx context.Context, a catalog.Announcement) ([]byte, error) {
	index, err := n.store.SeedIndex(ctx, a.Seed.Digest)
	if err == nil {
		return index, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read seed index of %s: %w", a.Reference, err)
	}
	var errs []error
	for _, m := range n.seedHolders(a) {
		askCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
		index, err := n.client.Seed(askCtx, m.Address, a.Seed.Digest)
		cancel()
		if err == nil {
			return index, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		errs = append(errs, fmt.Errorf("%s: %w", m.Name, err))
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("%w of %s (announced by %s; no other member is alive)", errNoSeed, a.Reference, a.NodeName)
	}
	return nil, fmt.Errorf("%w of %s: %w", errNoSeed, a.Reference, errors.Join(errs...))
}

// seedHolders are up to 8 members to ask for a seed index: the announcer, then
// random ones.
func (n *Node) seedHolders(a catalog.Announcement) []swarm.Peer {
	const ask = 8
	peers := n.peers()
	for i, p := range peers {
		if p.Name == a.NodeName {
			peers[0], peers[i] = peers[i], peers[0]
		}
	}
	return peers[:min(ask, len(peers))]
}

// Seed serves seed indexes to other nodes (wire.Handler).
func (h handler) Seed(ctx context.Context, seed digest.Digest) ([]byte, error) {
	n := h.n
	if !n.swarms.isServed(seed) {
		return nil, fmt.Errorf("seed %s is not announced: %w", seed, fs.ErrNotExist)
	}
	index, err := n.store.SeedIndex(ctx, seed)
	n.noteLost(seed, err)
	return index, err
}
