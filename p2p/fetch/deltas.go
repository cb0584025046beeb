package fetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
	"seeder/p2p/images"
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
	// decideEvery is how often it is decided anew whether an offer pays, and the least time
	// between two questions for offers.
	decideEvery = 500 * time.Millisecond
	// A delta has so much longer to come, or to be applied, than was estimated.
	slack       = 5 * time.Second
	slackFactor = 4
	// mostTried bounds the offers that are remembered as useless.
	mostTried = 256
)

// errNoBase says that there is nothing to make a layer from.
var errNoBase = errors.New("this host has no layer of another build or image that a delta could be made from")

// byDeltas gets layers of one image as deltas while the rest of it is fetched. The goroutine
// of run owns it; those that take and ask for deltas report to it.
type byDeltas struct {
	*Fetcher
	a      catalog.Announcement
	sw     *images.Open
	p      *progress
	held   *held
	budget budget
	wire   atomic.Int64 // bytes of deltas that came

	bases  []digest.Digest
	offers []chunk.Offer
	known  bool                   // offers were asked for
	ready  int                    // that were ready when it was asked last
	asked  time.Time              // when something was asked to be made last
	told   time.Time              // when offers were told last: how long theirs take counts from then
	fates  map[digest.Digest]fate // of layers, as far as it is known why they come whole
	taking digest.Digest          // the layer that is being fetched as a delta and rebuilt; empty: none
}

// fate is why a layer comes whole.
type fate struct {
	why     why
	missing int64 // bytes of it when that became known
}

type why int

const (
	late   why = iota + 1 // its delta is being made
	slower                // its delta takes longer than its chunks; said
	failed                // its delta was of no use; said
)

// begin holds back the layers that take long enough by the rates of the fetches before,
// until it is known what is offered. Where no rate is known nothing is.
func (d *byDeltas) begin() {
	d.fates = map[digest.Digest]fate{}
	d.budget.image = d.p.missing()
	d.read(time.Now())
	d.decide(time.Now())
}

// run ends when nothing more is to be had by deltas. Whatever fails, the ordinary chunks
// remain. One layer is fetched and rebuilt at a time; what the other ones wait for goes on
// meanwhile.
func (d *byDeltas) run(ctx context.Context) {
	if !d.worthAsking() {
		return
	}
	defer d.sayLate()
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	took, answers := make(chan error, 1), make(chan answer, 1)
	var current chunk.Offer
	asking := false
	ask := func(make bool) {
		asking = true
		if make {
			d.asked = time.Now()
		}
		work.Go(func() { answers <- d.ask(ctx, make) })
	}
	ask(false)
	for ctx.Err() == nil {
		now := time.Now()
		d.read(now)
		ready, pending := d.decide(now)
		switch {
		case ready != nil && d.taking == "":
			current, d.taking = *ready, ready.Target
			work.Go(func() { took <- d.take(ctx, current) })
			continue
		case pending && !asking && now.Sub(d.asked) >= decideEvery:
			ask(true)
		case d.known && len(d.offers) == 0 && d.taking == "":
			return
		}
		select {
		case err := <-took:
			d.taking = ""
			d.read(time.Now())
			d.done(ctx, current, err)
			d.held.again()
		case a := <-answers:
			asking = false
			if !d.learn(ctx, a) {
				return
			}
		case <-time.After(d.pause()):
		case <-ctx.Done():
		}
	}
}

// pause is until when nothing is to be decided: less where the time is nearly over for which
// chunks are held back.
func (d *byDeltas) pause() time.Duration {
	if len(d.held.layers) == 0 {
		return decideEvery
	}
	raw, _, _ := d.links.rates(chunk.DeltaBytes)
	ready, pending := d.budget.left(raw)
	if pending > 0 { // it is over before that of ready ones
		return min(max(pending, time.Millisecond), decideEvery)
	}
	return min(max(ready, time.Millisecond), decideEvery)
}

// read counts how long the link was idle.
func (d *byDeltas) read(now time.Time) {
	raw, wire, _ := d.links.rates(chunk.DeltaBytes)
	here, rebuilt := d.p.here()
	d.budget.read(now, came{here: here, rebuilt: rebuilt, delta: d.wire.Load()}, raw, wire)
}

// answer is what the announcer offers.
type answer struct {
	bases  []digest.Digest // that this host has, which were named
	offers []chunk.Offer
	make   bool
	err    error
}

// ask asks the announcer what it offers. With make it makes what is not there, and the
// answer takes a while.
func (d *byDeltas) ask(ctx context.Context, make bool) answer {
	a := answer{bases: d.bases, make: make}
	addr, ok := d.cfg.Members.Address(d.a.NodeName)
	if !ok || d.a.NodeName == d.cfg.Members.Self() {
		a.err = fmt.Errorf("no address of %s: %w", d.a.NodeName, fs.ErrNotExist)
		return a
	}
	if a.bases == nil {
		if a.bases, a.err = d.cfg.Deltas.Bases(ctx, d.a.Reference, d.cfg.History(d.a.Reference)); a.err != nil {
			return a
		}
		if len(a.bases) == 0 {
			a.err = errNoBase
			return a
		}
	}
	a.offers, a.err = d.cfg.Client.Deltas(ctx, addr, d.a.Seed.Digest, a.bases, make, d.ready)
	return a
}

