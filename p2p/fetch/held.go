package fetch

import (
	"context"
	"errors"
	"sync"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/catalog"
	"seeder/p2p/images"
	"seeder/store/chunk"
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
		err := f.until(ctx, h, sw.Image, set, changed, func(ctx context.Context) error {
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
			m.pause() // nothing was asked for meanwhile
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// until runs work, for which set is held back until changed is closed, and ends it with
// errHeld once other chunks are to be fetched. Chunks that are here make no difference: what
// is under way would be lost for nothing.
func (f *Fetcher) until(ctx context.Context, h *held, img images.Image, set chunk.Bitmap, changed <-chan struct{}, work func(context.Context) error) error {
	wctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-changed:
				now, next := h.of(img)
				if have := img.Have(); !have.Contains(now.Without(set)) || !have.Contains(set.Without(now)) {
					cancel(errHeld)
					return
				}
				changed = next
			case <-wctx.Done():
				return
			}
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
