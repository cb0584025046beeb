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
	// holdFactor is how many times the estimate ordinary chunks are held back for a delta
	// that is being made, and holdMost the most, of all layers together: beyond it they are
	// fetched.
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
)

// errNoBase says that there is nothing to make a layer from.
var errNoBase = errors.New("this host has no layer of another build or image that a delta could be made from")

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
	asked  time.Time                   // when something was asked to be made last
	until  map[digest.Digest]time.Time // how long a layer is held back while its delta is made
	most   time.Time                   // how long any is
	said   map[digest.Digest]bool      // layers of which it was said why they come whole
	failed map[digest.Digest]bool      // layers of which a delta was of no use: they come whole
	taking digest.Digest               // the layer that is being fetched as a delta and rebuilt; empty: none
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
// remain. One layer is fetched and rebuilt at a time; what the other ones wait for goes on
// meanwhile.
func (d *byDeltas) run(ctx context.Context) {
	if !d.worthAsking() {
		return
	}
	if err := d.askFirst(ctx); err != nil {
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, errNoBase):
			d.p.noDelta(errNoBase.Error())
		case errors.Is(err, fs.ErrNotExist):
			d.p.noDelta("the announcing host is away, or offers none")
		default:
			d.cfg.Log.Debug("no deltas", "ref", d.a.Reference, "err", err)
			d.p.noDelta("the announcing host does not answer")
		}
		return
	}
	d.until, d.said, d.failed, d.most = map[digest.Digest]time.Time{}, map[digest.Digest]bool{}, map[digest.Digest]bool{}, time.Now().Add(holdMost)
	took := make(chan error, 1)
	var taking sync.WaitGroup
	defer taking.Wait()
	var current chunk.Offer
	finish := func(err error) {
		d.taking = ""
		d.done(ctx, current, err)
	}
	for ctx.Err() == nil {
		ready, wait := d.decide(time.Now())
		if d.taking == "" && ready != nil {
			o := *ready
			current, d.taking = o, o.Target
			taking.Go(func() { took <- d.take(ctx, o) })
			continue
		}
		if len(d.offers) == 0 && d.taking == "" {
			return
		}
		pause := decideEvery // the rate is not known yet, or something else is sooner by now
		if wait > 0 {
			pause = decideEvery - time.Since(d.asked)
		}
		if pause > 0 {
			select {
			case err := <-took:
				finish(err)
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		if err := d.askWhile(ctx, took, finish, wait); err != nil {
			d.p.noDelta("the announcing host does not answer")
			d.offers = slices.DeleteFunc(d.offers, chunk.Offer.Pending)
		}
	}
}

// askWhile asks what has become ready, for so long at most, or until the layer that is being
// taken is there.
func (d *byDeltas) askWhile(ctx context.Context, took <-chan error, finish func(error), wait time.Duration) error {
	actx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	asked := make(chan error, 1)
	var asking sync.WaitGroup
	asking.Go(func() { asked <- d.ask(actx, true) })
	defer asking.Wait()
	select {
	case err := <-asked:
		if actx.Err() != nil { // its time is over
			return nil
		}
		return err
	case err := <-took:
		cancel()
		asking.Wait()
		finish(err)
		return nil
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
	return d.ask(ctx, false)
}

// ask asks the announcer what it offers. With make it makes what is not there, and the
// answer takes a while.
func (d *byDeltas) ask(ctx context.Context, make bool) error {
	if make {
		d.asked = time.Now()
	}
	addr, ok := d.cfg.Members.Address(d.a.NodeName)
	if !ok || d.a.NodeName == d.cfg.Members.Self() {
		return fmt.Errorf("no address of %s: %w", d.a.NodeName, fs.ErrNotExist)
	}
	if d.bases == nil {
		var err error
		if d.bases, err = d.cfg.Deltas.Bases(ctx, d.a.Reference, d.cfg.History(d.a.Reference)); err != nil {
			return err
		}
		if len(d.bases) == 0 {
			return errNoBase
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
	w := worth{missing: d.missing(o.Target), delta: o.Bytes, after: o.After}
	first, n := d.sw.Image.Layer(o.Target)
	for i := range n {
		w.layer += d.sw.Image.Bytes(first + i)
	}
	w.raw, w.wire, w.rebuild = d.links.rates(o.Kind)
	return w
}

// decide holds back the layers of which a delta pays, and returns one that can be had now.
// wait is how long it is worth to wait for the next one that is being made.
func (d *byDeltas) decide(now time.Time) (ready *chunk.Offer, wait time.Duration) {
	hold := map[digest.Digest]bool{}
	if d.taking != "" {
		hold[d.taking] = true
	}
	d.offers = slices.DeleteFunc(d.offers, func(o chunk.Offer) bool { return d.useless(o) })
	for i, o := range d.offers {
		if o.Target == d.taking {
			continue
		}
		w := d.figures(o)
		if !w.pays() {
			if w.raw > 0 && !d.said[o.Target] { // later the figures are of what is left
				d.said[o.Target] = true
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
			until = now.Add(holdFactor*o.After + slack)
			d.until[o.Target] = until
		}
		left := min(until.Sub(now), d.most.Sub(now))
		if left <= 0 {
			d.said[o.Target] = true
			d.p.noDelta("it was not made in time")
			continue
		}
		hold[o.Target] = true
		if wait == 0 || left < wait {
			wait = left
		}
	}
	d.held.set(hold)
	return ready, wait
}