// learn takes an answer, and reports whether there is anything to be had.
func (d *byDeltas) learn(ctx context.Context, a answer) bool {
	if ctx.Err() != nil {
		return false
	}
	if a.err != nil {
		switch {
		case errors.Is(a.err, errNoBase):
			d.p.noDelta(errNoBase.Error())
		case errors.Is(a.err, fs.ErrNotExist):
			d.p.noDelta("the announcing host is away, or offers none")
		default:
			d.cfg.Log.Debug("no deltas", "ref", d.a.Reference, "err", a.err)
			d.p.noDelta("the announcing host does not answer")
		}
		d.offers = slices.DeleteFunc(d.offers, chunk.Offer.Pending)
		return a.make
	}
	d.known, d.ready, d.bases, d.told = true, 0, a.bases, time.Now()
	for _, o := range a.offers {
		if o.Ready() {
			d.ready++
		}
	}
	d.offers = slices.DeleteFunc(a.offers, func(o chunk.Offer) bool {
		if o.Why != "" {
			d.p.noDelta(o.Why)
		}
		return o.Why != "" || !slices.Contains(d.bases, o.Base) || d.useless(o)
	})
	return true
}

// saySlower says once why an offer is not taken. One that was waited for is late, unless it
// would not have been taken at first either.
func (d *byDeltas) saySlower(o chunk.Offer, w worth) {
	f := d.fates[o.Target]
	if f.why == late {
		w.missing = f.missing
	}
	if w.raw > 0 && (f.why == 0 || f.why == late && o.Ready() && !w.pays()) {
		d.fates[o.Target] = fate{why: slower}
		d.p.noDelta(fmt.Sprintf("whole it is here in %.1f s, as a delta in %.1f s", w.whole().Seconds(), w.byDelta().Seconds()))
	}
}

// sayLate says of which layers the deltas were not ready in time.
func (d *byDeltas) sayLate() {
	for _, f := range d.fates {
		if f.why == late {
			d.p.noDelta("it was not made in time")
		}
	}
}

// useless reports whether nothing is to be had by an offer any more.
func (d *byDeltas) useless(o chunk.Offer) bool {
	return d.fates[o.Target].why == failed || d.missing(o.Target) == 0 || d.tried.has(o)
}

// worthAsking reports whether a blob is missing that takes long enough, as far as that is
// known.
func (d *byDeltas) worthAsking() bool {
	raw, _, _ := d.links.rates(chunk.DeltaBytes)
	for _, blob := range d.sw.Image.Missing() {
		w := worth{missing: d.missing(blob), raw: raw}
		if w.missing >= chunk.MinDeltaLayer && (raw == 0 || w.whole() >= leastGain) {
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
	w := worth{missing: d.missing(o.Target), delta: o.Bytes, after: max(o.After-time.Since(d.told), 0)}
	first, n := d.sw.Image.Layer(o.Target)
	for i := range n {
		w.layer += d.sw.Image.Bytes(first + i)
	}
	w.raw, w.wire, w.rebuild = d.links.rates(o.Kind)
	return w
}

// decide holds back the layers of which a delta pays, as long as the link may be idle. ready
// is a delta that can be had now, pending whether one is worth to be made.
func (d *byDeltas) decide(now time.Time) (ready *chunk.Offer, pending bool) {
	raw, _, _ := d.links.rates(chunk.DeltaBytes)
	leftReady, leftPending := d.budget.left(raw)
	hold := map[digest.Digest]bool{}
	defer func() {
		d.held.set(hold)
		d.budget.holding = len(hold) > 0
		if d.taking == "" && pending {
			d.p.doing("a delta is being made")
		}
	}()
	if !d.known {
		for _, blob := range d.sw.Image.Missing() {
			w := worth{missing: d.missing(blob), raw: raw}
			if w.whole() >= leastGain && leftPending > 0 {
				hold[blob] = true
			}
		}
		return nil, false
	}
	if d.taking != "" && leftReady > 0 {
		hold[d.taking] = true
	}
	d.offers = slices.DeleteFunc(d.offers, func(o chunk.Offer) bool { return d.useless(o) })
	for i, o := range d.offers {
		if o.Target == d.taking {
			continue
		}
		w := d.figures(o)
		switch {
		case !w.pays():
			d.saySlower(o, w)
		case o.Ready():
			delete(d.fates, o.Target)
			if leftReady > 0 {
				hold[o.Target] = true
			}
			if ready == nil {
				ready = &d.offers[i]
			}
		default:
			pending = true
			if d.fates[o.Target].why != late {
				d.fates[o.Target] = fate{late, w.missing}
			}
			if leftPending > 0 {
				hold[o.Target] = true
			}
		}
	}
	return ready, pending
}
