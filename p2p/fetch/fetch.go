// Package fetch brings an announced image from other nodes to this host: it gets the seed
// index, finds peers, runs the swarm and the import beside it.
//
// It owns what is on its way: which fetch brings which blob, the memory of frames, what a
// fetch shows of itself, and, as one of the owners of a seed, who else is fetching it. It
// never decides whether an image is to be here (package converge does) nor which chunk
// comes from whom (package swarm does).
//
// Invariant: a blob that several images share crosses the network once at a time, and
// nothing is imported before the seed index named its digest.
//
// Goroutines: Fetch waits for those that it starts. Complaints to peers go on after it; Wait
// waits for those.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"seeder/internal/figure"
	"seeder/p2p/catalog"
	"seeder/p2p/converge"
	"seeder/p2p/images"
	"seeder/p2p/members"
	"seeder/p2p/report"
	"seeder/p2p/swarm"
	"seeder/p2p/tally"
	"seeder/p2p/trust"
	"seeder/store/chunk"
)

// Column is where a fetch shows how far it is. What is said of another announcement than
// the newest of its reference is not shown.
type Column interface {
	// Wait shows what a fetch waits for before it begins.
	Wait(a catalog.Announcement, reason string)
	// Fetch shows that chunks arrive: how many bytes of how many, and why so.
	Fetch(a catalog.Announcement, bytes func() (done, total int64), reason func() string)
	// Import shows that all chunks are here, and what is done with them.
	Import(a catalog.Announcement, reason func() string)
	// Tally counts where the bytes of a come from, over all tries.
	Tally(a catalog.Announcement) *tally.Tally
}

// Client asks other nodes, by the address of their transfer port.
type Client interface {
	swarm.Transport
	registrar
	Seed(ctx context.Context, addr string, seed digest.Digest) ([]byte, error)
	Recheck(ctx context.Context, addr string, seed digest.Digest, n int) error
	Deltas(ctx context.Context, addr string, seed digest.Digest, bases []digest.Digest, make bool, known int) ([]chunk.Offer, error)
}

// Config is what a Fetcher is made of.
type Config struct {
	ID      trust.NodeID // of this node
	Images  *images.Set
	Store   images.Store
	Column  Column
	Members *members.Members
	Client  Client
	Metrics *Metrics
	// Deltas are those of this host; nil: none are used.
	Deltas Deltas
	// History are the targets that a reference had before, the newest first.
	History func(ref string) []digest.Digest
	// Note records what happened to an announced image.
	Note func(kind report.EventKind, a catalog.Announcement, reason string, nodes ...string)
	// Announce announces again what this host has under ref, unless its record is another
	// one than since by then: that wraps catalog.ErrSuperseded.
	Announce func(ctx context.Context, ref string, since catalog.Record) error
	Log      *slog.Logger
	SwarmLog *slog.Logger // of what is asked of which peer
}

// Fetcher fetches images. It is safe for concurrent use.
type Fetcher struct {
	*Owners
	cfg        Config
	claims     *claims
	memory     swarm.Memory   // of frames on their way in
	complaints sync.WaitGroup // that are on their way to peers

	links      links
	tried      tried         // offers of deltas
	rebuilding chan struct{} // capacity 1: held by the rebuild that runs
}

// New returns a Fetcher that fetches nothing yet.
func New(cfg Config) *Fetcher {
	return &Fetcher{Owners: newOwners(cfg.ID, cfg.Members, cfg.Client, cfg.Log), cfg: cfg, claims: newClaims(), rebuilding: make(chan struct{}, 1)}
}

// Wait waits for the complaints to peers, once nothing is fetched any more.
func (f *Fetcher) Wait() { f.complaints.Wait() }

// errNoSeed: no reachable member has the seed index of an announcement.
var errNoSeed = errors.New("no reachable member has the seed index")

