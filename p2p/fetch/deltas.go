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
	"seeder/p2p/catalog"
	"seeder/p2p/images"
	"seeder/p2p/swarm"
	"seeder/store/chunk"
)

// Deltas keeps the deltas that are fetched, and knows what they can be made from.
type Deltas interface {
	// Bases are layers that this host has, the likeliest base of a layer of ref first.
	// targets are those that ref had before.
	Bases(ctx context.Context, ref string, targets []digest.Digest) ([]digest.Digest, error)
	// Expect has what is fetched of a delta kept, as long as the image is announced.
	Expect(image digest.Digest, o chunk.Offer) error
	// Discard forgets a delta that is of no use.
	Discard(o chunk.Offer)
}

const (
	// decideEvery is how often it is decided anew whether an offer pays.
	decideEvery = 500 * time.Millisecond
	// askTimeout bounds a question for offers; a delta that is being made may take most of it.
	askTimeout = 15 * time.Second
	// holdFactor is how many times the estimate ordinary chunks are held back for a delta
	// that is being made, and holdMost the most: beyond it they are fetched.
	holdFactor = 2
	holdMost   = time.Minute
	// A delta has so much longer to come, or to be applied, than was estimated.
	slack       = 5 * time.Second
	slackFactor = 4
	// firstShare is the part of the time of a layer's ordinary chunks for which they are held
	// back until it is known whether there is a delta, and firstMost the most.
	firstShare = 0.1
	firstMost  = 2 * time.Second
	// mostTried bounds the offers that are remembered as useless.
	mostTried = 256
	// mostOfLayer is the largest delta that is fetched, of its layer.
	mostOfLayer = 0.5
)

// errHeld ends a swarm whose chunks are to be others from now on.
var errHeld = errors.New("other chunks are wanted now")

// held are the chunks of an image that are not fetched, because a layer comes as a delta.
// It is safe for concurrent use.
type held struct {
	mu      sync.Mutex
	layers  map[digest.Digest]bool
	changed chan struct{} // closed and replaced when layers are others
}

func newHeld() *held {
	return &held{layers: map[digest.Digest]bool{}, changed: make(chan struct{})}
}

// set says which layers are held back.
func (h *held) set(layers map[digest.Digest]bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	same := len(layers) == len(h.layers)
	for l := range layers {
		same = same && h.layers[l]
	}
	if same {
		return
	}
	h.layers = layers
	close(h.changed)
	h.changed = make(chan struct{})
}

// of are the chunks of img that are held back, and a channel that is closed when they
// are others.
func (h *held) of(img images.Image) (chunk.Bitmap, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	set := chunk.NewBitmap(img.Len())
	for l := range h.layers {
		first, n := img.Layer(l)
		for i := range n {
			set.Set(first + i)
		}
	}
	return set, h.changed
}

// without is an image of which some chunks are not fetched now.
type without struct {
	images.Image
	held chunk.Bitmap
}

// Wanted implements swarm.Chunks.
func (w without) Wanted() chunk.Bitmap { return w.Image.Wanted().Without(w.held) }

// swarm fetches every wanted chunk that is not here: in the swarm of the image, and layers
// of which a delta is there sooner by that.
func (f *Fetcher) swarm(ctx context.Context, a catalog.Announcement, sw *images.Open, p *progress) error {
	m := &meter{links: &f.links}
	if f.cfg.Deltas == nil {
		return f.chunks(ctx, a, sw, sw.Image, p, m)
	}
	h := newHeld()
	d := &byDeltas{Fetcher: f, a: a, sw: sw, p: p, held: h}
	d.holdUntilAsked()
	dctx, cancel := context.WithCancel(ctx)
	var deltas sync.WaitGroup
	deltas.Go(func() {
		defer h.set(map[digest.Digest]bool{})
		d.run(dctx)
	})
	defer deltas.Wait()
	defer cancel()
	for {
		set, changed := h.of(sw.Image)
		err := f.until(ctx, changed, func(ctx context.Context) error {
			return f.chunks(ctx, a, sw, without{sw.Image, set}, p, m)
		})
		switch {
		case errors.Is(err, errHeld) && ctx.Err() == nil:
			m.pause()
			continue
		case err != nil:
			return err
		case set.Count() == 0 || sw.Image.Have().Contains(sw.Image.Wanted()):
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// until runs work, and ends it with errHeld once changed is closed.
func (f *Fetcher) until(ctx context.Context, changed <-chan struct{}, work func(context.Context) error) error {
	wctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-changed:
			cancel(errHeld)
		case <-wctx.Done():
		}
	})
	defer watch.Wait()
	defer cancel(nil)
	err := work(wctx)
	if err != nil && ctx.Err() == nil && errors.Is(context.Cause(wctx), errHeld) {
		return errHeld
	}
	return err
}

