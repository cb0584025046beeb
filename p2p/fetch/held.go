package fetch

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
	"seeder/p2p/images"
	"seeder/p2p/swarm"
	"seeder/store/chunk"
)

// held are the layers of an image whose chunks are not asked for, because they come as
// deltas. One goroutine uses it.
type held struct {
	image  images.Image
	layers map[digest.Digest]bool
	hold   *swarm.Hold
	meter  *meter
}

// set says which layers are held back.
func (h *held) set(layers map[digest.Digest]bool) {
	same := len(layers) == len(h.layers)
	for l := range layers {
		same = same && h.layers[l]
	}
	if same {
		return
	}
	h.layers = layers
	h.meter.pause()
	h.again()
}

// again has the swarm look what is here by now.
func (h *held) again() {
	set := chunk.NewBitmap(h.image.Len())
	for l := range h.layers {
		first, n := h.image.Layer(l)
		for i := range n {
			set.Set(first + i)
		}
	}
	h.hold.Set(set)
}

// swarm fetches every wanted chunk that is not here: in the swarm of the image, and layers
// of which a delta is there sooner by that.
func (f *Fetcher) swarm(ctx context.Context, a catalog.Announcement, sw *images.Open, p *progress) error {
	p.restart()
	m := &meter{links: &f.links}
	if f.cfg.Deltas == nil {
		return f.chunks(ctx, a, sw, nil, p, m)
	}
	h := &held{image: sw.Image, hold: swarm.NewHold(), meter: m}
	d := &byDeltas{Fetcher: f, a: a, sw: sw, p: p, held: h}
	d.begin()
	dctx, cancel := context.WithCancel(ctx)
	var deltas sync.WaitGroup
	deltas.Go(func() {
		defer h.set(nil)
		d.run(dctx)
	})
	defer deltas.Wait()
	defer cancel()
	return f.chunks(ctx, a, sw, h.hold, p, m)
}