// Fetch fetches what this host lacks of an announced image and imports it
// (converge.Config.Fetch).
func (f *Fetcher) Fetch(ctx context.Context, rec catalog.Record, verify converge.Verify) converge.Outcome {
	a := rec.Announcement()
	index, err := f.seedIndex(ctx, a)
	if errors.Is(err, errNoSeed) {
		return converge.NoSeed(err)
	}
	if err != nil {
		return converge.Failed(err)
	}
	f.cfg.Log.Debug("got the seed index", "ref", a.Reference, "version", a.Version)
	sw, err := f.cfg.Images.Acquire(ctx, a.Seed.Digest, index, true)
	if err != nil {
		return converge.Failed(fmt.Errorf("open %s: %w", a.Reference, err))
	}
	defer f.cfg.Images.Release(sw, true)
	defer f.claims.release(a.Reference)
	if err := f.claim(ctx, a, sw.Image); err != nil {
		return converge.Failed(err)
	}
	if why := sw.Image.Excluded(); why != "" {
		return converge.Excluded(why)
	}
	switch why, bytes, err := sw.Image.Room(ctx); {
	case err != nil:
		return converge.Failed(fmt.Errorf("fetch %s: %w", a.Reference, err))
	case why != "":
		return converge.Lacking(why, bytes)
	}
	if err := f.fetchAndImport(ctx, rec, sw, verify); err != nil {
		return converge.Failed(err)
	}
	return converge.Fetched()
}