// byDeltas gets layers of one image as deltas while the rest of it is fetched.
type byDeltas struct {
	*Fetcher
	a    catalog.Announcement
	sw   *images.Open
	p    *progress
	held *held

	bases  []digest.Digest
	offers []chunk.Offer
	ready  int                         // that were ready when it was asked last
	failed map[digest.Digest]bool      // layers of which a delta was of no use: they come whole
	until  map[digest.Digest]time.Time // how long a layer is held back while its delta is made
	first  time.Duration               // how long layers are held back until it is known what is offered
}

// holdUntilAsked holds back the layers that take long enough by the rates of the fetches
// before, for as long as the first question may take. Where no rate is known nothing is.
func (d *byDeltas) holdUntilAsked() {
	raw, _, _ := d.links.rates(chunk.DeltaBytes)
	layers := map[digest.Digest]bool{}
	for _, blob := range d.sw.Image.Missing() {
		w := worth{missing: d.missing(blob), raw: raw}
		if w.whole() < leastGain {
			continue
		}
		layers[blob] = true
		d.first = min(max(d.first, time.Duration(firstShare*float64(w.whole()))), firstMost)
	}
	d.held.set(layers)
}

// run ends when nothing more is to be had by deltas. Whatever fails, the ordinary chunks
// remain.
func (d *byDeltas) run(ctx context.Context) {
	if !d.worthAsking() {
		return
	}
	if err := d.askFirst(ctx); err != nil {
		if ctx.Err() == nil && !errors.Is(err, fs.ErrNotExist) {
			d.cfg.Log.Debug("no deltas", "ref", d.a.Reference, "err", err)
		}
		return
	}
	d.until, d.failed = map[digest.Digest]time.Time{}, map[digest.Digest]bool{}
	for len(d.offers) > 0 && ctx.Err() == nil {
		ready, wait := d.decide(time.Now())
		switch {
		case ready != nil:
			err := d.take(ctx, *ready)
			d.done(ctx, *ready, err)
		case wait > 0:
			if err := d.ask(ctx, true, min(wait, askTimeout)); err != nil && ctx.Err() == nil {
				d.p.noDelta("the announcing host did not make it in time, or does not answer")
				return
			}
		default: // the rate is not known yet, or something else is sooner by now
			select {
			case <-time.After(decideEvery):
			case <-ctx.Done():
			}
		}
	}
}

// askFirst asks what is offered, and holds chunks back meanwhile, but not for long.
func (d *byDeltas) askFirst(ctx context.Context) error {
	asked := make(chan struct{})
	var late sync.WaitGroup
	late.Go(func() {
		select {
		case <-time.After(d.first):
			d.held.set(map[digest.Digest]bool{})
		case <-asked:
		}
	})
	defer late.Wait()
	defer close(asked)
	return d.ask(ctx, false, askTimeout)
}

