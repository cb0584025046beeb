package p2p

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p/report"
)

// healthInterval is how often containerd is asked whether it is there. It costs
// one small request on a unix socket.
const healthInterval = 2 * time.Second

// healthState is the last answer of the image store.
type healthState struct {
	mu    sync.Mutex
	last  report.ContainerdStatus
	asked bool
	slow  atomic.Bool // has not answered the last question in time
}

func (h *healthState) status() report.ContainerdStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

// down is why the image store does not answer, empty while it does.
func (h *healthState) down() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.asked || h.last.OK {
		return ""
	}
	return h.last.Reason
}

// stillDown is why the image store does not answer, asked anew where it seemed to: one
// cause is said once.
func (n *Node) stillDown(ctx context.Context) string {
	if n.health.down() == "" && ctx.Err() == nil {
		n.askHealth(ctx)
	}
	return n.health.down()
}

// set books an answer and reports whether it differs from the last one.
func (h *healthState) set(s report.ContainerdStatus) (changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed = !h.asked || h.last.OK != s.OK
	if s.Since = h.last.Since; changed {
		s.Since = time.Now()
	}
	h.last, h.asked = s, true
	return changed
}

// awayAfter is how long containerd has to be silent until what it holds counts as not
// ready: a busy one misses a question now and then.
const awayAfter = 3 * healthInterval

// away is why containerd does not answer, empty while it does or has only just stopped.
func (h *healthState) away(now time.Time) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.asked || h.last.OK || now.Sub(h.last.Since) < awayAfter {
		return ""
	}
	return h.last.Reason
}

// watchHealth keeps health current, says once when containerd goes and when it
// comes, and wakes the converge loop when it is back.
func (n *Node) watchHealth(ctx context.Context) {
	tick := time.NewTicker(healthInterval)
	defer tick.Stop()
	for {
		n.beats.beat("health")
		n.askHealth(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (n *Node) askHealth(ctx context.Context) {
	askCtx, cancel := context.WithTimeout(ctx, healthInterval)
	defer cancel()
	address, version, err := n.store.Health(askCtx)
	if ctx.Err() != nil {
		return
	}
	if err != nil && askCtx.Err() != nil && n.health.slow.CompareAndSwap(false, true) && n.health.status().OK {
		return // it is busy; the next question tells whether it hangs
	}
	if err == nil {
		n.health.slow.Store(false)
	}
	s := report.ContainerdStatus{Address: address, Version: version, OK: err == nil}
	if err != nil {
		s.Reason = err.Error()
	}
	if !n.health.set(s) {
		return
	}
	if err != nil {
		n.log.Warn("waiting for containerd", "address", address, "err", err)
		n.events.add(report.Event{Time: time.Now(), Kind: report.EventDown, Reason: s.Reason})
		return
	}
	n.log.Info("containerd answers", "address", address, "version", version)
	n.events.add(report.Event{Time: time.Now(), Kind: report.EventUp})
	n.loop.Recovered()
}

// janitorInterval is how long what nobody needs any more may lie about.
const janitorInterval = 30 * time.Second

// janitor closes the swarms that nobody uses, and removes what was left behind.
func (n *Node) janitor(ctx context.Context) {
	tick := time.NewTicker(janitorInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			n.swarms.sweep(now)
			if n.health.down() != "" {
				continue
			}
			n.tidy(ctx)
			n.loop.Tend(ctx, now)
		}
	}
}

// tidy lets the store remove what belongs to no announcement.
func (n *Node) tidy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, janitorInterval)
	defer cancel()
	seeds, targets := n.announcedNow()
	if err := n.store.Tidy(ctx, seeds, targets); err != nil && ctx.Err() == nil {
		if n.askHealth(ctx); n.health.down() == "" {
			n.log.Warn("failed to remove unneeded data", "err", err)
		}
	}
}

// announcedNow are the seed indexes and the targets of what is announced now.
func (n *Node) announcedNow() (seeds, targets []digest.Digest) {
	for _, rec := range n.catalog.All() {
		if a := rec.Announcement(); !a.Withdrawn {
			seeds, targets = append(seeds, a.Seed.Digest), append(targets, a.Target.Digest)
		}
	}
	return seeds, targets
}

// diskStatus is how full the disk of data_dir is, and what of it is cache.
func (n *Node) diskStatus() report.DiskStatus {
	held, limit := n.store.Cache()
	return report.DiskStatus{FreeBytes: diskOf(n.cfg.DataDir).free, CacheBytes: held, CacheLimitBytes: limit}
}