// claim waits until no other fetch brings a blob that img misses.
func (f *Fetcher) claim(ctx context.Context, a catalog.Announcement, img images.Image) error {
	for {
		holder, freed, ok := f.claims.take(a.Reference, img.Missing())
		if ok {
			return nil
		}
		f.cfg.Column.Wait(a, "shares a layer with "+holder+", which is being fetched")
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
func (f *Fetcher) fetchAndImport(ctx context.Context, rec catalog.Record, sw *images.Open, verify converge.Verify) error {
	a := rec.Announcement()
	p := newProgress(sw.Image, f.cfg.Column.Tally(a))
	f.cfg.Metrics.chunks("local", p.local)
	f.cfg.Column.Fetch(a, p.bytes, p.reason)
	f.cfg.Log.Debug("started to fetch", "ref", a.Reference, "version", a.Version, "bytes", p.total-p.local)
	start := time.Now()
	var arrived time.Time
	imported := make(chan struct{})
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		for {
			if err := f.swarm(gctx, a, sw, p); err != nil {
				return fmt.Errorf("fetch %s: %w", a.Reference, err)
			}
			arrived = time.Now()
			p.arrived()
			f.cfg.Log.Info("fetched", "ref", a.Reference, "version", a.Version, "bytes", p.fetched(), "peers", p.tally.Names(), "seconds", arrived.Sub(start).Seconds())
			f.cfg.Column.Import(a, p.importing)
			if !lostChunks(gctx, sw.Image, imported) {
				return nil
			}
			f.cfg.Log.Warn("lost chunks before they were imported; fetching them again", "ref", a.Reference, "version", a.Version)
			f.cfg.Column.Fetch(a, p.bytes, p.reason)
		}
	})
	group.Go(func() error {
		defer close(imported)
		if err := sw.Image.Import(gctx, a.Reference); err != nil {
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
	f.cfg.Metrics.fetchSeconds.Observe(arrived.Sub(start).Seconds())
	f.cfg.Metrics.importSeconds.Observe(time.Since(arrived).Seconds())
	ready, reason, err := verify(ctx)
	if err != nil {
		return err
	}
	if !ready {
		return fmt.Errorf("import %s: done, but the image is not ready: %s", a.Reference, reason)
	}
	f.cfg.Log.Info("ready", "ref", a.Reference, "digest", a.Target.Digest, "version", a.Version,
		"bytes", p.total, "local_bytes", p.local, "peers", p.tally.Names(), "seconds", time.Since(start).Seconds())
	f.cfg.Note(report.EventReady, a, fmt.Sprintf("%s fetched in %.1f s", figure.Size(p.fetched()), time.Since(start).Seconds()))
	f.registerWithOwners(ctx, a, sw.Image.Have().Count() == sw.Image.Len())
	return nil
}

// recount is how often it is looked whether what an import waits for is still here:
// frames are found damaged when they are read, and blobs are collected.
const recount = 5 * time.Second

// lostChunks waits for the end of an import and reports whether it waits for chunks
// that are not here any more.
func lostChunks(ctx context.Context, img images.Image, imported <-chan struct{}) bool {
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

// chunks runs the swarm of an image until every wanted chunk is here. Those that hold holds
// back it does not ask for.
func (f *Fetcher) chunks(ctx context.Context, a catalog.Announcement, sw *images.Open, hold *swarm.Hold, p *progress, m *meter) error {
	return swarm.Fetch(ctx, swarm.FetchConfig{
		Seed:      a.Seed.Digest,
		Chunks:    sw.Image,
		Hold:      hold,
		Transport: f.cfg.Client,
		Finder:    finder{f.Owners, a.NodeName},
		Self:      f.cfg.Members.Self(),
		Memory:    &f.memory,
		Small:     swarm.SmallBytes,
		Log:       f.cfg.SwarmLog.With("ref", a.Reference),
		Observe: swarm.Observer{
			Have: sw.Upload.Added,
			Received: func(n int, peer string, raw, wire int64) {
				if !p.first(n) { // it was rebuilt while it was under way
					f.cfg.Metrics.twiceBytes.Add(float64(wire))
					p.tally.Travelled(wire)
					return
				}
				f.cfg.Metrics.goodChunks.Inc()
				f.cfg.Metrics.chunks("peer", raw)
				p.tally.Received(peer, raw, wire)
				m.received(time.Now(), raw, wire)
			},
			Duplicate: func(_ string, wire int64) {
				f.cfg.Metrics.twiceBytes.Add(float64(wire))
				p.tally.Travelled(wire)
			},
			Refused: func(_, reason string) { f.cfg.Metrics.refused.WithLabelValues(reason).Inc() },
			BadChunk: func(peer, id string, n int) {
				f.cfg.Metrics.badChunks.Inc()
				f.cfg.Note(report.EventBadChunk, a, fmt.Sprintf("chunk %d does not verify; its sender is not asked for a while", n), f.cfg.Members.NameOf(id, peer))
				f.complain(ctx, a, f.cfg.Members.NameOf(id, peer), n)
			},
			State: p.set,
		},
	})
}

// seedIndex returns the seed index of a: kept here, or from a member, the
// announcer first. It is content-addressed, so anybody may serve it.
func (f *Fetcher) seedIndex(ctx context.Context, a catalog.Announcement) ([]byte, error) {
	index, err := f.cfg.Store.SeedIndex(ctx, a.Seed.Digest)
	if err == nil {
		return index, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read seed index of %s: %w", a.Reference, err)
	}
	var errs []error
	for _, m := range f.seedHolders(a) {
		askCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
		index, err := f.cfg.Client.Seed(askCtx, m.Address, a.Seed.Digest)
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
func (f *Fetcher) seedHolders(a catalog.Announcement) []swarm.Peer {
	const ask = 8
	peers := f.cfg.Members.Peers()
	for i, p := range peers {
		if p.Name == a.NodeName {
			peers[0], peers[i] = peers[i], peers[0]
		}
	}
	return peers[:min(ask, len(peers))]
}

// complainTimeout bounds the word to a peer that what it sent is damaged.
const complainTimeout = 10 * time.Second

// complain tells the member that sent a bad chunk, which may not know that its disk has
// rotted. Where it does not hear that, the next bad chunk tells again.
func (f *Fetcher) complain(ctx context.Context, a catalog.Announcement, name string, chunk int) {
	addr, ok := f.cfg.Members.Address(name)
	if !ok {
		return
	}
	f.complaints.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, complainTimeout)
		defer cancel()
		if err := f.cfg.Client.Recheck(ctx, addr, a.Seed.Digest, chunk); err != nil {
			f.cfg.Log.Debug("failed to tell a peer that a chunk was damaged", "peer", name, "chunk", chunk, "err", err)
		}
	})
}