// ask asks the announcer what it offers. With make it makes what is not there, and the
// answer takes a while.
func (d *byDeltas) ask(ctx context.Context, make bool, wait time.Duration) error {
	addr, ok := d.cfg.Members.Address(d.a.NodeName)
	if !ok || d.a.NodeName == d.cfg.Members.Self() {
		return fmt.Errorf("no address of %s: %w", d.a.NodeName, fs.ErrNotExist)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if d.bases == nil {
		var err error
		if d.bases, err = d.cfg.Deltas.Bases(ctx, d.a.Reference, d.cfg.History(d.a.Reference)); err != nil {
			return err
		}
		if len(d.bases) == 0 {
			return fmt.Errorf("this host has no layer that may be a base: %w", fs.ErrNotExist)
		}
	}
	offers, err := d.cfg.Client.Deltas(ctx, addr, d.a.Seed.Digest, d.bases, make, d.ready)
	if err != nil {
		return err
	}
	d.ready = 0
	for _, o := range offers {
		if o.Ready() {
			d.ready++
		}
	}
	d.offers = slices.DeleteFunc(offers, func(o chunk.Offer) bool {
		if o.Why != "" {
			d.p.noDelta(o.Why)
		}
		return o.Why != "" || !slices.Contains(d.bases, o.Base) || d.useless(o)
	})
	return nil
}

// useless reports whether nothing is to be had by an offer any more.
func (d *byDeltas) useless(o chunk.Offer) bool {
	return d.failed[o.Target] || d.missing(o.Target) == 0 || d.tried.has(o)
}

// worthAsking reports whether a blob is missing that takes long enough, as far as that is
// known.
func (d *byDeltas) worthAsking() bool {
	raw, _, _ := d.links.rates(chunk.DeltaBytes)
	for _, blob := range d.sw.Image.Missing() {
		w := worth{missing: d.missing(blob), raw: raw}
		if w.missing >= leastBytes && (raw == 0 || w.whole() >= leastGain) {
			return true
		}
	}
	return false
}

// missing are the bytes of a layer that are not here.
func (d *byDeltas) missing(layer digest.Digest) (bytes int64) {
	first, n := d.sw.Image.Layer(layer)
	have, wanted := d.sw.Image.Have(), d.sw.Image.Wanted()
	for i := range n {
		if wanted.Has(first+i) && !have.Has(first+i) {
			bytes += d.sw.Image.Bytes(first + i)
		}
	}
	return bytes
}

// figures are those by which an offer is judged.
func (d *byDeltas) figures(o chunk.Offer) worth {
	w := worth{missing: d.missing(o.Target), delta: o.Bytes, after: o.After}
	first, n := d.sw.Image.Layer(o.Target)
	for i := range n {
		w.layer += d.sw.Image.Bytes(first + i)
	}
	w.raw, w.wire, w.rebuild = d.links.rates(o.Kind)
	return w
}

// decide holds back the layers of which a delta pays, and returns one that can be had now.
// wait is how long it is worth to wait for one that is being made.
func (d *byDeltas) decide(now time.Time) (ready *chunk.Offer, wait time.Duration) {
	hold := map[digest.Digest]bool{}
	d.offers = slices.DeleteFunc(d.offers, func(o chunk.Offer) bool { return d.useless(o) })
	for i, o := range d.offers {
		w := d.figures(o)
		if !w.pays() {
			if w.raw > 0 {
				d.p.noDelta(fmt.Sprintf("whole it is here in %.1f s, as a delta in %.1f s", w.whole().Seconds(), w.byDelta().Seconds()))
			}
			continue
		}
		if o.Ready() {
			hold[o.Target] = true
			if ready == nil {
				ready = &d.offers[i]
			}
			continue
		}
		until, known := d.until[o.Target]
		if !known {
			until = now.Add(min(holdFactor*o.After+slack, holdMost))
			d.until[o.Target] = until
		}
		if now.Before(until) {
			hold[o.Target] = true
			wait = max(wait, until.Sub(now))
		} else {
			d.p.noDelta("it was not made in time")
		}
	}
	d.held.set(hold)
	return ready, wait
}

// take fetches a delta and rebuilds its layer.
func (d *byDeltas) take(ctx context.Context, o chunk.Offer) error {
	w := d.figures(o)
	if float64(o.Bytes) > mostOfLayer*float64(w.layer) || o.Bytes <= 0 {
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
	began := time.Now()
	if err := d.sw.Image.Rebuild(rctx, o, func(n int) {
		d.sw.Upload.Added(n)
		d.p.tally.Rebuilt(d.sw.Image.Bytes(n))
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
			Received: func(_ string, _, bytes int64) {
				wire += bytes
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
	d.failed[o.Target] = true
	d.cfg.Metrics.deltas.WithLabelValues("failed").Inc()
	d.cfg.Deltas.Discard(o)
	d.p.noDelta(err.Error())
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
