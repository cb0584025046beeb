// Package rollout writes into the journal when what this host announced is ready on all
// hosts that are there: by a command that waits or not, and what the daemon announces by
// itself.
//
// It owns that line. It decides nothing and keeps nothing but what is still on its way.
//
// Invariant: each announcement of this host that becomes ready everywhere, and is not
// replaced before, has one line; while nothing is on its way nobody is asked.
package rollout

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"seeder/p2p/report"
)

const (
	// The nodes are asked minPause after an announcement, and then less and less often, to
	// maxPause: who waits for it on a terminal asks by itself.
	minPause = 500 * time.Millisecond
	maxPause = 10 * time.Second
	// giveUp is for how long an announcement is followed, and maxOpen how many.
	giveUp  = 24 * time.Hour
	maxOpen = 256
)

// Asker says how far images are on all nodes.
type Asker interface {
	Images(ctx context.Context, refs ...string) (report.Images, error)
}

// Watch follows the announcements of this host. It is safe for concurrent use.
type Watch struct {
	log *slog.Logger

	mu   sync.Mutex
	open map[string]opened // by reference
	wake chan struct{}     // capacity 1
}

type opened struct {
	version uint64
	at      time.Time
}

// New returns a watch that does nothing before Run.
func New(log *slog.Logger) *Watch {
	return &Watch{log: log.With("component", "rollout"), open: map[string]opened{}, wake: make(chan struct{}, 1)}
}

// Announced begins to follow an announcement of this host. It does not block.
func (w *Watch) Announced(ref string, version uint64) {
	w.mu.Lock()
	if len(w.open) < maxOpen || w.open[ref].version > 0 {
		w.open[ref] = opened{version, time.Now()}
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run asks until ctx ends.
func (w *Watch) Run(ctx context.Context, nodes Asker) {
	pause := minPause
	for {
		refs := w.refs()
		var tick <-chan time.Time
		if len(refs) > 0 {
			tick = time.After(pause)
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
			pause = minPause
			continue
		case <-tick:
		}
		pause = min(2*pause, maxPause)
		if images, err := nodes.Images(ctx, refs...); err == nil {
			w.look(images.Images, time.Now())
		}
	}
}

// refs are those that are followed, without those that were for too long.
func (w *Watch) refs() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.open, func(_ string, o opened) bool { return time.Since(o.at) > giveUp })
	return slices.Sorted(maps.Keys(w.open))
}

// look takes what the nodes say.
func (w *Watch) look(rows []report.ImageState, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, row := range rows {
		o, ok := w.open[row.Reference]
		switch {
		case !ok || row.Version < o.version:
		case row.Version > o.version || row.State == "withdrawn":
			delete(w.open, row.Reference) // another announcement took its place
		case row.Settled() && row.Ready > 0:
			delete(w.open, row.Reference)
			w.log.Info("image ready on all alive nodes", "ref", row.Reference, "version", row.Version, "ready", row.Ready,
				"away", row.Away, "took", now.Sub(o.at).Round(10*time.Millisecond))
		}
	}
}
