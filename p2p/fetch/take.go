package fetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/internal/figure"
	"seeder/p2p/swarm"
	"seeder/store/chunk"
)

// take fetches a delta and rebuilds its layer.
func (d *byDeltas) take(ctx context.Context, o chunk.Offer) error {
	w := d.figures(o)
	if float64(o.Bytes) > chunk.MostOfLayer*float64(w.layer) || o.Bytes <= 0 {
		return fmt.Errorf("a delta of %d bytes for a layer of %d", o.Bytes, w.layer)
	}
	fctx, cancel := context.WithTimeout(ctx, slack+slackFactor*(startup+seconds(float64(o.Bytes)/max(w.wire, 1))))
	defer cancel()
	d.p.doing("fetching a delta of " + figure.Size(o.Bytes))
	defer d.p.doing("")
	wire, err := d.fetchDelta(fctx, o)
	if err != nil {
		return err
	}
	rctx, cancel := context.WithTimeout(ctx, slack+slackFactor*seconds(float64(w.layer)/w.rebuild))
	defer cancel()
	select { // one at a time: it takes a core, and 48 MiB
	case d.rebuilding <- struct{}{}:
		defer func() { <-d.rebuilding }()
	case <-rctx.Done():
		return fmt.Errorf("other layers are being rebuilt: %w", rctx.Err())
	}
	d.p.doing("rebuilding a layer of " + figure.Size(w.layer))
	d.cfg.Log.Debug("rebuilding a layer from a delta", "ref", d.a.Reference, "layer", o.Target, "base", o.Base)
	began, before := time.Now(), d.sw.Image.Have()
	if err := d.sw.Image.Rebuild(rctx, o, func(n int) {
		d.sw.Upload.Added(n)
		if !before.Has(n) && d.p.first(n) {
			d.p.rebuilt(d.sw.Image.Bytes(n))
		}
	}); err != nil {
		return err
	}
	took := time.Since(began)
	d.links.rebuilt(o.Kind, w.layer, took)
	d.cfg.Metrics.deltaSaved.Add(float64(max(w.missing-wire, 0)))
	d.cfg.Log.Info("rebuilt a layer from a delta", "ref", d.a.Reference, "layer", o.Target, "base", o.Base,
		"bytes", w.layer, "delta_bytes", wire, "seconds", took.Seconds())
	return nil
}

// fetchDelta fetches a delta as an image of one blob. wire is what came.
func (d *byDeltas) fetchDelta(ctx context.Context, o chunk.Offer) (wire int64, err error) {
	addr, _ := d.cfg.Members.Address(d.a.NodeName)
	index, err := d.cfg.Store.SeedIndex(ctx, o.Seed)
	if errors.Is(err, fs.ErrNotExist) {
		index, err = d.cfg.Client.Seed(ctx, addr, o.Seed)
	}
	if err != nil {
		return 0, err
	}
	open, err := d.cfg.Images.Acquire(ctx, o.Seed, index, true)
	if err != nil {
		return 0, fmt.Errorf("open the delta: %w", err)
	}
	defer d.cfg.Images.Release(open, true)
	var bytes int64
	for n := range open.Image.Len() {
		bytes += open.Image.Bytes(n)
	}
	if bytes != o.Bytes {
		return 0, fmt.Errorf("the delta has %d bytes, %d were offered", bytes, o.Bytes)
	}
	if err := d.cfg.Deltas.Expect(d.a.Seed.Digest, o); err != nil {
		return 0, err
	}
	d.cfg.Images.Lend(d.a.Seed.Digest, o.Seed)
	err = swarm.Fetch(ctx, swarm.FetchConfig{
		Seed:      o.Seed,
		Chunks:    open.Image,
		Transport: d.cfg.Client,
		Finder:    finder{d.Owners, d.a.NodeName},
		Self:      d.cfg.Members.Self(),
		Memory:    &d.memory,
		Log:       d.cfg.SwarmLog.With("ref", d.a.Reference, "delta", o.Seed),
		Observe: swarm.Observer{
			Have: open.Upload.Added,
			Received: func(_ int, _ string, _, bytes int64) {
				wire += bytes
				d.wire.Add(bytes)
				d.cfg.Metrics.deltaBytes.Add(float64(bytes))
				d.p.tally.Delta(bytes)
			},
			Duplicate: func(_ string, bytes int64) {
				d.cfg.Metrics.twiceBytes.Add(float64(bytes))
				d.p.tally.Delta(bytes)
			},
			Refused:  func(_, reason string) { d.cfg.Metrics.refused.WithLabelValues(reason).Inc() },
			BadChunk: func(_, _ string, _ int) { d.cfg.Metrics.badChunks.Inc() },
		},
	})
	if err != nil {
		return wire, fmt.Errorf("fetch the delta: %w", err)
	}
	return wire, nil
}

// done notes what came of an offer. One that was of no use is not tried again.
func (d *byDeltas) done(ctx context.Context, o chunk.Offer, err error) {
	if ctx.Err() != nil {
		return
	}
	d.tried.add(o)
	if err == nil {
		d.cfg.Metrics.deltas.WithLabelValues("used").Inc()
		return
	}
	d.fates[o.Target] = fate{why: failed}
	d.cfg.Metrics.deltas.WithLabelValues("failed").Inc()
	d.cfg.Deltas.Discard(o)
	d.p.tally.DeltaFailed(err.Error())
	d.cfg.Log.Warn("failed to use a delta; fetching ordinary chunks", "ref", d.a.Reference, "layer", o.Target, "base", o.Base, "err", err)
}

// tried are the offers that were taken, by the seeds of the deltas. It is safe for
// concurrent use.
type tried struct {
	mu    sync.Mutex
	seeds []digest.Digest
}

func (t *tried) has(o chunk.Offer) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return o.Seed != "" && slices.Contains(t.seeds, o.Seed)
}

func (t *tried) add(o chunk.Offer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seeds = append(t.seeds, o.Seed); len(t.seeds) > mostTried {
		t.seeds = t.seeds[1:]
	}
}
